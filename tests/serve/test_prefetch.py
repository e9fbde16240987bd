"""What a start asked is kept on the node, and asked by another process at the next start."""

import os
import re
import signal
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.digest import digest
from rootless_udi.base.superblock import ASKS
from rootless_udi.base.syscalls import is_local
from rootless_udi.fuse import protocol, recorder
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.reader import Reader
from rootless_udi.node.sweep import sweep
from rootless_udi.serve import prefetch
from tests.conftest import User
from tests.fuse.test_mount import counted
from tests.kit import fuseimages, images
from tests.kit.calls import calls_of
from tests.kit.fusemount import Mount, ours
from tests.kit.places import PROGRAMS, TREE
from tests.kit.rangeserver import serving
from tests.launch.test_run import wait_for

Question = tuple[str, bytes, int, int]
Asked = dict[str, list[Question]]
RUNS = pytest.mark.needs("userns", "fuse", "busybox")
MANY = "for n in $(seq 150); do test -e /absent$n; done; cat /etc/passwd >/dev/null"
"""A start that asks enough to be kept."""

PATHS = st.binary(max_size=300).filter(lambda path: b"\0" not in path)
SIZES = st.integers(0, prefetch.BYTES // 50)
QUESTIONS = st.one_of(
    st.tuples(st.sampled_from("sdl"), PATHS, st.just(0), st.just(0)),
    st.tuples(st.just("r"), PATHS, st.integers(0, 10**17), SIZES),
)


@given(st.lists(QUESTIONS, max_size=50))
def test_what_is_packed_is_unpacked(questions: list[Question]) -> None:
    assert prefetch.unpack(prefetch.pack(questions)) == questions


@given(st.binary(max_size=200))
def test_what_is_no_file_of_questions_is_refused(rest: bytes) -> None:
    try:
        found = prefetch.unpack(prefetch.HEAD + b"\0" + rest)
    except ValueError:
        return
    again = prefetch.unpack(prefetch.pack(found))
    assert again == found


@pytest.mark.parametrize(
    "data",
    (
        b"",
        b"udi start 2\0s a\0",
        prefetch.HEAD,
        prefetch.HEAD + b"\0s a",
        prefetch.HEAD + b"\0x a\0",
        prefetch.HEAD + b"\0r 1 a\0",
        prefetch.HEAD + b"\0r -1 5 a\0",
        prefetch.HEAD + b"\0r 1 " + b"9" * 30 + b" a\0",
        prefetch.HEAD + b"\0r 0 9999999 a" * 7 + b"\0",
    ),
)
def test_damaged_files(data: bytes) -> None:
    with pytest.raises(ValueError):
        prefetch.unpack(data)


def test_a_file_holds_what_it_may() -> None:
    data = prefetch.pack([("s", b"%d" % n + b"n" * 1000, 0, 0) for n in range(1000)])
    assert len(data) <= prefetch.LARGEST
    assert 200 < len(prefetch.unpack(data)) < 262


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_ranges_are_united(parts: list[tuple[int, int]]) -> None:
    ranges = [(start, start + size) for start, size in parts]
    found = recorder._united(ranges)
    assert {n for a, b in found for n in range(a, b)} == {n for a, b in ranges for n in range(a, b)}
    assert all(a[1] < b[0] for a, b in pairwise(found))


@pytest.mark.needs("mksquashfs")
def test_messages_become_questions_by_path(tmp_path: Path) -> None:
    """Of what was looked up, and of what a listing alone has named."""
    deep = "/".join(["n" * 250] * 17)
    tree: list[images.Entry] = [
        ("d", None, {}),
        ("d/sub", None, {}),
        ("d/sub/file", b"x" * 9000, {}),
        ("link", "d", {}),
        (f"{deep}/file", b"y", {}),
    ]
    image = fuseimages.mksquashfs(images.tar(tree), tmp_path / "i")
    fs = FileSystem(Reader(os.open(image, os.O_RDONLY), "i"))
    listed = fs.lookup(ROOT, b"d")
    sub = fs.lookup(listed, b"sub")
    file = fs.lookup(sub, b"file")
    link = fs.lookup(ROOT, b"link")
    node, chain = ROOT, []
    for name in [*deep.encode().split(b"/"), b"file"]:
        chain.append((protocol.LOOKUP, node, name + b"\0"))
        node = fs.lookup(node, name)

    def read(node: int, offset: int, size: int) -> tuple[int, int, bytes]:
        return protocol.READ_OP, node, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)

    found = recorder.questions(
        fs,
        [
            (protocol.LOOKUP, ROOT, b"absent\0"),
            (protocol.LOOKUP, ROOT, b"n" * 300 + b"\0"),
            (protocol.READDIRPLUS, ROOT, b""),
            (protocol.READDIR, ROOT, b""),
            (protocol.READLINK, link, b""),
            (protocol.READDIRPLUS, listed, b""),
            read(file, 4096, 4096),  # whose folder is not yet known by name
            (protocol.LOOKUP, sub, b"file\0"),
            read(file, 0, 4096),
            read(file, 1 << 20, 4096),
            read(file, 2 << 20, 65 << 20),
            read(12345, 0, 4096),
            *chain,
            read(node, 0, 4096),
        ],
    )
    assert found[: 2 + 6] == [
        ("s", b"absent", 0, 0),
        ("s", b"n" * 300, 0, 0),
        ("d", b"", 0, 0),
        ("l", b"link", 0, 0),
        ("d", b"d", 0, 0),
        ("r", b"d/sub/file", 0, 8192),
        ("r", b"d/sub/file", 1 << 20, 4096),
        ("r", b"d/sub/file", 2 << 20, 65 << 20),
    ]
    assert found.pop(8) == ("s", b"d/sub/file", 0, 0)
    assert ("r", b"d/sub/file", 2 << 20, 65 << 20) not in prefetch.unpack(prefetch.pack(found))
    # Of those that are deep, the last that can be asked for.
    assert found[8:] == [("s", "/".join(["n" * 250] * n).encode(), 0, 0) for n in range(1, 18)]
    fs.close()


