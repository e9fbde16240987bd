"""The kernel's side of the protocol, old and new, played over a socket pair: versions we lack here.

Layouts are written out again from linux/fuse.h, not taken from the server's own tables.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.fuse.filesystem import FileSystem
from rootless_udi.fuse.raw_transport import Server
from rootless_udi.fuse.reader import Reader
from tests.kit import fuseimages, images

pytestmark = pytest.mark.needs("mksquashfs")

ENOSYS, EPROTO, ENOENT, EIO, ERANGE, ENODATA = 38, 71, 2, 5, 34, 61


class Kernel:
    """Sends requests to a Server in a thread and reads its answers."""

    def __init__(self, image: Path) -> None:
        self.log: list[str] = []
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(60)
        fd = os.open(image, os.O_RDONLY)
        server = Server(FileSystem(Reader(fd, "image")), self.log.append)
        server.fd = theirs.fileno()

        def serve() -> None:
            server.run()
            theirs.close()
            os.close(fd)

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        self._unique = 0

    def send(self, opcode: int, node: int, body: bytes = b"") -> None:
        self._unique += 2
        head = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._unique, node, 0, 0, 1, 0, 0)
        self.ours.send(head + body)

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """Return (errno, body) of the answer."""
        self.send(opcode, node, body)
        answer = self.ours.recv(1 << 21)
        length, error, unique = struct.unpack_from("=IiQ", answer)
        assert (length, unique) == (len(answer), self._unique)
        return -error, answer[16:]

    def close(self) -> None:
        self.ours.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    tar = images.tar([("d", None, {}), ("d/f", b"data" * 2500, {}), ("l", "d/f", {})])
    one = Kernel(fuseimages.mksquashfs(tar, tmp_path / "i"))
    yield one
    one.close()


ALL = 0xFFFFFFFF
NO_OPEN, NO_OPENDIR, MAX_PAGES = 1 << 17, 1 << 24, 1 << 22


@pytest.mark.parametrize("minor", (23, 27, 28, 31, 36, 40, 45, 60))
def test_init_takes_the_older_of_two_versions(minor: int, kernel: Kernel) -> None:
    body = struct.pack("=4I", 7, minor, 1 << 17, ALL) + (bytes(48) if minor >= 36 else b"")
    error, answer = kernel.ask(26, 0, body)
    assert error == 0 and len(answer) == 64
    values = struct.unpack("=4IHHIIHHI7I", answer)
    assert values[0] == 7 and values[1] == min(minor, 45)
    assert values[2] == 1 << 17 and values[6] >= 4096 and values[8] == 256
    assert values[3] & (NO_OPEN | NO_OPENDIR | MAX_PAGES) == NO_OPEN | NO_OPENDIR | MAX_PAGES
    assert not values[3] & (1 << 1 | 1 << 16)  # no locks, no writeback
    assert kernel.ask(14, 1, bytes(8)) == (ENOSYS, b"")
    assert kernel.ask(27, 1, bytes(8)) == (ENOSYS, b"")


def test_a_newer_major_version_is_asked_to_come_down(kernel: Kernel) -> None:
    error, answer = kernel.ask(26, 0, struct.pack("=4I", 8, 0, 1 << 17, ALL))
    assert error == 0 and struct.unpack_from("=I", answer) == (7,)
    assert kernel.ask(26, 0, struct.pack("=4I", 7, 31, 1 << 17, ALL))[0] == 0


@pytest.mark.parametrize("version", ((7, 22), (6, 9)))
def test_a_version_too_old_is_refused_with_a_reason(
    version: tuple[int, int], kernel: Kernel
) -> None:
    assert kernel.ask(26, 0, struct.pack("=4I", *version, 0, 0)) == (EPROTO, b"")
    assert f"this kernel speaks FUSE {version[0]}.{version[1]}" in kernel.log[0]


def test_a_kernel_without_zero_message_opens_gets_answers(kernel: Kernel) -> None:
    """Before 7.29 ENOSYS from OPENDIR would be the caller's error."""
    kernel.ask(26, 0, struct.pack("=4I", 7, 27, 1 << 17, ALL & ~(NO_OPENDIR | NO_OPEN)))
    for opcode in (14, 27):
        error, answer = kernel.ask(opcode, 1, bytes(8))
        assert error == 0 and struct.unpack("=QII", answer)[1] & 1 << 1  # FOPEN_KEEP_CACHE
    assert kernel.ask(18, 1, bytes(24)) == kernel.ask(29, 1, bytes(24)) == (0, b"")


