"""A container through which thousands of short commands have passed is joined like a new one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.process import started
from rootless_udi.node.record import LONG, NodeRecord, join, living
from tests.conftest import User
from tests.kit.nodes import Leftovers, Rank, busybox, counted

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

JOIN = ("udi-run", "--share=job")
GONE = b"4194303 5\n"
"""A member that has ended: no process has this id, pid_max being 4194304 at most."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def record(user: User) -> Path:
    (path,) = Path(user.env["XDG_RUNTIME_DIR"], "rootless_udi").glob("*.2")
    return path


def add(path: Path, lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(lines)


def members(path: Path) -> list[int]:
    return living(NodeRecord(path.read_bytes()))


@pytest.mark.needs("strace")
def test_a_member_among_thousands_that_have_ended(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    """In C; and who joins through one in their midst makes it the last for the next one."""
    first = Rank(user, *JOIN, image).ready()
    log = tmp_path / "log"
    many = GONE * (LONG // len(GONE) // 3)
    add(record(user), many)
    assert user.run("strace", "-o", log, *JOIN, image, "true").returncode == 0
    assert ("python3" in log.read_text()) == ("joiner" not in user.env["PATH"])
    second = Rank(user, *JOIN, image).ready()
    add(record(user), many)
    first.end()
    third = Rank(user, *JOIN, image).ready()
    assert third.namespaces == second.namespaces
    me = b"%d %d\n" % (second.process.pid, started(second.process.pid))
    assert record(user).read_bytes().endswith(me)
    second.end(), third.end()


def test_a_long_record_is_written_anew(user: User, image: Path, left: Leftovers) -> None:
    """By one of the ranks that come at once; all of them are in it, as those who were there."""
    first = Rank(user, *JOIN, image).ready()
    path = record(user)
    before = path.read_bytes()
    add(path, b"told 7\n" + GONE * (LONG // len(GONE)))
    ranks = [Rank(user, *JOIN, image) for _ in range(8)]
    for rank in ranks:
        assert rank.ready().namespaces == first.namespaces
    data = path.read_bytes()
    assert len(data) < len(before) + 9 * 60 and b"\ntold\n" in data
    assert NodeRecord(data).lists == NodeRecord(before).lists
    assert {*members(path)} == {one.process.pid for one in (first, *ranks)}
    for one in (first, *ranks):
        assert one.end()[0] == 0


def test_a_long_record_stays_where_it_can_not_be_written(
    user: User, image: Path, left: Leftovers
) -> None:
    first = Rank(user, *JOIN, image).ready()
    path = record(user)
    add(path, GONE * (LONG // len(GONE)))
    new = path.with_suffix(".new")
    new.mkdir()
    second = Rank(user, *JOIN, image).ready()
    assert second.namespaces == first.namespaces
    assert path.stat().st_size > LONG
    new.rmdir()
    first.end(), second.end()


def test_nobody_enters_by_a_file_that_was_replaced(tmp_path: Path) -> None:
    """The others would not find him. He looks for the record once more."""
    path = tmp_path / "record"
    me = f"{os.getpid()} {started(os.getpid())}\n"
    spaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("user", "mnt")]
    head = "".join(
        f"{len(f)}:{f}\n" for f in (f"user={spaces[0]}", f"mnt={spaces[1]}", "request=x")
    )
    path.write_text(f"udi 2 {len(head)}\n{head}{me}")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    path.unlink()
    assert not join(NodeRecord(os.pread(fd, 4096, 0)), fd)
    os.close(fd)
