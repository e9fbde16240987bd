"""Messages between the launcher and the processes outside: words, and descriptors (unix(7)).

A socket holds what was sent and not yet received, descriptors among it, for as long as any process
has the receiving end open. So each end is one process's alone.
"""

import _socket
import os
from errno import EMSGSIZE
from sys import byteorder

LONGEST = 1 << 15
"""Bytes of words that are sent as such; a socket's buffer holds more (unix(7), socket(7))."""
_LONG = b"\0"
"""Stands for words that are in a file of memory, the first descriptor. No message begins so."""


def pair() -> "tuple[_socket.socket, _socket.socket]":
    """Return two connected sockets, closed on exec, that keep messages apart and in order."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def send(sock: "_socket.socket", words: "tuple[str, ...]", fds: "list[int]") -> None:
    """Send words, of which the first is not empty, and descriptors (SCM_RIGHTS). Raises OSError."""
    text, long = "\0".join(words).encode("utf-8", "surrogateescape"), -1
    if len(text) > LONGEST:
        long = os.memfd_create("words")
        while text:
            text = text[os.write(long, text) :]
        text, fds = _LONG, [long, *fds]
    data = b"".join(fd.to_bytes(4, byteorder) for fd in fds)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)] if fds else []
    try:
        sock.sendmsg([text], rights)
    finally:
        if long >= 0:
            os.close(long)


def receive(sock: "_socket.socket") -> "tuple[str, list[int]]":
    """Return a message and its descriptors; ("", []) where the other side has gone.

    Raises OSError, also for a message that is cut off.
    """
    try:
        text, ancillary, flags, _ = sock.recvmsg(LONGEST, 256)
    except ConnectionResetError:
        # It has gone without reading all that it was sent.
        return "", []
    data = b"".join(data for _, kind, data in ancillary if kind == _socket.SCM_RIGHTS)
    fds = [int.from_bytes(data[i : i + 4], byteorder) for i in range(0, len(data), 4)]
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        raise OSError(EMSGSIZE, "a message was cut off")
    if text == _LONG and fds:
        long = fds.pop(0)
        with open(long, "rb", buffering=0) as file:
            file.seek(0)
            text = file.readall() or b""
    return text.decode("utf-8", "surrogateescape"), fds


def tell(sock: "_socket.socket", text: str) -> None:
    """Send one text to whom it may concern: nobody, where the other side has gone."""
    try:
        send(sock, (text,), [])
    except OSError:
        # The launcher has long become the command, or is dead.
        pass