class Node:
    """A state directory."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"XDG_RUNTIME_DIR": str(folder)}
        self.state = folder / "rootless_udi"
        self.state.mkdir(mode=0o700)
        self.folder = self.state / "starts"

    def keep(self, name: str = "a", count: int = 200) -> bool:
        found: list[Question] = [("s", b"%d" % n, 0, 0) for n in range(count)]
        return prefetch.keep(self.environ, os.getuid(), name, found)

    def find(self, name: str = "a") -> int:
        return len(prefetch.find(str(self.folder / name)))


@pytest.fixture
def place(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_kept_is_found_and_private(place: Node) -> None:
    assert place.keep("a") and place.keep("b", 300)
    assert (place.find("a"), place.find("b"), place.find("c")) == (200, 300, 0)
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.folder.iterdir()} == {0o600}
    assert place.keep("a", 5) and place.find("a") == 5


def test_no_more_files_than_a_number(place: Node) -> None:
    for n in range(prefetch.FILES + 5):
        assert place.keep(str(n))
        os.utime(place.folder / str(n), (n, n))
        if n == 2:
            (place.folder / "9.123").touch()
            os.utime(place.folder / "9.123", (0, 0))
    assert len(list(place.folder.iterdir())) == prefetch.FILES
    assert place.keep("new") and place.find("new") and place.find(str(prefetch.FILES))
    assert not place.find("3") and not (place.folder / "9.123").exists()


@pytest.mark.parametrize("trouble", ("damaged", "large", "link", "pipe", "directory", "empty"))
def test_what_can_not_be_used_is_as_if_it_were_not_there(place: Node, trouble: str) -> None:
    assert place.keep()
    (path,) = place.folder.iterdir()
    if trouble == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif trouble == "empty":
        path.write_bytes(b"")
    elif trouble == "large":
        path.write_bytes(path.read_bytes() * 1000)
    else:
        path.rename(place.state / "elsewhere")
    if trouble == "link":
        path.symlink_to(place.state / "elsewhere")
    elif trouble == "pipe":
        os.mkfifo(path)
    elif trouble == "directory":
        path.mkdir()
    assert place.find() == 0
    assert path.exists() is (trouble in ("link", "directory"))
    if trouble != "directory":
        assert place.keep() and place.find() == 200


def test_sweeping_leaves_them(place: Node) -> None:
    assert place.keep()
    fd = os.open(place.state, os.O_RDONLY | os.O_DIRECTORY)
    assert sweep(fd) == []
    os.close(fd)
    assert place.find() == 200


def kept(user: User) -> list[Path]:
    return sorted((user.home / "run/rootless_udi/starts").glob("[0-9a-f]" * 32))


@RUNS
def test_the_second_start_finds_its_answers(user: User, box: Path, tmp_path: Path) -> None:
    """A process of the mount's user namespace asks, confined to the image."""
    # What is asked ahead ends with the container.
    many = f"{MANY}; read x"
    assert user.run("udi-run", box, "sh", "-c", many, input="\n").returncode == 0
    wait_for(lambda: kept(user))
    (file,) = kept(user)
    found = prefetch.unpack(file.read_bytes())
    asked = {path for kind, path, _, _ in found if kind == "s"}
    assert {b"absent%d" % n for n in range(1, 151)} < asked
    assert [path for kind, path, _, _ in found if kind == "r"].count(b"bin/busybox") >= 1
    before = file.stat()
    log = tmp_path / "log"
    calls = "trace=setns,chroot,execve,exit_group,/stat"
    words = ("strace", "-f", "-e", calls, "-o", log, "udi-run", box, "sh", "-c", many)
    one = user.popen(*words, stdin=subprocess.PIPE)

    def asking() -> list[str]:
        """Return what the process that asks has done, [] before there is one."""
        lines = calls_of(log)
        pid = next((pid for pid, line in lines if 'chroot("."' in line), 0)
        return [line for one, line in lines if one == pid]

    wait_for(lambda: asking()[-1:] == ["+++ exited with 0 +++"])
    one.communicate("\n", timeout=120)
    assert one.returncode == 0
    mine = [line for line in asking() if re.match(r"(setns|chroot|newfstatat|lstat|\+)", line)]
    stats = [line for line in mine if "absent" in line]
    assert len(stats) == 150
    assert mine.index(stats[0]) > next(n for n, x in enumerate(mine) if x.startswith("chroot"))
    assert mine[-1] == "+++ exited with 0 +++"
    assert kept(user) == [file] and file.stat().st_mtime_ns == before.st_mtime_ns
    assert str(box) not in user.run("udi", "ps").stdout


