"""Files that are no images of the store, where there is no FUSE: unpacked once into the store."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_sif import ENV, squashfs
from tests.conftest import User
from tests.kit import sifs
from tests.kit.nodes import Leftovers, counted
from tests.launch.test_run import without_fuse

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found
        found.check()


@pytest.fixture
def app(user: User) -> Path:
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, ENV)))
    return path


def trees(user: User) -> list[Path]:
    return sorted((user.home / "store/dirs").glob("file-*"))


def test_each_kind_of_file(user: User, app: Path, left: Leftovers) -> None:
    """By its path: a squashfs file, enroot's, a SIF file with its scripts and runscript."""
    run = [*without_fuse(user), "udi-run"]
    whole = (user.home / "root.sqfs").read_bytes()
    for name in ("a.sqfs", "b.sqsh", "c"):
        (user.home / name).write_bytes(whole)
        done = user.run(*run, f"./{name}", "cat", "/.singularity.d/runscript")
        assert done.stdout.startswith("#!/bin/sh"), done.stderr
    script = 'echo "$A"; touch /x; id -u'
    done = user.run(*run, "app.sif", "sh", "-c", script)
    assert done.stdout == f"from the image\n{user.uid}\n", done.stderr
    assert "Read-only file system" in done.stderr
    assert user.run(*run, "app.sif").stdout == "run\n"
    assert user.run(*run, "--writable", "app.sif", "touch", "/x").returncode == 0
    assert user.run(*run, "--layer=underlay", "app.sif", "sh", "-c", "echo in").stdout == "in\n"
    assert len(trees(user)) == 4
    assert all(tree.stat().st_mode & 0o777 == 0o700 for tree in trees(user))
    said = user.run(*run, "--explain", "app.sif").stdout
    assert f"{trees(user)[0].parent}/file-" in said and "not udi: /dev/fuse is missing" in said
    rows = user.run("udi", "df").stdout.splitlines()
    assert any(row.split()[:3] == ["unpacked", "files", "4"] for row in rows), rows


def test_volumes(user: User, app: Path, left: Leftovers) -> None:
    run = [*without_fuse(user), "udi-run", f"-V{app}:/one", f"-V{user.home}/root.sqfs:/two"]
    show = "cat /one/.singularity.d/runscript /two/.singularity.d/runscript | wc -l; touch /two/x"
    for layer in ("overlay", "underlay"):
        done = user.run(*run, f"--layer={layer}", "app.sif", "sh", "-c", show)
        assert done.stdout == "4\n" and "Read-only file system" in done.stderr
    table = user.run(*run, "app.sif", "cat", "/proc/self/mountinfo").stdout
    flags = [row.split()[5] for row in table.splitlines() if row.split()[4] in ("/one", "/two")]
    assert len(flags) == 2 and all("ro,nosuid,nodev" in one for one in flags), flags
    # The image and the volume of the same file are one tree.
    assert len(trees(user)) == 2


def test_a_changed_file_is_unpacked_anew_and_the_old_tree_goes(
    user: User, app: Path, left: Leftovers
) -> None:
    run = [*without_fuse(user), "udi-run", "--keep=60", "--share=x", "app.sif", "sh", "-c"]
    script = "echo $SET; read x; cat /.singularity.d/runscript | wc -l"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = user.popen(*run[:-6], "udi-run", "app.sif", "sh", "-c", f"echo; {script}", **pipes)
    assert first.stdout and first.stdin and first.stdout.readline() == "\n"
    assert user.run(*run, "echo $A").stdout == "from the image\n"
    (old,) = trees(user)
    new = user.home / "new"
    new.write_bytes(sifs.sif(squashfs(user.home, {"1.sh": "export SET=anew\n"})))
    os.utime(new, ns=(app.stat().st_atime_ns, app.stat().st_mtime_ns))
    new.rename(app)
    assert user.run(*run, "echo $SET").stdout == "anew\n"
    assert len(trees(user)) == 2
    # The first container still has the old tree.
    assert "unpacked" not in user.run("udi", "prune").stdout and len(trees(user)) == 2
    assert user.run("udi", "stop", "--all").returncode == 0
    assert first.communicate("\n", timeout=60)[0].split() == ["2"]
    left.check_processes()
    done = user.run("udi", "prune", "--dry-run")
    assert done.stdout == f"unpacked {app}\n" and len(trees(user)) == 2
    done = user.run("udi", "prune")
    assert done.stdout == f"unpacked {app}\n" and old not in trees(user) and len(trees(user)) == 1
    app.unlink()
    assert user.run("udi", "prune").stdout == f"unpacked {app}\n" and not trees(user)


def test_what_is_kept_is_bounded(user: User, app: Path) -> None:
    """Trees that nobody has used for a week go at the next one: of changed files, and too many."""
    for _ in range(2):
        tree = Path(user.run("udi", "extract", "app.sif").stdout.strip())
        assert (tree / "bin/busybox").exists()
    (one,) = trees(user)
    assert one == tree.parent
    old = user.home / "store/dirs/file-old-1"
    shutil.copytree(one, old, symlinks=True)
    for n in range(66):
        (user.home / f"store/dirs/file-x-{n}").mkdir()
        (user.home / f"store/dirs/file-x-{n}/from").write_text("damaged")
    (user.home / "b.sqfs").write_bytes((user.home / "root.sqfs").read_bytes())
    assert user.run("udi", "extract", "./b.sqfs").returncode == 0
    assert len(trees(user)) == 69
    os.utime(one / "from", (1, 2))
    os.utime(old / "from", (1, 1))
    for n in range(5):
        os.utime(user.home / f"store/dirs/file-x-{n}/from", (1, 3))
    shutil.rmtree(trees(user)[-1])
    (user.home / "b.sqfs").rename(user.home / "c.sqfs")
    assert user.run("udi", "extract", "./c.sqfs").returncode == 0
    assert old not in trees(user) and one not in trees(user)
    assert len(trees(user)) == 69 - 1 - 7 + 1
    assert user.run("udi", "prune", "--older-than=1d").returncode == 0
    assert len(trees(user)) == 1


@pytest.mark.parametrize("kind", ["cut", "damaged", "unreadable", "store"])
def test_what_fails_leaves_nothing(user: User, app: Path, left: Leftovers, kind: str) -> None:
    data = app.read_bytes()
    words, argv = "", [*without_fuse(user), "udi-run", "app.sif", "true"]
    if kind == "cut":
        app.write_bytes(data[:-4096])
        words = "its partition is at"
    elif kind == "damaged":
        at = len(data) - 200_000
        app.write_bytes(data[:at] + bytes(100_000) + data[at + 100_000 :])
        words = "could not be unpacked into "
    elif kind == "unreadable":
        app.chmod(0)
        words = "Permission denied"
    else:
        (user.home / "store").mkdir()
        (user.home / "store").chmod(0o500)
        words = "Permission denied"
    done = user.run(*argv)
    if (user.home / "store").exists():
        (user.home / "store").chmod(0o700)
    assert done.returncode == 125 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not [one for one in trees(user) if (one / "root").exists()]
