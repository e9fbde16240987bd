"""The caller's folder and home directory inside, without a word about them ([7] and [8] of
docs/semantics.md)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images
from tests.kit.nodes import Rank
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")

NO_TMP = '[[mount]]\ndestination = "/tmp"\nenabled = false\n'


@pytest.fixture
def place(user: User) -> Iterator[Path]:
    """A folder of the user's own that no default mount brings in: /tmp is left out by the site."""
    (user.home / "site").mkdir()
    (user.home / "site/udi.toml").write_text(NO_TMP)
    user.env["UDI_SITE_DIR"] = str(user.home / "site")
    folder = user.home / "proj"
    folder.mkdir()
    (folder / "script").write_text("said here\n")
    yield folder


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_the_folder_is_inside_and_writable(user: User, box: Path, place: Path) -> None:
    script = "pwd; cat script; echo new >made"
    for argv in (["udi-run"], ["udi-run", "--writable"], ["udi-run", "--share=x"]):
        done = user.run(*argv, box, "sh", "-c", script, cwd=place)
        assert lines(done) == [str(place), "said here"]
        assert (place / "made").read_text() == "new\n"
        (place / "made").unlink()
    # What is beside it and above it stays outside.
    assert lines(user.run("udi-run", box, "ls", "..", cwd=place)) == ["proj"]


def test_both_names_of_a_folder_are_inside(user: User, box: Path, place: Path) -> None:
    (user.home / "link").symlink_to("proj")
    named = user.home / "link"
    script = f"pwd -P; echo $PWD; cat {place}/script {named}/script"
    done = user.run("udi-run", box, "sh", "-c", script, cwd=named, env={"PWD": str(named)})
    assert lines(done) == [str(named), str(named), "said here", "said here"]


def test_home_itself_stays_outside_unless_it_is_asked_for(
    user: User, box: Path, place: Path
) -> None:
    for folder in (user.home, user.home.parent):
        done = user.run("udi-run", box, "pwd", cwd=folder)
        assert done.stdout == "/\n" and f"the folder {folder} is not in" in done.stderr
    assert "--home brings it in" in user.run("udi-run", box, "pwd").stderr
    assert lines(user.run("udi-run", "--home", box, "cat", "proj/script")) == ["said here"]
    # One that is asked for twice is no contradiction.
    twice = user.run("udi-run", "--home", f"--volume={user.home}", box, "pwd")
    assert lines(twice) == [str(user.home)]
    (user.home / "site/udi.toml").write_text(NO_TMP + "[user]\nhome = true\n")
    assert lines(user.run("udi-run", box, "cat", "proj/script")) == ["said here"]


def test_a_home_that_cannot_be_mounted_is_an_error(user: User, box: Path) -> None:
    for home, why in (("/nowhere", "no such file or directory"), ("/etc", "is not allowed")):
        done = user.run("udi-run", "--home", box, "true", env={"HOME": home})
        assert done.returncode == 125 and why in done.stderr and "--home" in done.stderr


def test_it_can_be_left_out_and_silenced(user: User, box: Path, place: Path) -> None:
    assert lines(user.run("udi-run", "--no-cwd", box, "pwd", cwd=place)) == ["/"]
    (user.home / "site/udi.toml").write_text(NO_TMP + "[user]\ncwd = false\n")
    done = user.run("udi-run", box, "pwd", cwd=place)
    assert done.stdout == "/\n"
    assert done.stderr == (
        f"udi-run: the folder {place} is not in the container; starting in /\n"
        "udi-run: hint: --volume=$PWD brings it in, --workdir=DIR starts elsewhere, "
        "--quiet says nothing\n"
    )
    assert lines(user.run("udi-run", "--quiet", box, "pwd", cwd=place)) == ["/"]
    # What the hint says.
    assert lines(user.run("udi-run", f"--volume={place}", box, "pwd", cwd=place)) == [str(place)]


def test_shifter_keeps_its_ways(user: User, box: Path, place: Path) -> None:
    done = user.run("shifter", f"--image={box}", "pwd", cwd=place)
    assert done.stdout == "/\n"
    assert done.stderr.endswith(f"Failed to switch to working dir: {place}, staying in /\n")