@RUNS
@pytest.mark.needs("strace")
def test_without_an_overlay_nothing_is_asked_of_what_is_mounted(
    user: User, box: Path, tmp_path: Path
) -> None:
    """The mounts of the plan are on the image's own then, the host's /tmp for one."""
    assert tmp_path.is_relative_to("/tmp")
    (tmp_path / "mine").write_text("")
    command = f"until test -e {tmp_path}/go; do :; done"
    status = box.stat()
    key = digest(f"sh\0{command}".encode())
    facts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, key
    many = [("s", os.fsencode(tmp_path / "mine")[1:], 0, 0), ("d", b"bin", 0, 0)] * 300
    (user.home / "run/rootless_udi").mkdir(mode=0o700)
    assert prefetch.keep(user.env, user.uid, digest(repr(facts).encode()), many)
    log = tmp_path / "log"
    words = ["strace", "-f", "-e", "trace=unshare,chroot,/stat,exit_group", "-o", log]
    # The second one leaves the namespace that has these mounts.
    words += ["-e", "inject=unshare:delay_enter=200ms:when=2", sys.executable]
    one = user.popen(*words, PROGRAMS / "oldkernel.py", box, "sh", "-c", command, cwd="/")

    def asked() -> list[str]:
        lines = calls_of(log)
        ahead = {pid for pid, line in lines if 'chroot("."' in line}
        return [line for pid, line in lines if pid in ahead]

    try:
        wait_for(lambda: any("exited" in line for line in asked()))
    finally:
        (tmp_path / "go").write_text("")
    assert one.wait(60) == 0
    answers = [line for line in asked() if f'{tmp_path}/mine"'[1:] in line]
    assert len(answers) == 300
    assert not any(line.endswith("= 0") for line in answers)


