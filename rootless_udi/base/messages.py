"""Messages between udi-run and its processes outside the container: words and descriptors
(unix(7)).

As long as any process has the receiving end of a socket open, the socket keeps what was sent and
not yet received, and with it the descriptors. So only one process may have each end.
"""

import _socket
import os
from errno import EMSGSIZE
from sys import byteorder

_LONGEST = 1 << 15
"""Bytes. Longer words are sent as a file in memory: a socket's buffer is small (socket(7))."""
_RIGHTS = 256
"""Bytes for a message's descriptors, of 4 each, with their header."""
_LONG = b"\0"
"""The text of a message whose words are in a file in memory, its first descriptor. Words never
begin like this."""


def pair() -> "tuple[_socket.socket, _socket.socket]":
    """Return two connected sockets, closed on exec, that keep messages apart and in order.

    Raises OSError.
    """
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def send(sock: "_socket.socket", words: "tuple[str, ...]", fds: "list[int]") -> None:
    """Send words and descriptors (SCM_RIGHTS). The first word must not be empty. Raises OSError."""
    text, long = "\0".join(words).encode("utf-8", "surrogateescape"), -1
    if len(text) > _LONGEST:
        long = os.memfd_create("words")
        while text:
            text = text[os.write(long, text) :]
        text, fds = _LONG, [long, *fds]
    try:
        give(sock, text, fds)
    finally:
        if long >= 0:
            os.close(long)


def give(sock: "_socket.socket", data: bytes, fds: "list[int]") -> None:
    """Do what `send` does for a message that is no words. Raises OSError."""
    rights = b"".join([fd.to_bytes(4, byteorder) for fd in fds])
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else [])


def receive(sock: "_socket.socket") -> "tuple[str, list[int]]":
    """Return a message's words, joined by NUL, and its descriptors; ("", []) at the end.

    That is where the other process has ended or closed its socket. Raises OSError, also for a
    message that was cut off.
    """
    text, fds = take(sock, _LONGEST)
    if text == _LONG and fds:
        long = fds.pop(0)
        with open(long, "rb", buffering=0) as file:
            file.seek(0)
            text = file.readall() or b""
    return text.decode("utf-8", "surrogateescape"), fds


def take(sock: "_socket.socket", most: int) -> "tuple[bytes, list[int]]":
    """Do what `receive` does for a message of at most `most` bytes that is no words."""
    try:
        text, ancillary, flags, _ = sock.recvmsg(most, _RIGHTS)
    except ConnectionResetError:
        # The other process ended before it had read all that was sent. The kernel says so first,
        # and once; what that process has sent is still there.
        try:
            text, ancillary, flags, _ = sock.recvmsg(most, _RIGHTS)
        except ConnectionResetError:
            return b"", []
    data = b"".join(data for _, kind, data in ancillary if kind == _socket.SCM_RIGHTS)
    fds = [int.from_bytes(data[i : i + 4], byteorder) for i in range(0, len(data), 4)]
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        raise OSError(EMSGSIZE, "a message was cut off")
    return text, fds


def tell(sock: "_socket.socket", text: str) -> None:
    """Send one text; do nothing where the other process has ended."""
    try:
        send(sock, (text,), [])
    except OSError:
        # udi-run has become the command, or has ended.
        pass
