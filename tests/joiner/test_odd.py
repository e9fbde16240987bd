"""udi-run in C where it is started oddly, or finds something odd: it joins or asks Python."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.nodes import SHOW, Rank, busybox, counted
from tests.kit.places import TREE
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("joiner", "userns", "fuse", "mksquashfs", "busybox")

JOIN = ("udi-run", "--share=job")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def one(user: User, image: Path) -> Iterator[Rank]:
    """A rank whose container the others join."""
    user.env["PATH"] = f"{TREE}/build/joiner:{user.env['PATH']}"
    with counted(user):
        first = Rank(user, *JOIN, image).ready()
        yield first
        assert first.end()[0] == 0


def record(user: User) -> Path:
    (path,) = Path(user.env["XDG_RUNTIME_DIR"], "rootless_udi").glob("*.2")
    return path


@pytest.mark.needs("strace")
def test_a_join_opens_at_most_8_files_and_no_interpreter(
    user: User, image: Path, one: Rank, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    strace = ("strace", "-f", "-o", log, "-e", "trace=/open,execve")
    env = {"NVIDIA_VISIBLE_DEVICES": "0,1"}
    words = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER")
    done = user.run(*strace, *JOIN, image, *words, env=env)
    assert done.stdout == "0,1 PCI_BUS_ID\n"
    calls = log.read_text().splitlines()
    joined = next(i for i, line in enumerate(calls) if 'execve("/bin/sh"' in line)
    assert sum(" open" in line for line in calls[:joined]) <= 8
    assert not any("python" in line for line in calls[:joined])


@pytest.mark.needs("strace")
def test_shifter_joins_too(user: User, image: Path, tmp_path: Path) -> None:
    """Without an interpreter, with its exit statuses, its variables and those of a file."""
    user.env["PATH"] = f"{TREE}/build/joiner:{user.env['PATH']}"
    words = ("shifter", f"--image=custom:{image}", "--env-file=variables", "--env=B=own")
    (tmp_path / "variables").write_text("A=1\nB=2\n")
    env = {"UDI_SHARE": "job", "MODULEPATH": "kept"}
    log = tmp_path / "log"
    with counted(user):
        holder = user.popen(
            *words, "sh", "-c", "echo; read x", stdin=-1, stdout=-1, env=env, cwd=tmp_path
        )
        assert holder.stdout is not None and holder.stdout.readline()
        shell = "echo $A $B $MODULEPATH $SHIFTER_RUNTIME; exit 9"
        strace = ("strace", "-f", "-o", log, "-e", "trace=execve")
        done = user.run(*strace, *words, "sh", "-c", shell, env=env, cwd=tmp_path)
        assert (done.stdout, done.returncode) == ("1 own kept 1\n", 9), done.stderr
        assert "python" not in log.read_text()
        done = user.run(*words, "nowhere", env={**env, "PMI_RANK": "3"}, cwd=tmp_path)
        assert done.returncode == 127 and done.stderr.startswith("shifter: rank 3 on ")
        done = user.run(*words, "/etc", env=env, cwd=tmp_path)
        assert done.returncode == 127 and done.stderr.startswith("shifter: /etc: not executable")
        holder.communicate("\n", timeout=60)


def test_closed_descriptors_stay_closed(user: User, image: Path, one: Rank) -> None:
    """No file of ours gets the number of a standard one; the command finds it closed."""
    words = f"exec {' '.join(JOIN)} {image} sh -c 'readlink /proc/self/fd/0 || echo closed' <&-"
    assert user.run("sh", "-c", words).stdout == "closed\n"


def test_signals_that_are_ignored_stay_so(user: User, image: Path, one: Rank) -> None:
    words = f"trap '' PIPE USR1; exec {' '.join(JOIN)} {image} grep SigIgn /proc/self/status"
    # Others may be ignored here already, as in what a shell runs in the background; 32 and 33 are
    # the C library's own.
    done = user.run("env", "--default-signal", "sh", "-c", words)
    assert int(done.stdout.split()[1], 16) & ~(3 << 31) == 1 << 12 | 1 << 9


def test_no_environment_at_all(user: User, image: Path, one: Rank) -> None:
    """Python is found all the same: where the C library looks without a PATH."""
    argv = [str(TREE / "build/joiner/udi-run"), "--version"]
    done = subprocess.run(user.argv(*argv), env={}, capture_output=True, text=True)
    assert done.stdout.startswith("udi-run ")


def test_the_interpreter_is_missing(user: User) -> None:
    for program in ("build/joiner/udi-run", "bin/udi-run", "bin/udi"):
        argv = user.argv(str(TREE / program), "--version")
        done = subprocess.run(argv, env={"PATH": "/nowhere"}, capture_output=True, text=True)
        assert done.returncode == 125
        assert "Python 3.11 or newer" in done.stderr and "beside it or on the PATH" in done.stderr
        assert all(line.startswith("udi") for line in done.stderr.splitlines())


def test_what_belongs_to_it_is_gone(user: User, tmp_path: Path) -> None:
    """The script beside the program in C, then the package."""
    for name in ("build/joiner/udi-run", "bin/udi"):
        shutil.copy(TREE / name, tmp_path)
    done = user.run(tmp_path / "udi-run", "--version")
    where = f"{tmp_path}/udi-run-python: No such file or directory"
    assert done.stderr.startswith(f"udi-run: its other half is gone: {where}\nudi-run: hint: ")
    assert done.returncode == 125
    shutil.copy(TREE / "bin/udi-run", tmp_path / "udi-run-python")
    for program in ("udi-run", "udi"):
        done = user.run(tmp_path / program, "--version", env={"PATH": "/usr/bin:/bin"})
        text = f"{program}: the package rootless_udi is not there: install it again\n"
        assert (done.returncode, done.stderr) == (125, text)


@pytest.mark.parametrize("line", ["2147483648 7", "4294967297 7", "-1 7", "1 99999999999999999999"])
def test_ids_that_no_process_has(user: User, image: Path, one: Rank, line: str) -> None:
    """Of a 32-bit number that goes on from its start they would be somebody else's."""
    with record(user).open("a") as file:
        file.write(f"{line}\n" * 3)
    done = user.run(*JOIN, image, "sh", "-c", SHOW)
    assert done.stdout.split() == [*one.namespaces], done.stderr


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "open to others"])
def test_what_is_no_record_of_ours(user: User, image: Path, one: Rank, kind: str) -> None:
    path = record(user)
    kept = path.with_name("kept")
    path.rename(kept)
    if kind == "link":
        path.symlink_to(kept)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(kept.read_bytes())
        path.chmod(0o666)
    done = user.run(*JOIN, image, "true", timeout=60)
    assert done.returncode == 125 and path.name in done.stderr
    assert done.stderr.count("udi-run: ") == done.stderr.count("\n")
    path.rmdir() if kind == "directory" else path.unlink()
    kept.rename(path)