@RUNS
def test_a_start_goes_by_image_and_command(user: User, box: Path, tmp_path: Path) -> None:
    """And by when it was: after a week a start is noted anew."""
    mine = tmp_path / "mine.sqfs"
    mine.write_bytes(box.read_bytes())

    def count(*words: object, env: dict[str, str] | None = None) -> int:
        done = user.run("udi-run", *words, env=env)
        assert done.returncode == 0, done.stderr
        # The record goes after the notes have been kept.
        state = user.home / "run/rootless_udi"
        wait_for(lambda: not [name for name in os.listdir(state) if name != "starts"])
        return len(kept(user))

    assert count(mine, "sh", "-c", MANY) == 1
    assert count(mine, "sh", "-u", "-c", MANY, "word", "more") == 1
    assert count(mine, "/bin/sh", "-c", MANY) == 2
    assert count(mine, "sh", "-c", MANY + " ") == 3
    assert count("--entrypoint=sh", mine, "-c", MANY) == 3
    mine.write_bytes(box.read_bytes())
    assert count(mine, "sh", "-c", MANY) == 4
    for path in kept(user):
        os.utime(path, (1e9, 1e9))
    assert count(mine, "sh", "-c", MANY) == 4
    assert sum(path.stat().st_mtime > 1.1e9 for path in kept(user)) == 1


@RUNS
def test_they_are_kept_while_the_container_lives(user: User, box: Path) -> None:
    """A batch system may kill the server with the job: what was quiet for a while is over."""
    script = f"{MANY}; echo up; read x"
    one = user.popen("udi-run", box, "sh", "-c", script, stdin=-1, stdout=subprocess.PIPE)
    assert one.stdout is not None and one.stdout.readline() == "up\n"
    wait_for(lambda: kept(user))
    assert one.poll() is None
    one.communicate("\n", timeout=120)


@RUNS
def test_small_and_profiled_starts_leave_nothing(user: User, box: Path) -> None:
    assert user.run("udi-run", box, "true").returncode == 0
    done = user.run("udi", "profile", "-o", user.home / "p", box, "--", "sh", "-c", MANY)
    assert done.returncode == 0, done.stderr
    state = user.home / "run/rootless_udi"
    wait_for(lambda: not [path for path in state.iterdir() if path.name != "starts"])
    assert not kept(user)
    assert user.run("udi-run", box, "sh", "-c", MANY).returncode == 0
    wait_for(lambda: kept(user))
    plain = (user.home / "p").read_text()
    done = user.run("udi", "profile", "-o", user.home / "p", box, "--", "sh", "-c", MANY)
    assert done.returncode == 0, done.stderr
    lines = [line.split(",", 1)[1] for line in (user.home / "p").read_text().splitlines()[1:]]
    assert lines == [line.split(",", 1)[1] for line in plain.splitlines()[1:]]


@RUNS
def test_damaged_questions_cost_a_start_nothing(user: User, box: Path) -> None:
    assert user.run("udi-run", box, "sh", "-c", MANY).returncode == 0
    wait_for(lambda: kept(user))
    (file,) = kept(user)
    strange: list[Question] = [
        ("s", b"../../../../etc", 0, 0),
        ("d", b"/", 0, 0),
        ("d", b"bin/busybox", 0, 0),
        ("l", b"", 0, 0),
        ("r", b"bin", 10**17, 4096),
        ("r", b"etc/absent", 0, 4096),
        ("r", b"bin/busybox", 1 << 40, 1 << 20),
        ("s", b"n" * 5000, 0, 0),
    ]
    for data in (prefetch.pack(strange * 30), prefetch.HEAD, fuseimages.noise(9999), b""):
        file.write_bytes(data)
        done = user.run("udi-run", box, "sh", "-c", "echo well; #" + MANY)
        assert (done.stdout, done.stderr) == ("well\n", "")


