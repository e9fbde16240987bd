"""What udi-run meets when somebody means it ill, or the machine does: each was once a defect."""

import marshal
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base import process
from rootless_udi.bundle import FORMAT
from rootless_udi.node import publish
from rootless_udi.node.record import PAIR, NodeRecord, living
from rootless_udi.plan import environment
from tests.conftest import User
from tests.kit import fuseimages, probes
from tests.kit.nodes import Leftovers, Rank, counted
from tests.kit.places import TREE
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


# Words and names


def test_an_empty_command_is_not_found(user: User, box: Path) -> None:
    done = user.run("udi-run", box, "")
    assert (done.returncode, done.stderr) == (127, "udi-run: the command is an empty word\n")


def test_a_path_to_an_image_may_hold_anything(user: User, box: Path) -> None:
    for name in ("a b.sqfs", "a\nb.sqfs", "a:b,c.sqfs", os.fsdecode(b"a\xffb.sqfs")):
        (user.home / name).symlink_to(box)
        for argv in ((f"./{name}",), ("--share=x", user.home / name), (name,)):
            done = user.run("udi-run", *argv, "echo", "ok")
            assert (done.stdout, done.stderr) == ("ok\n", ""), name


def test_only_a_newline_ends_a_line_of_an_env_file() -> None:
    text = "A=form\ffeed\x85next\u2028line\r\nB=2\n"
    assert environment.of_file(text, "file") == [
        ("set", "A", "form\ffeed\x85next\u2028line"),
        ("set", "B", "2"),
    ]


def test_a_pull_without_a_path_variable(user: User, tmp_path: Path) -> None:
    """Python then does not know where it is itself."""
    layout = tmp_path / "missing"
    layout.mkdir()
    (layout / "index.json").write_text("{}")
    user.env = {"UDI_STORE": user.env["UDI_STORE"]}
    done = user.run(TREE / "bin/udi-run", f"oci:{layout}", "true")
    assert done.returncode == 125 and "Traceback" not in done.stderr
    assert "udi-run: image " in done.stderr and "could not be pulled" in done.stderr


# Standard output


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("--explain", "{box}")])
def test_standard_output_is_closed_full_or_gone(
    user: User, box: Path, words: tuple[str, ...]
) -> None:
    line = " ".join(["udi-run", *words]).format(box=box)
    assert user.run("sh", "-c", f"{line} >&-").stderr == ""
    done = user.run("sh", "-c", f"{line} >/dev/full")
    message = "udi-run: writing to standard output failed: No space left on device\n"
    assert (done.returncode, done.stderr) == (125, message)
    assert user.run("sh", "-c", f"{line} | :").stderr == ""


def test_udi_on_a_full_device_says_so(user: User) -> None:
    done = user.run("sh", "-c", "udi config show >/dev/full")
    message = "udi: writing to standard output failed: No space left on device\n"
    assert (done.returncode, done.stderr) == (125, message)


@pytest.mark.needs("strace")
def test_an_interrupt_at_the_very_start_is_no_traceback(user: User, tmp_path: Path) -> None:
    """While the script looks for our modules, before there is somebody to catch it."""
    log = tmp_path / "log"
    user.run("udi-run", "--help")  # the first in a tree compiles it: calls that no other makes
    user.run("strace", "-o", log, "-e", "trace=newfstatat", "udi-run", "--help")
    count = sum("rootless_udi/" in line for line in log.read_text().splitlines())
    total = len(log.read_text().splitlines()) - 1
    for number in (total - count + 1, total - 2):
        inject = f"inject=newfstatat:signal=INT:when={number}"
        # A shell starts what it puts in the background with SIGINT ignored, perhaps this test too.
        argv = ("strace", "-qq", "-o", "/dev/null", "-e", inject, "udi-run", "--help")
        done = user.run("env", "--default-signal=INT", *argv)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


# Limits, file systems, damaged images