def test_a_folder_that_is_not_inside_is_told_once(
    user: User, image: Path, one: Rank, tmp_path: Path
) -> None:
    """And one whose name is no ASCII by Python, in the same words."""
    for name in ("plain", "ä"):
        folder = tmp_path / name
        folder.mkdir()
        done = user.run(*JOIN, image, "pwd", cwd=folder)
        assert done.stdout in ("/\n", f"{folder}\n")
        done = user.run(*JOIN, "--quiet", image, "pwd", cwd=folder)
        assert done.stderr == ""
    done = user.run(*JOIN, f"--workdir={tmp_path}/nowhere", image, "pwd")
    assert done.returncode == 125
    where = f"udi-run: --workdir={tmp_path}/nowhere can't be entered in the container: "
    assert done.stderr.startswith(where + "No such file or directory\nudi-run: hint: ")


def waits(lock: int, kind: str) -> bool:
    """Tell whether a process waits for an open file's flock(2); READ is a shared one."""
    number = f":{os.fstat(lock).st_ino}"
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and kind in line.split() and number in line for line in lines)


def test_those_who_wait_for_the_builder_join_together(user: User, image: Path, one: Rank) -> None:
    """Each alone would come after the end of the first ones, whose container had ended then."""
    path = record(user)
    kept = path.rename(path.with_name("kept"))
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiting = user.popen(*JOIN, image, "true")
    wait_for(lambda: waits(lock, "READ"), 60)
    kept.rename(path)
    # The test holds it on, as another one would who waited.
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert waiting.wait(60) == 0
    os.close(lock)


@pytest.mark.needs("strace")
def test_who_finds_all_members_dead_builds_with_the_lock_that_c_took(
    user: User, image: Path, one: Rank, tmp_path: Path
) -> None:
    """Python tries no join of its own, for which it would let others go first."""
    path = record(user)
    kept = path.with_name("kept")
    data = path.read_bytes()
    path.rename(kept)
    path.touch(mode=0o600)
    path.write_bytes(data.replace(b"\n%d " % one.pid, b"\n4194303 "))
    log = tmp_path / "log"
    words = ("strace", "-y", "-o", log, "-e", "trace=flock,execve", *JOIN, image)
    done = user.run(*words, "sh", "-c", "readlink /proc/self/ns/mnt")
    assert done.returncode == 0 and done.stdout.strip() != one.namespaces[1], done.stderr
    calls = log.read_text().splitlines()
    python = next(
        i for i, line in enumerate(calls) if "udi-run-python" in line or "python3" in line
    )
    taken = [line for line in calls if ".lock>, LOCK_" in line]
    assert [line.partition("LOCK_")[2].partition(")")[0] for line in taken] == [
        "SH|LOCK_NB",
        "EX|LOCK_NB",
    ]
    assert all(calls.index(line) < python for line in taken)
    kept.unlink()