KEYS = ["1" * 32, "2" * 32, "3" * 32]


@given(st.dictionaries(st.sampled_from(KEYS), st.lists(QUESTIONS, max_size=9)))
def test_what_is_behind_an_image(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> None:
    path = tmp_path_factory.getbasetemp() / "image"
    tail = prefetch.tail(asked)
    path.write_bytes(b"hsqs" * 1024 + tail)
    assert len(tail) % 4096 == 0 and bool(tail) is bool(asked)
    for key in KEYS:
        assert prefetch.behind(str(path), key) == asked.get(key, [])


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1))
def test_a_damaged_end_of_an_image(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "image"
    for size in (length, length % 200, len(data) + 16):
        path.write_bytes(data + ASKS + size.to_bytes(8, "little"))
        assert prefetch.behind(str(path), KEYS[0]) == []
    assert prefetch.behind(str(path.parent / "none"), KEYS[0]) == []


@pytest.mark.parametrize("cut", (1, 16, 17, 3000, 4000))
def test_a_cut_end_of_an_image(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "image"
    questions: list[Question] = [("s", b"name", 0, 0)]
    whole = prefetch.tail({KEYS[0]: questions})
    path.write_bytes(b"image" + whole)
    assert prefetch.behind(str(path), KEYS[0]) == questions
    path.write_bytes(b"image" + whole[:-cut])
    assert prefetch.behind(str(path), KEYS[0]) == []
    path.write_bytes(b"image" + whole[cut:])
    assert prefetch.behind(str(path), KEYS[0]) == []


@pytest.mark.parametrize("what", ["sparse", "short", "long"])
def test_an_end_without_end(tmp_path: Path, what: str) -> None:
    """A tail of 1 TiB: of zeros, of starts of one byte each, of starts that are too long."""
    path, size = tmp_path / "image", 1 << 40
    length = {"sparse": 0, "short": 1, "long": prefetch.LARGEST + 1}[what]
    with open(path, "wb") as out:
        if length:
            out.write((b"x" * 32 + length.to_bytes(4, "little") + b"y" * min(length, 1)) * 5000)
        out.truncate(size)
        out.seek(size - 16)
        out.write(ASKS + size.to_bytes(8, "little"))
    assert prefetch.behind(str(path), KEYS[0]) == []


def test_a_file_that_can_not_take_its_name_goes(place: Node) -> None:
    assert place.keep("b")
    (place.folder / "a").mkdir()
    assert not place.keep("a")
    assert sorted(path.name for path in place.folder.iterdir()) == ["a", "b"]


def test_only_a_nodes_own_file_system_is_written_to(tmp_path: Path) -> None:
    for path, own in ((tmp_path, True), (Path("/proc/self"), False), (Path("/sys"), False)):
        fd = os.open(path, os.O_RDONLY)
        assert is_local(fd) is own, path
        os.close(fd)


@RUNS
def test_an_optimised_image_knows_its_start(user: User, box: Path, tmp_path: Path) -> None:
    """The first one on a node, of the command that was profiled; the node's own notes come next."""
    # What is asked ahead ends with the container.
    many = f"{MANY}; read x"
    traced, target = user.home / "p", user.home / "new.sqfs"
    done = user.run("udi", "profile", "-o", traced, box, "--", "sh", "-c", many, input="\n")
    assert done.returncode == 0, done.stderr
    done = user.run("udi", "optimize", "-o", target, box, traced)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size % 4096 == 0

    def asked(count: int, *command: object, image: object = target) -> bool:
        """Tell whether a start asks so many ahead."""
        log = tmp_path / "log"
        words = ("strace", "-f", "-e", "trace=chroot,/stat", "-o", log, "udi-run", image)
        one = user.popen(*words, *command, stdin=subprocess.PIPE)

        def found() -> list[str]:
            lines = calls_of(log)
            asking = {pid for pid, line in lines if 'chroot("."' in line}
            return [line for pid, line in lines if pid in asking and "absent" in line]

        wait_for(lambda: len(found()) >= count)
        one.communicate("\n", timeout=120)
        assert one.returncode == 0
        count_then = len(found())
        log.unlink()
        return count_then == count

    assert asked(0, "true")
    assert asked(0, "sh", "-c", "true #" + many)
    assert not kept(user)
    assert asked(150, "sh", "-c", many)
    wait_for(lambda: kept(user))
    (file,) = kept(user)
    file.write_bytes(prefetch.pack([("s", b"absent", 0, 0)]))
    assert asked(1, "sh", "-c", many)
    with serving(target.read_bytes()) as server:
        assert asked(150, "sh", "-c", many, image=server.url)
    # One that was optimised for a profile without a key.
    traced.write_text("udi profile 1\n" + traced.read_text().split("\n", 1)[1])
    done = user.run("udi", "optimize", "-o", target, box, traced)
    assert done.returncode == 0, done.stderr
    assert asked(0, "sh", "-c", many)


@pytest.mark.needs("userns", "fuse", "mksquashfs")
def test_asking_a_server_that_is_gone_ends(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(images.tar([("a", b"a", {})]), tmp_path / "i")
    one = Mount(ours(), image, tmp_path / "m")
    one.server.send_signal(signal.SIGKILL)
    one.server.wait()
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
from rootless_udi.serve import prefetch as starts
def many():
    for n in range(1000):
        yield "s", os.fsencode(sys.argv[1]) + b"/%d" % n, 0, 0
    print("asked all")
starts.ask(many(), starts.over(None))
"""
    done = one.run(sys.executable, "-IS", "-c", code, one.point, TREE)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
    one.close()


@pytest.mark.needs("userns", "fuse", "tar2sqfs", "mmdebstrap")
def test_what_was_asked_ahead_is_not_asked_again(user: User, tmp_path: Path) -> None:
    """Of an import of numpy: 800 messages without."""
    image = fuseimages.from_cache(images.debian_root("bookworm", ("python3-numpy",)), "fuse")
    numpy = ("/usr/bin/python3", "-c", "import numpy; print(numpy.arange(3).sum())")
    done = user.run("udi-run", image, *numpy)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    wait_for(lambda: kept(user))
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rootless_udi.serve import prefetch as starts
with open(sys.argv[2], "rb") as file:
    questions = starts.unpack(file.read())
os.chroot(sys.argv[3])
os.chdir("/")
starts.ask(questions, starts.over(None))
# Until none of the pages is under way any more: they were asked for without waiting.
for kind, path, offset, length in questions:
    if kind == "r":
        with open(path, "rb", buffering=0) as file:
            os.pread(file.fileno(), length, offset)
print(len(questions))
"""
    path = tmp_path / "counts"
    with Mount(ours("raw", f"--counts={path}"), image, tmp_path / "m", overlay=True) as one:
        rooted = ("unshare", "--user", "--map-root-user")
        words = (sys.executable, "-IS", "-c", code, TREE, *kept(user), one.point)
        done = one.run(*rooted, *words)
        assert done.returncode == 0 and int(done.stdout) > 300, done.stderr

        def counts() -> dict[str, int]:
            path.unlink(missing_ok=True)
            one.server.send_signal(signal.SIGUSR1)
            wait_for(path.exists)
            return counted(path)

        first = counts()
        done = one.run(*rooted, "--root", one.point, *numpy)
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
        second = counts()
    more = {name: n - first.get(name, 0) for name, n in second.items() if n != first.get(name, 0)}
    assert first["READ"] > 50 and first["LOOKUP"] > 100
    assert more.get("LOOKUP", 0) + more.get("READLINK", 0) + more.get("READDIR", 0) < 30, more
    assert more.get("READ", 0) < 30, more
