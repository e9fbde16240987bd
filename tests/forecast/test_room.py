"""What is tried, and its files, end with `udi check`, however that ends: killed at any moment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rootless_udi.forecast import room
from tests.conftest import User
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns")

MOMENTS = {
    "a room is made": "",
    "a process enters": "at('setns', 0, entering=True)",
    "its namespace is made": "at('unshare', 0, entering=True)",
    "the namespace's first process is there": "at('fork', 1, entering=True)",
    "the process that is started is there": "at('fork', 2, entering=True)",
    "it runs": "",
}
"""Moment -> the statement that has the caller killed then."""
PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tree!r})
from rootless_udi.forecast import room
me = os.getpid()

def at(name, number, entering):
    module = os if name == "fork" else room
    plain = getattr(module, name)
    left = [number]
    def counted(*words):
        # After the call, in each process that returns from it.
        done = plain(*words)
        left[0] -= 1
        if left[0] <= 0:
            os.kill(me, signal.SIGKILL)
        return done
    setattr(module, name, counted)

moment = sys.argv[1]
with room.made() as one:
    assert one.keeper
    open(one.path + "/file", "w").close()
    print("keeper", one.keeper, flush=True)
    if moment == "a room is made":
        os.kill(me, signal.SIGKILL)
    if os.fork() == 0:
        {statement}
        room.enter(one.keeper, me, 2)
        assert os.listdir(one.inside) == ["file"]
        if os.fork() == 0:
            os.setsid()
        print("runs", flush=True)
        while True:
            signal.pause()
    signal.pause()
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_left_of_a_room_whose_maker_is_killed(moment: str, tmp_path: Path) -> None:
    """All of them hold standard output, which ends with the last."""
    code = PROGRAM.format(tree=str(TREE), statement=MOMENTS[moment] or "pass")
    argv = [sys.executable, "-c", code, moment]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("keeper ")
        if moment == "it runs":
            assert [process.stdout.readline() for _ in range(2)] == ["runs\n"] * 2
            process.kill()
        process.stdout.read()
        assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_parent_who_has_ended_before_is_missed() -> None:
    child = os.fork()
    if child == 0:
        room._die_with(1 << 22)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.parametrize("sigchld", ["SIG_DFL", "SIG_IGN"])
def test_a_process_in_a_room(sigchld: str, tmp_path: Path) -> None:
    """Its status is told on; what it has started ends with it."""
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(TREE)!r})\n"
        f"signal.signal(signal.SIGCHLD, signal.{sigchld})\n"
        "from rootless_udi.forecast import room\n"
        "with room.made() as one:\n"
        "    signal.signal(signal.SIGCHLD, signal.SIG_DFL)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        f"        signal.signal(signal.SIGCHLD, signal.{sigchld})\n"
        "        room.enter(one.keeper, os.getppid(), 1)\n"
        "        words = 'sleep 1000 & readlink /proc/self; echo $$ $PWD; {}'\n"
        "        os.execv('/bin/sh', ['sh', '-c', words.format(sys.argv[1])])\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        f"    signal.signal(signal.SIGCHLD, signal.{sigchld})\n"
    )
    for end, status in (("exit 7", "7"), ("kill -9 $$", "137")):
        argv = [sys.executable, "-uc", code, end]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        told, itself, numbers, last = done.stdout.splitlines()
        assert int(told) > 10 and int(itself) <= 5, done
        assert (numbers, last) == (f"2 {tmp_path}", status), done


def test_where_no_namespaces_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_words: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("rootless_udi.idmap.userns.enter", refused)
    with room.made() as one:
        assert one.keeper == 0
        assert [str(path) for path in tmp_path.iterdir()] == [one.path]
    assert list(tmp_path.iterdir()) == []


RUNNING = "exec 3>{fifo}; echo here >&3; sleep 1000 & setsid sleep 1000 & wait"


@pytest.mark.needs("fuse", "busybox", "qemu-user")
@pytest.mark.parametrize("how", ["as it is", "under qemu"])
def test_udi_check_killed_while_the_command_runs(
    user: User, box: Path, how: str, tmp_path: Path
) -> None:
    """The command holds a pipe, and so do all that it starts: its end is theirs."""
    fifo, scratch = user.home / "fifo", tmp_path / "scratch"
    os.mkfifo(fifo)
    scratch.mkdir()
    words = RUNNING.format(fifo=fifo)
    if how == "under qemu":
        # The first run, as it is, ends well.
        words = f"if mkdir {user.home}/first; then exit 0; fi; {words}"
    argv = [sys.executable, "-m", "rootless_udi", "check", str(box), "--site=perlmutter-like"]
    env = {**user.env, "TMPDIR": str(scratch), "PYTHONPATH": str(TREE)}
    volume = f"--volume={user.home}:{user.home}"
    process = subprocess.Popen([*argv, volume, "--", "sh", "-c", words], env=env, cwd=user.home)
    try:
        with open(fifo) as file:
            assert file.readline() == "here\n"
            process.kill()
            assert file.read() == ""
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert list(scratch.iterdir()) == []


@pytest.mark.needs("fuse")
def test_no_pid_namespaces(user: User, box: Path) -> None:
    """The limit counts for all user namespaces below the one in which it is set."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(TREE)!r})\n"
        "from rootless_udi.idmap import userns\n"
        "uid, gid = os.getuid(), os.getgid()\n"
        "userns.enter((uid, uid), (gid, gid))\n"
        "open('/proc/sys/user/max_pid_namespaces', 'w').write('0')\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    check = [sys.executable, "-m", "rootless_udi", "check", box, "--site=perlmutter-like"]
    done = user.run(sys.executable, "-c", code, *check, "--", "true", env={"PYTHONPATH": str(TREE)})
    assert done.returncode == 3, done.stderr
    said = " ".join(done.stdout.split())
    assert "a namespace for the command is refused: unshare: No space left on device" in said