def test_no_memory_at_all_is_no_traceback(user: User, capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise MemoryError

    assert process.guarded("udi-run", body) == 125
    assert capfd.readouterr().err.startswith("udi-run: there is no memory left for it\n")


def modules(bundle: Path) -> object:
    """Return what a bundle holds, to be compared: which strings are interned differs by process."""
    data = bundle.read_bytes()
    form, boot, table, groups, elsewhere = marshal.loads(data)
    parts = [[marshal.loads(data[at:]) for at in places] for places in groups]
    return form, boot, table, parts, elsewhere


def test_a_damaged_bundle_is_left_aside_and_written_anew(user: User, box: Path) -> None:
    prefix = user.home / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TREE / "rootless_udi", prefix / "rootless_udi", ignore=ignored)
    (prefix / "bin").mkdir()
    shutil.copy(TREE / "bin/udi-run", prefix / "bin")
    (prefix / "rootless_udi/__pycache__").mkdir()
    argv = (prefix / "bin/udi-run", box, "echo", "ok")
    assert user.run(*argv).stdout == "ok\n"
    bundles = sorted((prefix / "rootless_udi/__pycache__").glob("udi-*.bundle"))
    assert [one.name.partition(".")[0] for one in bundles] == ["udi-image", "udi-run", "udi-start"]
    odd = marshal.dumps((FORMAT, "boot = None", {}, (), {}))
    old = marshal.dumps((FORMAT - 1, "boot = None", {}, (), {}))
    # A start by this script does not read udi-image: see tests/joiner/test_known.py.
    for bundle in bundles[1:]:
        whole, sound = bundle.read_bytes(), modules(bundle)
        for content in (
            b"",
            whole[:1000],
            whole[:-1000],
            whole[:-1],
            b"\0" * 100,
            marshal.dumps(5),
            odd,
            old,
        ):
            bundle.write_bytes(content)
            done = user.run(*argv)
            assert (done.stdout, done.stderr) == ("ok\n", "")
            assert modules(bundle) == sound
        bundle.unlink()
        assert user.run(*argv).stdout == "ok\n"
        assert modules(bundle) == sound
    for bundle in bundles:
        bundle.unlink()
    # No start needs this module, and without it no bundle can be made.
    (prefix / "rootless_udi/shifter/options.py").unlink()
    done = user.run(*argv)
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize(
    ("limit", "why"),
    [("nproc", "starting a process failed: "), ("fsize", "writing /etc/passwd failed: ")],
)
def test_a_limit_is_named(user: User, box: Path, limit: str, why: str) -> None:
    done = user.run("prlimit", f"--{limit}=1", "udi-run", box, "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"udi-run: {why}")
    assert f"(ulimit -{limit[0].replace('n', 'u')}" in done.stderr


@pytest.mark.parametrize("server", ["udi", "squashfuse_ll"])
def test_an_image_whose_root_can_t_be_read(user: User, box: Path, server: str) -> None:
    if server != "udi":
        probes.need("squashfuse")
    damaged = user.home / "damaged.sqfs"
    damaged.write_bytes(box.read_bytes()[:96] + fuseimages.noise(box.stat().st_size - 96))
    done = user.run("udi-run", f"--fuse={server}", damaged, "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"udi-run: serving {damaged} failed: ")
    assert "udi-run: hint: check the file with unsquashfs" in done.stderr


def test_the_hosts_own_root_as_an_image(user: User) -> None:
    """The kernel lays no overlay over a tree with other mounts in it: asked for by name it is
    refused, and else needed for nothing here."""
    done = user.run("udi-run", "--layer=overlay", "/", "true")
    assert done.returncode == 125
    assert "udi-run: an overlay over / is needed (" in done.stderr
    assert "and can't be mounted: " in done.stderr
    done = user.run("udi-run", "/", "touch", "/etc/made", "/usr/made")
    assert done.returncode == 1
    assert done.stderr.count("Read-only file system") == 2


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ("", "not JSON"),
        ('{"version": 1, "env": 5}', "its env is not what udi pull writes"),
        ('{"version": 1, "entrypoint": [5]}', "its entrypoint is not what udi pull writes"),
        ('{"version": 1, "workdir": ["/"]}', "its workdir is not what udi pull writes"),
        ('{"version": 1, "cmd": ["\\u0000"]}', "its cmd holds a NUL character"),
        ('{"version": 1, "cmd": ["\\ud800"]}', "surrogates not allowed"),
    ],
)
def test_facts_that_are_none(user: User, box: Path, facts: str, why: str) -> None:
    (user.home / "one.sqfs").symlink_to(box)
    (user.home / "one.json").write_text(facts)
    done = user.run("udi-run", "./one.sqfs", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"udi-run: reading {user.home}/one.json failed: ")
    assert why in done.stderr and "udi pull --force" in done.stderr


# The state directory


def test_no_umask_locks_the_ranks_out(user: User, box: Path, left: Leftovers) -> None:
    words = ("sh", "-c", 'umask 777; exec "$@"', "sh", "udi-run", "--share=job", box)
    first = Rank(user, *words).ready()
    second = Rank(user, *words).ready()
    assert first.namespaces == second.namespaces
    assert str(box) in user.run("udi", "ps").stdout
    assert first.end()[0] == second.end()[0] == 0


def test_a_runtime_directory_with_too_long_a_name_is_passed_over(
    user: User, box: Path, left: Leftovers
) -> None:
    env = {"XDG_RUNTIME_DIR": "/" + "x" * 300}
    done = user.run("udi-run", "--share=long", box, "true", env=env)
    assert (done.returncode, done.stderr) == (0, "")