@pytest.mark.parametrize(
    "folder",
    ["/", "/usr", "/usr/share", "/etc", "/opt", "/var", "/var/lib", "/proc/self", "/sys", "/run"],
)
def test_no_folder_of_a_system_comes_in(user: User, box: Path, folder: str) -> None:
    """Whatever the host has there: the image's own is seen."""
    done = user.run("udi-run", "--explain", box, cwd=folder)
    assert done.returncode == 0 and "the caller's folder" not in done.stdout


def test_what_the_image_has_is_not_covered(user: User, place: Path, tmp_path: Path) -> None:
    """Nor is a link of the image followed out of it, and a file is no folder."""
    outer = str(place.parent).strip("/")
    parents = [outer.rsplit("/", n)[0] for n in range(outer.count("/"), 0, -1)]
    folders: list[images.Entry] = [(name, None, {}) for name in [*parents, outer]]
    name = f"{outer}/proj"
    kinds: dict[str, tuple[list[images.Entry], str]] = {
        "full": ([(name, None, {}), (f"{name}/own", b"image", {})], "own"),
        "empty": ([(name, None, {})], "script"),
        "file": ([(name, b"image", {})], ""),
        "closed": ([(name, None, {"mode": 0})], "script"),
        "link": ([(name, "/usr", {})], ""),
        "dangling": ([(name, "/etc/x", {})], ""),
        "circle": ([(name, "proj", {})], ""),
    }
    layout = images.Layout(tmp_path / "layout")
    for kind, (entries, _) in kinds.items():
        layout.image(kind, [images.tar([*images.busybox_entries(), *folders, *entries])])
    for kind, (_, wanted) in kinds.items():
        done = user.run("udi-run", "--quiet", f"oci:{tmp_path}/layout:{kind}", "/bin/ls", cwd=place)
        assert (done.returncode, done.stderr) == (0, ""), kind
        assert wanted in done.stdout.split() if wanted else "script" not in done.stdout, kind


def test_volumes_come_first_and_nothing_is_made_in_the_folder(
    user: User, box: Path, place: Path
) -> None:
    data = user.home / "data"
    data.mkdir()
    (data / "x").write_text("from data\n")
    # A volume on it, above it, and inside it where there is a place and where there is none.
    done = user.run("udi-run", f"--volume={data}:{place}", box, "cat", "x", cwd=place)
    assert lines(done) == ["from data"]
    (data / "proj").mkdir()
    done = user.run("udi-run", f"--volume={data}:{user.home}", box, "ls", cwd=place)
    assert lines(done) == []
    (place / "in").mkdir()
    inside = user.run("udi-run", f"--volume={data}:{place}/in", box, "cat", "in/x", cwd=place)
    assert lines(inside) == ["from data"]
    done = user.run("udi-run", f"--volume={data}:{place}/no", box, "ls", ".", cwd=place)
    assert lines(done) == ["no"]
    assert sorted(os.listdir(place)) == ["in", "script"]


def test_ranks_in_different_folders_share_and_one_says_it(
    user: User, box: Path, place: Path
) -> None:
    """Also where the image's name has a tag: only a path from here depends on the folder."""
    shutil.copy(box, place / "box.sqfs")
    user.run("udi", "pull", "-q", f"oci:{box.parent.parent.parent}/layout:latest", check=True)
    name = user.run("udi", "images", "--json", check=True).stdout
    assert name
    folders = [place, *(user.home / f"rank{i}" for i in range(4))]
    env = {"UDI_SHARE": "job"}
    ranks = []
    for folder in folders:
        folder.mkdir(exist_ok=True)
        user_there = User(user.home)
        user_there.env = user.env
        argv = ["env", "-C", folder, TREE / "bin/udi-run", place / "box.sqfs"]
        ranks.append(Rank(user_there, *argv, env=env).ready())
    assert len({rank.namespaces for rank in ranks}) == 1
    said = [rank.end("pwd; exit 0") for rank in ranks]
    assert [out.split()[-1] for _, out, _ in said] == [str(place)] + ["/"] * 4
    told = [err for _, _, err in said if "is not in the container" in err]
    assert len(told) == 1 and str(folders[1]) in told[0]
