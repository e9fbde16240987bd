"""Our SFTP server: what it answers to packets of any kind. Real clients are in test_sshd."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.ssh import sftp
from rootless_udi.ssh.wire import text, u32, u64


def answers(data: bytes) -> tuple[int, list[bytes]]:
    """Return the exit status and the packets of a session that gets `data`."""
    read, feed = os.pipe()
    out, write = os.pipe()

    def send() -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(feed, left) :]
        except BrokenPipeError:
            pass
        os.close(feed)

    status: list[int] = []

    def serve() -> None:
        status.append(sftp.SftpServer(read, write, b"/home/me").run())
        os.close(write)
        os.close(read)

    threads = [threading.Thread(target=one) for one in (send, serve)]
    for one in threads:
        one.start()
    got = b""
    while chunk := os.read(out, 1 << 16):
        got += chunk
    for one in threads:
        one.join()
    os.close(out)
    packets = []
    while got:
        length = int.from_bytes(got[:4], "big")
        packets.append(got[4 : 4 + length])
        got = got[4 + length :]
    return status[0], packets


def packet(kind: int, *parts: bytes) -> bytes:
    body = bytes((kind,)) + b"".join(parts)
    return u32(len(body)) + body


INIT = packet(1, u32(3))


def test_the_version_and_what_it_can_besides() -> None:
    status, (version,) = answers(INIT)
    assert status == 0 and version[:5] == b"\2" + u32(3)
    assert b"posix-rename@openssh.com" in version


def code(answer: bytes) -> int:
    assert answer[0] == 101
    return int.from_bytes(answer[5:9], "big")


def test_statuses(tmp_path: Path) -> None:
    here = os.fsencode(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    asked = [
        packet(17, u32(1), text(here + b"/none")),
        packet(13, u32(2), text(here)),
        packet(18, u32(3), text(here + b"/file"), text(here + b"/file")),
        packet(99, u32(4)),
        packet(4, u32(5), text(b"nothing")),
        packet(17, u32(6), text(b"a\0b")),
        packet(17, u32(7), u32(1000)),
        packet(200, u32(8), text(b"unheard@of")),
        packet(16, u32(9), text(here + b"/file/../file")),
    ]
    status, (_, *found) = answers(INIT + b"".join(asked))
    assert status == 0
    assert [int.from_bytes(one[1:5], "big") for one in found] == list(range(1, 10))
    assert [code(one) for one in found[:8]] == [2, 4, 4, 8, 5, 5, 5, 8]
    assert found[8][0] == 104


def test_a_file_is_written_and_read_at_any_place(tmp_path: Path) -> None:
    path = text(os.fsencode(tmp_path / "file"))
    asked = [
        packet(3, u32(1), path, u32(2 | 8 | 1), u32(4), u32(0o100640)),
        packet(6, u32(2), text(b"1"), u64(5), text(b"later")),
        packet(6, u32(3), text(b"1"), u64(0), text(b"early")),
        packet(5, u32(4), text(b"1"), u64(3), u32(1 << 30)),
        packet(5, u32(5), text(b"1"), u64(1 << 63), u32(9)),
        packet(4, u32(6), text(b"1")),
        packet(9, u32(7), path, u32(1 | 8), u64(4), u32(1), u32(2)),
        packet(4, u32(8), text(b"1")),
    ]
    _, (_, handle, *found) = answers(INIT + b"".join(asked))
    assert handle[0] == 102
    assert found[2][:1] + found[2][5:] == b"\x67" + text(b"lylater")
    assert [code(one) for one in (*found[:2], *found[3:])] == [0, 0, 4, 0, 0, 5]
    status = (tmp_path / "file").stat()
    assert (tmp_path / "file").read_bytes() == b"earl"
    assert (status.st_mode & 0o777, status.st_mtime) == (0o640 & ~_mask(), 2)


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_handles_are_bounded(tmp_path: Path) -> None:
    here = text(os.fsencode(tmp_path))
    _, (_, *found) = answers(INIT + packet(11, u32(1), here) * 300)
    assert [one[0] for one in found].count(102) == 256
    assert b"too many open handles" in found[-1]


@pytest.mark.parametrize("length", [(1 << 18) + 1, 1 << 31])
def test_a_packet_that_is_too_long_ends_the_session(length: int) -> None:
    assert len(answers(INIT + u32(length) + b"x" * 100)[1]) == 1


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=20), st.binary())
def test_any_bytes_are_borne(packets: list[tuple[int, bytes]], rest: bytes) -> None:
    """None of these can change a file: a path would have to begin at the right place."""
    harmless = {7, 8, 11, 12, 16, 17, 19, 200, 4, 5}
    data = b"".join(packet(kind, body) for kind, body in packets if kind in harmless or kind > 20)
    status, _ = answers(INIT + data + rest[:3])
    assert status in (0, 1)