def test_entries_are_for_ever_and_absent_ones_too(kernel: Kernel) -> None:
    error, answer = kernel.ask(1, 1, b"d\0")
    node, generation, entry, attr = struct.unpack_from("=4Q", answer)
    assert (error, len(answer), generation) == (0, 128, 0)
    assert node > 1 and min(entry, attr) > 10**9
    error, answer = kernel.ask(1, node, b"absent\0")
    assert error == 0 and struct.unpack_from("=QQQ", answer)[::2] == (0, 1 << 30)
    assert kernel.ask(1, node, b"n" * 300 + b"\0") == (36, b"")
    file = struct.unpack_from("=Q", kernel.ask(1, node, b"f\0")[1])[0]
    assert kernel.ask(15, file, struct.pack("=QQIIQII", 0, 9996, 8192, 0, 0, 0, 0)) == (0, b"data")
    error, answer = kernel.ask(3, file, bytes(16))
    assert struct.unpack_from("=QIIQQ", answer)[4] == 10_000
    error, answer = kernel.ask(17, 1)
    assert (error, len(answer)) == (0, 80)


def test_what_needs_no_answer_gets_none(kernel: Kernel) -> None:
    kernel.send(2, 5, struct.pack("=Q", 1))
    kernel.send(42, 0, struct.pack("=IIQQ", 1, 0, 5, 1))
    assert kernel.ask(38, 0) == (0, b"")  # the next answer is this one's


def test_what_is_not_known_is_never_asked_again(kernel: Kernel) -> None:
    for opcode in (22, 23, 25, 34, 36, 39, 40, 46, 52, 63, 64, 4096):
        assert kernel.ask(opcode, 1, bytes(64)) == (ENOSYS, b""), opcode
    assert kernel.log == []


def test_nonsense_is_eio_and_logged(kernel: Kernel) -> None:
    assert kernel.ask(1, (1 << 50) + 77, b"x\0") == (EIO, b"")
    assert "LOOKUP of inode" in kernel.log[0] and "lies outside of the inode table" in kernel.log[0]
    assert kernel.ask(15, 1, b"short") == (EIO, b"")
    for _ in range(300):
        kernel.ask(1, (1 << 50) + 77, b"x\0")
    assert len(kernel.log) == 100 and kernel.log[-1].endswith("no more such lines")


def test_a_listing_goes_on_where_it_stopped(kernel: Kernel) -> None:
    names, cookie = [], 0
    while True:
        _, answer = kernel.ask(28, 1, struct.pack("=QQIIQII", 0, cookie, 40, 0, 0, 0, 0))
        if not answer:
            break
        _, cookie, length, _ = struct.unpack_from("=QQII", answer)
        names.append(answer[24 : 24 + length])
    assert names == [b".", b"..", b"d", b"l"]


def test_xattrs_by_size_and_by_value(tmp_path: Path) -> None:
    kernel = Kernel(fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i"))
    try:
        owners = struct.unpack_from("=Q", kernel.ask(1, 1, b"owners\0")[1])[0]
        node = struct.unpack_from("=Q", kernel.ask(1, owners, b"xattrs\0")[1])[0]

        def get(opcode: int, size: int, name: bytes = b"") -> tuple[int, bytes]:
            return kernel.ask(opcode, node, struct.pack("=II", size, 0) + name)

        assert get(22, 0, b"user.long\0") == (0, struct.pack("=II", 3000, 0))
        assert get(22, 4000, b"user.long\0") == (0, b"v" * 3000)
        assert get(22, 10, b"user.long\0") == (ERANGE, b"")
        assert get(22, 0, b"user.none\0") == (ENODATA, b"")
        assert sorted(get(23, 100)[1].split(b"\0")) == [b"", b"user.long", b"user.one"]
        assert kernel.log == []
    finally:
        kernel.close()
