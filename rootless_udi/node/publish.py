"""Write the record of a node's container; `node.ending` removes it."""

import os
from errno import EFBIG, ENOSPC
from time import time

from rootless_udi.base import process
from rootless_udi.node.places import failed
from rootless_udi.node.record import FORMAT, MOST, TOLD, file_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootless_udi.plan.planner import Plan


PLANNED = (
    *("image", "digest", "rung", "before", "after", "entrypoint", "cmd"),
    "workdir",
)
"""Keys of the fields that `described` returns."""


def write(
    directory: int,
    path: str,
    name: str,
    plan: "Plan",
    fields: "dict[str, str]",
    server: str,
    told: bool = False,
    pin: str = "",
    same: "Iterable[str]" = (),
) -> None:
    """Write the record of the caller's container, with the caller as its first member.

    `fields` are its keys request, token and job. `server` is "PID START" of the image server, which
    may not be visible from inside the container (proc(5), hidepid). `told`: this rank has said, for
    all, that its folder is not inside. `pin` is "PID START" of the process that keeps a container,
    `same` the files on which it depends. Raises UdiError where the file can't be written.
    """
    spaces = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("user", "mnt")}
    pairs = [
        *fields.items(),
        ("started", str(int(time()))),
        ("user", str(spaces["user"])),
        ("mnt", str(spaces["mnt"])),
        ("server", server),
        *described(plan),
        *([("pin", pin)] if pin else []),
        *(("same", one) for one in same),
    ]
    me = os.getpid()
    said = TOLD + b"\n" if told else b""
    # The pin is the first: a rank that joins tries the last member and the first.
    first = f"{pin}\n".encode() if pin else b""
    tail = b"%s%d %d\n%s" % (first, me, process.started(me), said)
    replace(directory, path, name, content(pairs, tail))


def described(plan: "Plan") -> "list[tuple[str, str]]":
    """Return the fields of a record that the container's plan has."""
    return [
        ("image", plan.image),
        ("digest", plan.digest),
        ("rung", plan.root.server),
        *(("before", f"{e.op}\0{e.name}\0{e.value}") for e in plan.before),
        *(("after", f"{e.op}\0{e.name}\0{e.value}") for e in plan.after),
        *(("entrypoint", word) for word in plan.entrypoint),
        *(("cmd", word) for word in plan.command),
        ("workdir", plan.workdir),
    ]


def content(pairs: "Iterable[tuple[str, str]]", tail: bytes) -> bytes:
    """Return a record: its head's fields, and its members' lines."""
    head = b""
    for key, value in pairs:
        field = f"{key}={value}".encode("utf-8", "surrogateescape")
        head += b"%d:%s\n" % (len(field), field)
    return b"udi %d %d\n%s%s" % (FORMAT, len(head), head, tail)


def replace(directory: int, path: str, name: str, data: bytes) -> None:
    """Write a record in place of what is there. Raises UdiError."""
    new = f"{name}.new"
    try:
        if len(data) > MOST // 2:
            # Members are still to be added.
            raise OSError(EFBIG, os.strerror(EFBIG))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=directory)
        try:
            # Whatever the caller's umask is, the next rank must be able to read it.
            os.fchmod(fd, 0o600)
            if os.write(fd, data) != len(data):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        finally:
            os.close(fd)
        os.rename(new, file_of(name), src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        try:
            os.unlink(new, dir_fd=directory)
        except OSError:
            pass
        raise failed(path, error) from None
