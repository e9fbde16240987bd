"""shifterimg: its modes against a real registry, its lines, its refusals."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import reference
from rootless_udi.shifter import lines, shifterimg
from rootless_udi.shifter.shifterimg import ImageCommand
from tests.conftest import User
from tests.kit import images
from tests.kit.places import TREE
from tests.kit.registry import PASSWORD, USER, Registry, basic_registry, open_registry

COMMAND = f"{TREE}/bin/shifterimg"
WHEN = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("shifterimg")
    layout = images.busybox_layout(place / "layout", "1")
    with open_registry(place / "r", place / "data") as one:
        one.push(layout.path, "1", "scanon/hello:latest")
        yield one


def test_lines() -> None:
    line = lines.row("cori", "READY", "sha256:" + "ab" * 32, 0, "ubuntu:14.04")
    assert re.fullmatch(
        rf"cori       docker     READY    ababababab   {WHEN} ubuntu:14\.04 {{18}}", line
    )
    line = lines.pull_line(0, "ubuntu:latest", "PULLING")
    assert re.fullmatch(rf"{WHEN} Pulling Image: docker:ubuntu:latest, status: PULLING", line)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("ubuntu", "ubuntu:latest"),
        ("docker.io/scanon/hello:1", "scanon/hello:1"),
        ("host.example/a/b", "host.example/a/b:latest"),
        ("oci:/x:1", "oci:/x:1"),
    ],
)
def test_names(text: str, tag: str) -> None:
    assert lines.tag_of(reference.parse(text)) == tag


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["images"], ImageCommand("images")),
        (["-v", "pull", "a"], ImageCommand("pull", "a", True)),
        (["login"], ImageCommand("login")),
        (["login", "r"], ImageCommand("login", "r")),
        (
            ["--user=a,b", "--group", "g", "pull", "x", "--user=c"],
            ImageCommand("pull", "x", users=("a", "b", "c"), groups=("g",)),
        ),
        (["--help", "x"], ImageCommand(help=True)),
    ],
)
def test_arguments(argv: list[str], given: ImageCommand) -> None:
    assert shifterimg.read(argv) == given


@pytest.mark.parametrize(
    ("argv", "why", "hint"),
    [
        ([], "no mode is given", "modes are: images, lookup"),
        (["push"], "unknown mode 'push'", "modes are: images, lookup"),
        (["pull"], "pull: no image is given", "shifterimg pull NAME[:TAG]"),
        (["pull", "a", "b"], "pull: more than it takes: 'b'", ""),
        (["images", "a"], "images: more than it takes: 'a'", ""),
        (["-x"], "unknown option -x", ""),
        (["pull", "x", "--user"], "option --user: nobody is named", "--user=NAME,NAME"),
        (["--group=,", "pull", "x"], "option --group: nobody is named", ""),
    ],
)
def test_refused(argv: list[str], why: str, hint: str) -> None:
    with pytest.raises(UdiError) as caught:
        shifterimg.read(argv)
    assert why in caught.value.message
    assert hint in caught.value.hint


def test_help_and_errors_end_as_shifter_s(user: User) -> None:
    done = user.run(COMMAND, "--help")
    assert (done.returncode, done.stdout) == (0, shifterimg.USAGE)
    done = user.run(COMMAND, "push")
    assert done.returncode == 1
    assert done.stderr.startswith("shifterimg: unknown mode 'push'\n")
    done = user.run(COMMAND, "lookup", "gone")
    assert done.returncode == 1
    assert "gone is not among the images" in done.stderr
    for option in ("--user=a,b", "--group=g"):
        done = user.run(COMMAND, option, "pull", "x")
        assert f"option {option.partition('=')[0]}: images are files of yours" in done.stderr
        assert "setfacl(1)" in done.stderr
    done = user.run(COMMAND, "lookup", "/some/path")
    assert "/some/path is a path, not an image" in done.stderr
    assert user.run(COMMAND, "images").stdout == ""
    done = user.run(COMMAND, "login", "host.example", input="")
    assert "login: no answer" in done.stderr


@pytest.mark.needs("registry", "mksquashfs", "skopeo")
def test_pull_images_lookup_expire(user: User, registry: Registry) -> None:
    name = f"{registry.host}/scanon/hello"
    done = user.run(COMMAND, "pull", f"docker:{name}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for line in lines:
        assert re.fullmatch(rf"{WHEN} Pulling Image: docker:{name}:latest, status: [A-Z]+", line)
    states = [line.rpartition(" ")[2] for line in lines]
    assert states == ["INIT", "PULLING", "CONVERSION", "TRANSFER", "READY"]
    again = user.run(COMMAND, "pull", name).stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in again] == ["INIT", "READY"]
    digest = user.run(COMMAND, "lookup", name).stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert user.run(COMMAND, "lookup", f"id:{digest}").stdout.strip() == digest
    (row,) = user.run(COMMAND, "images").stdout.splitlines()
    system, kind, status, short, when, tag = row.split()
    assert (kind, status, short, tag) == ("docker", "READY", digest[:10], f"{name}:latest")
    assert re.fullmatch(WHEN, when)
    assert system
    assert user.run(COMMAND, "autoexpire").stdout == ""
    assert user.run(COMMAND, "expire", name).stdout == f"{name}:latest EXPIRED\n"
    assert user.run(COMMAND, "images").stdout == ""
    assert user.run(COMMAND, "expire", name).returncode == 1


@pytest.mark.needs("registry", "mksquashfs", "skopeo")
def test_pull_in_the_background(user: User, registry: Registry) -> None:
    name = f"{registry.host}/scanon/hello:latest"
    done = user.run(COMMAND, "pullnb", name)
    assert done.returncode == 0
    assert done.stdout.endswith(f" Pulling Image: docker:{name}, status: INIT\n")
    # A second pull of an image waits for the first.
    done = user.run(COMMAND, "pull", name)
    assert done.stdout.endswith("status: READY\n")


@pytest.mark.needs("registry")
def test_a_pull_that_fails(user: User, registry: Registry) -> None:
    done = user.run(COMMAND, "pull", f"{registry.host}/not/there")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("status: FAILURE")
    assert done.stderr.startswith("shifterimg: ")


@pytest.mark.needs("registry", "mksquashfs", "skopeo")
def test_login(user: User, registry: Registry, tmp_path: Path) -> None:
    with basic_registry(tmp_path / "r", tmp_path / "data") as one:
        done = user.run(COMMAND, "login", one.host, input=f"{USER}\nwrong\n")
        assert done.returncode == 1
        assert f"login to {one.host}: access denied" in done.stderr
        done = user.run(COMMAND, "login", one.host, input=f"{USER}\n{PASSWORD}\n")
        assert (done.returncode, done.stderr) == (0, "")
