"""Image references, platforms and the names that a store knows them by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import reference as oci
from rootless_udi.plan.reference import Platform, Reference, parse
from rootless_udi.store import find

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("library/alpine", "docker.io/library/alpine:latest"),
        ("someone/thing:v1", "docker.io/someone/thing:v1"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("docker://alpine", "docker.io/library/alpine:latest"),
        ("docker:alpine:3", "docker.io/library/alpine:3"),
        ("docker:host:5000/a/b:c", "host:5000/a/b:c"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/public/sci:latest", "127.0.0.1:5000/public/sci:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("Registry.Example.ORG/a__b/c-d.e_f", "registry.example.org/a__b/c-d.e_f:latest"),
        (f"a@sha256:{HEX}", f"docker.io/library/a@sha256:{HEX}"),
        (f"a:1@sha256:{HEX}", f"docker.io/library/a@sha256:{HEX}"),
        (f"h:1/a@sha512:{HEX}{HEX}", f"h:1/a@sha512:{HEX}{HEX}"),
    ],
)
def test_registry_references(text: str, canonical: str) -> None:
    found = parse(text)
    assert (found.kind, found.canonical) == ("registry", canonical)
    again = parse(canonical)
    assert again.canonical == canonical
    assert (again.registry, again.repository) == (found.registry, found.repository)


def test_short_names_go_to_the_sites_registry() -> None:
    assert parse("alpine", "quay.example:5000").canonical == "quay.example:5000/alpine:latest"
    assert parse("docker.io/alpine", "quay.example").canonical == "docker.io/library/alpine:latest"


@pytest.mark.parametrize(
    ("text", "kind", "path", "tag", "digest"),
    [
        ("oci:a/b", "oci", "a/b", "", ""),
        ("oci:/a/b:1.0", "oci", "/a/b", "1.0", ""),
        (f"oci:x@sha256:{HEX}", "oci", "x", "", f"sha256:{HEX}"),
        ("docker-archive:x.tar", "archive", "x.tar", "", ""),
        ("docker-archive:x.tar:alpine:3", "archive", "x.tar", "alpine:3", ""),
        ("oci-archive:x.tar:3", "archive", "x.tar", "3", ""),
        ("x.sqfs", "squashfs", "x.sqfs", "", ""),
        ("a/b.squashfs", "squashfs", "a/b.squashfs", "", ""),
        ("/a/b.sqsh", "squashfs", "/a/b.sqsh", "", ""),
        ("/a/b", "path", "/a/b", "", ""),
        ("./a", "path", "./a", "", ""),
        ("../a:b", "path", "../a:b", "", ""),
        (".", "path", ".", "", ""),
        (f"sha256:{HEX}", "store", "", "", f"sha256:{HEX}"),
        (f"id:{HEX}", "store", "", "", f"sha256:{HEX}"),
    ],
)
def test_local_references(text: str, kind: str, path: str, tag: str, digest: str) -> None:
    found = parse(text)
    assert (found.kind, found.path, found.tag, found.digest) == (kind, path, tag, digest)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("a b", "a space or a control character"),
        ("Alpine", "repository name 'Alpine' must be lower case"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("docker://", "the name is empty"),
        ("-a", "begins and ends with a letter"),
        ("a..b", "separators in 'a..b'"),
        ("a.-b", "separators in 'a.-b'"),
        ("a___b", "separators in 'a___b'"),
        ("a/b!c", "letters, digits, '.', '_' and '-' only"),
        ("a" * 256, "more than 255 characters"),
        ("a:", "the tag is empty"),
        ("a:-x", "'-x' is no tag"),
        ("a:" + "x" * 129, "more than 128 characters"),
        ("a@", "'' is no digest"),
        ("a@md5:00", "digest algorithm 'md5' is unknown"),
        ("a@sha256:00", "a sha256 digest has 64"),
        (f"a@sha256:{HEX.upper()}", "a sha256 digest has 64"),
        ("oci:x@sha256:00", "a sha256 digest has 64"),
        ("oci:x:", "the tag is empty"),
        ("oci:", "the path is empty"),
        ("docker-archive::a", "the path is empty"),
        ("https://example.org/a", "no URL can be used here"),
        ("sif:a", "sif: is not supported"),
        ("host:99999/a", "'99999' is no port"),
        ("host:/a", "'' is no port"),
        ("-.example/a", "'-.example' is no host name"),
        ("[::zz]:5/a", "is no IPv6 address"),
    ],
)
def test_refused_references(text: str, reason: str) -> None:
    with pytest.raises(UdiError) as caught:
        parse(text)
    assert reason in caught.value.message
    assert caught.value.message.startswith("image reference ")


@given(st.text(max_size=80) | st.text("ab:/.@-_[]0AZ%", max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except UdiError as error:
        assert error.message
        return
    if found.kind == "registry":
        assert parse(found.canonical).canonical == found.canonical


@pytest.mark.parametrize(
    ("machine", "text", "key"),
    [
        ("x86_64", "linux/amd64", "amd64"),
        ("aarch64", "linux/arm64/v8", "arm64"),
        ("armv7l", "linux/arm/v7", "arm-v7"),
        ("i686", "linux/386", "386"),
        ("ppc64le", "linux/ppc64le", "ppc64le"),
        ("s390x", "linux/s390x", "s390x"),
        ("riscv64", "linux/riscv64", "riscv64"),
        ("loongarch64", "linux/loong64", "loong64"),
    ],
)
def test_platform_of_a_machine(machine: str, text: str, key: str) -> None:
    platform = oci.platform_of(machine)
    assert (str(platform), platform.key()) == (text, key)
    assert oci.parse_platform(text) == platform


def test_platform_texts() -> None:
    assert oci.parse_platform("arm64") == Platform("linux", "arm64", "v8")
    with pytest.raises(UdiError, match="only linux"):
        oci.parse_platform("windows/amd64")
    for text in ("", "linux/", "linux/a/b/c", "linux/AMD"):
        with pytest.raises(UdiError, match="not of the form"):
            oci.parse_platform(text)


@given(st.text(min_size=1, max_size=700).filter(lambda t: "\0" not in t))
def test_store_names_are_reversible_paths(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    path = find.escape(name)
    assert find.unescape(path) == name
    assert all(0 < len(part) <= 255 and part[0] != "." for part in path.split("/"))


def test_store_names_of_bytes_that_are_no_text() -> None:
    name = os.fsdecode(b"oci:/\xff/\xfe")
    assert find.unescape(find.escape(name)) == name
    assert find.escape("docker.io/library/a:1") == "docker.io%2flibrary%2fa:1"


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"UDI_STORE": "/s/", "HOME": "/h"}, "/s"),
        ({"XDG_DATA_HOME": "/d", "HOME": "/h"}, "/d/rootless_udi"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/h"}, "/h/.local/share/rootless_udi"),
        ({"UDI_STORE": "", "HOME": "/h"}, "/h/.local/share/rootless_udi"),
    ],
)
def test_the_users_store(environ: dict[str, str], path: str) -> None:
    assert find.user_store(environ) == path


def test_no_place_for_a_store() -> None:
    with pytest.raises(UdiError, match="HOME is not set"):
        find.user_store({})
    with pytest.raises(UdiError, match="not an absolute path"):
        find.user_store({"UDI_STORE": "s"})


def put(store: Path, arch: str, name: str, digest: str) -> None:
    link = store / "names" / arch / find.escape(name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(digest.replace(":", "-"))
    (store / "images").mkdir(exist_ok=True)
    (store / "images" / (digest.replace(":", "-") + ".sqfs")).write_bytes(b"image")


def test_find_searches_the_stores_in_order(tmp_path: Path) -> None:
    mine, site = tmp_path / "mine", tmp_path / "site"
    stores = (str(mine), str(site))
    amd64, arm64 = oci.platform_of("x86_64"), oci.platform_of("aarch64")
    reference = parse("alpine")
    assert find.find(stores, reference, amd64) is None
    put(site, "amd64", reference.canonical, f"sha256:{HEX}")
    found = find.find(stores, reference, amd64)
    assert found is not None
    assert found.store == str(site)
    assert found.squashfs == f"{site}/images/sha256-{HEX}.sqfs"
    assert found.facts == f"{site}/images/sha256-{HEX}.json"
    assert (found.digest, found.size, found.name) == (f"sha256:{HEX}", 5, reference.canonical)
    assert find.find(stores, reference, arm64) is None

    other = "f" * 64
    put(mine, "amd64", reference.canonical, f"sha256:{other}")
    assert find.find(stores, reference, amd64).digest == f"sha256:{other}"  # type: ignore[union-attr]
    os.unlink(mine / "images" / f"sha256-{other}.sqfs")
    assert find.find(stores, reference, amd64).digest == f"sha256:{HEX}"  # type: ignore[union-attr]

    for text in (f"sha256:{HEX}", f"id:{HEX}", f"elsewhere:1/x@sha256:{HEX}"):
        assert find.find(stores, parse(text), arm64).store == str(site)  # type: ignore[union-attr]


def test_a_changed_layout_is_a_miss(tmp_path: Path) -> None:
    layout, store = tmp_path / "layout", tmp_path / "store"
    layout.mkdir()
    reference = parse(f"oci:{layout}:1")
    with pytest.raises(UdiError, match=r"reading image .* failed on .*index.json: No such file"):
        find.find((str(store),), reference)
    (layout / "index.json").write_text("{}")
    platform = oci.platform_of("x86_64")
    put(store, "amd64", find.name_of(reference), f"sha256:{HEX}")
    assert find.find((str(store),), reference, platform) is not None
    (layout / "index.json").write_text("{ }")
    assert find.find((str(store),), reference, platform) is None


def test_paths_are_no_stores_business() -> None:
    with pytest.raises(ValueError, match="not kept in a store"):
        find.find(("/s",), Reference("squashfs", "/x.sqfs", path="/x.sqfs"))


def test_the_launch_side_imports_next_to_nothing() -> None:
    code = "import rootless_udi.store.find, sys; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0]=[{os.getcwd()!r}]; {code}"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys, errno, os; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    new = set(out) - set(bare)
    assert {name for name in new if not name.startswith("rootless_udi")} == set()
    names = ["base", "base.errors", "base.records", "base.trust", "plan", "plan.options"]
    names += ["plan.reference", "store", "store.find"]
    assert new == {"rootless_udi", *(f"rootless_udi.{name}" for name in names)}
