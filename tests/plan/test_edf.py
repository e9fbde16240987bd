"""Environment definition files: what they mean, and what is refused with its line."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import edf

HOST = {"HOME": "/h", "USER": "u", "SCRATCH": "/s", "EMPTY": ""}


def read(text: str, path: str = "a.toml") -> edf.Edf:
    return edf.parse(path, text, tomllib.loads(text))


def merged(*texts: str) -> edf.Definition:
    return edf.merge([read(t, f"{n}.toml") for n, t in enumerate(texts)], HOST, "/cwd")


@pytest.mark.parametrize(
    ("image", "ours"),
    [
        ("library/ubuntu:24.04", "library/ubuntu:24.04"),
        ("docker.io#library/ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("nvcr.io#nvidia/pytorch:22.12-py3", "nvcr.io/nvidia/pytorch:22.12-py3"),
        ("/path/to/image.squashfs", "/path/to/image.squashfs"),
        ("./image.sqsh", "./image.sqsh"),
        ("${SCRATCH}/x.sqsh", "/s/x.sqsh"),
        ("a@sha256:" + "1" * 64, "a@sha256:" + "1" * 64),
    ],
)
def test_images(image: str, ours: str) -> None:
    assert merged(f'image = "{image}"').image == ours


def test_what_stands_on_another() -> None:
    base = 'image = "a"\nwritable = false\nmounts = ["/x:/y"]\n[env]\nA = "1"\nB = "1"\n'
    top = 'entrypoint = false\nmounts = ["/v:/w:ro+rprivate", "/d.sqsh:/d:sqsh"]\n'
    top += 'workdir = "/w"\n[env]\nB = "2"\n'
    found = merged(base, top)
    assert found.image == "a"
    assert (found.writable, found.entrypoint, found.workdir) == (False, False, "/w")
    assert found.mounts == ("/x:/y", "/v:/w:ro:private", "/d.sqsh:/d:sqfs")
    assert [(name, value) for name, value, _ in found.env] == [("A", "1"), ("B", "2")]
    assert [where for *_, where in found.env] == ["0.toml:5", "1.toml:5"]


def test_what_is_there_without_a_word() -> None:
    assert merged('image = "a"') == edf.Definition(image="a", entrypoint=None, writable=True)


def test_relative_mounts_begin_in_the_current_folder() -> None:
    assert merged('image = "a"\nmounts = ["./d:/d", ".:/here", "/one"]').mounts == (
        "/cwd/d:/d",
        "/cwd:/here",
        "/one:/one",
    )


def test_hooks_are_modules() -> None:
    text = """
        image = "a"
        [annotations]
        com.hooks.cxi.enabled = "false"
        com.hooks.aws_ofi_nccl.enabled = "true"
        com.hooks.aws_ofi_nccl.variant = "cuda12"
        com.hooks.dcgm.variant = "x"
        org.example.note = "for another tool"
    """
    assert [one[:3] for one in merged(text).modules] == [
        ("cxi", "", False),
        ("aws_ofi_nccl", "cuda12", True),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${HOME}/x", "/h/x"),
        ("$HOME", "$HOME"),
        ("$${HOME}", "${HOME}"),
        ("${NO:-}", ""),
        ("${NO:-d}e", "de"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("a$", "a$"),
        ("", ""),
    ],
)
def test_variables(text: str, value: str) -> None:
    assert edf.expand(text, HOST, "x") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('image = "a"\nfoo = 1', "a.toml:2: unknown key 'foo'"),
        ("image = 1", "a.toml:1: image is not a string"),
        ('image = "a"\nmounts = "x:y"', "a.toml:2: mounts is not an array of strings"),
        ('image = "a"\nmounts = [1]', "a.toml:2: mounts is not an array of strings"),
        ('image = "a"\nwritable = "true"', "a.toml:2: writable is not true or false"),
        ('image = "a"\nbase_environment = 1', "a.toml:2: base_environment is not a string or an"),
        ("", "a.toml: no image is given"),
        ('image = ""', "a.toml: no image is given"),
        ('image = "me@r#a"', "a.toml:1: me@ names a user of the registry"),
        ('image = "${NO}"', "a.toml:1: the variable NO is not set"),
        ('image = "${NO"', "a.toml:1: .* is not closed"),
        ('image = "${}"', "a.toml:1: .* is not closed, or empty"),
        ('image = "a"\nmounts = ["/x:"]', "a.toml:2: mount '/x:' is not SOURCE:DESTINATION"),
        ('image = "a"\nmounts = ["/x:/y;/z:/w"]', "a.toml:2: mount .* is not SOURCE:DESTINATION"),
        ('image = "a"\nmounts = ["/x:/etc"]', "a.toml:2 /x:/etc: destination /etc is not allowed"),
        ('image = "a"\nmounts = ["/x:/y:noexec"]', "a.toml:2 .*: unknown flag noexec"),
        ('image = "a"\n[env]\nA = 1', "a.toml:3: env.A is no string"),
        ('image = "a"\n[env]\n"A=B" = "x"', "a.toml:3: 'A=B' is no variable's name"),
        ('image = "a"\n[annotations]\ncom.hooks.a.enabled = true', "annotation .* is no string"),
        ('image = "a"\n[annotations]\ncom.hooks.a.enabled = "yes"', 'is not "true" or "false"'),
        ('image = "a"\n[annotations]\ncom.hooks.ssh.port = "1"', "com.hooks.ssh.port has no count"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(UdiError, match=words) as caught:
        edf.merge([read(text)], HOST, "/cwd")
    assert caught.value.message.startswith("environment definition a.toml")


SCALARS = st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*edf._TYPES, "x"]), VALUES))
def test_any_document_is_a_definition_or_one_error(document: dict[str, Any]) -> None:
    try:
        edf.merge([edf.parse("p", "", document)], HOST, "/cwd")
    except UdiError as error:
        assert error.message.startswith("environment definition p")