# Records


def place(user: User, box: Path, left: Leftovers) -> Path:
    """Return where the record of --share=job lies."""
    done = user.run("udi-run", "--share=job", box, "ls", user.home / "run/rootless_udi")
    assert done.returncode == 0, done.stderr
    left.check()
    name = next(name for name in done.stdout.split() if not name.endswith(PAIR))
    return user.home / "run/rootless_udi" / name


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_what_is_no_record_is_named(user: User, box: Path, left: Leftovers, kind: str) -> None:
    path = place(user, box, left)
    path.symlink_to("/etc/passwd") if kind == "link" else path.mkdir()
    done = user.run("udi-run", "--share=job", box, "true")
    assert done.returncode == 125
    where = f"the record {path.name} in the state directory {path.parent} failed: "
    assert f"udi-run: reading {where}" in done.stderr
    done = user.run("udi", "ps")
    assert (done.returncode, done.stderr) == (0, "no container of yours is on this node\n")
    path.unlink() if kind == "link" else path.rmdir()


def test_a_record_without_numbers_is_listed(user: User, box: Path, left: Leftovers) -> None:
    path = place(user, box, left)
    start = process.started(os.getpid())
    pairs = (*SPACES, ("server", "x"), ("started", "x"), ("image", "odd"))
    path.write_bytes(publish.content(pairs, b"%d %d\n" % (os.getpid(), start)))
    done = user.run("udi", "ps")
    assert (done.returncode, done.stderr) == (0, "") and "odd" in done.stdout
    path.unlink()


SPACES = (("user", "1"), ("mnt", "1"))


@pytest.mark.parametrize("field", [("before", "x"), ("after", "set\0X"), ("after", "do\0X\0y")])
def test_a_record_with_half_an_operation_is_none(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        NodeRecord(publish.content((*SPACES, field), b"1 2\n"))


def test_members_are_read_from_the_end_and_torn_lines_passed_over() -> None:
    tail = "1 2\n\n3\n4 x\nx 5\n-6 7\n8 0\n9 10\n11 12"
    record = NodeRecord(publish.content(SPACES, tail.encode()))
    assert [*record.newest()] == [(11, 12), (9, 10), (1, 2)]
    assert living(record) == []


def test_udi_run_inside_the_container_that_it_would_join(user: User, left: Leftovers) -> None:
    """A wrapper script of a rank, itself in the container, calls udi-run once more."""
    tree = user.home / "tree"
    (tree / "usr").mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    argv = ["udi-run", "--share=job", "--volume=/usr:/usr", f"--volume={TREE}:{TREE}", tree]
    inner = [TREE / "bin/udi-run", *argv[1:], "readlink", "/proc/self/ns/mnt"]
    words = " ".join(map(str, inner))
    outer = user.run(*argv, "sh", "-c", f"readlink /proc/self/ns/mnt; {words}")
    assert outer.returncode == 0, outer.stderr
    first, second = outer.stdout.split()
    assert first == second


def test_helper_and_image_server_are_killed(user: User, box: Path, left: Leftovers) -> None:
    """As by a user's own `pkill udi-`, or for memory: nobody is left to note it in the record."""
    old = Rank(user, "udi-run", "--share=job", box).ready()
    outside = set(left.processes()) - {old.pid}
    # First stopped: a helper that saw its server's end would note it.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in outside:
            os.kill(pid, number)
    wait_for(lambda: not outside & set(left.processes()))
    done = user.run("udi-run", "--share=job", box, "echo", "new")
    assert (done.returncode, done.stdout) == (0, "new\n"), done.stderr
    assert "has lost its image server (it has ended); starting a new one" in done.stderr
    old.kill()
    # Whose helper was killed leaves the pair's file, which the next start removes.
    assert user.run("udi-run", "--share=job", box, "true").returncode == 0


def test_workers_that_can_not_be_started(user: User, tmp_path: Path) -> None:
    """At a limit of processes the asking thread does all the work; nobody waits for nobody."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); "
        "from rootless_udi.fuse.workers import Workers; "
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); "
        "one = Workers(2); one.ask(print, 'job'); one.wait('job'); one.close(); print('over')"
    )
    done = user.run(sys.executable, "-c", code, TREE)
    assert done.stdout.splitlines()[-1] == "over", done.stderr


def test_a_profile_that_can_not_be_written(user: User, box: Path) -> None:
    done = user.run("udi-run", "--trace=/proc/nowhere/x", box, "true")
    assert done.returncode == 125 and "writing the profile" in done.stderr
