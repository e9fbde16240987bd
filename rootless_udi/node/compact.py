"""Write the record of a container anew without the members that have ended.

Each rank that joins adds a line, so thousands of short commands make a long record. The helper does
this for containers that are kept (`serve.keeper`); for others the rank that finds more than
`record.LONG` bytes of members.
"""

import os
from errno import EDQUOT, ENOSPC

from rootless_udi.base.errors import UdiError
from rootless_udi.node.election import Election, is_named
from rootless_udi.node.publish import content, replace
from rootless_udi.node.record import TOLD, NodeRecord, alive, file_of


def compact(path: str, directory: int, name: str, record: NodeRecord, fd: int) -> None:
    """Write the record anew under its lock, unless another rank has done so meanwhile.

    `path` and `directory` are the state directory's, `fd` is the record's file. Where there is no
    room for it, the old one stays. Raises OSError.
    """
    election = Election(path, directory, name)
    try:
        if not is_named(fd, file_of(name), directory):
            return
        data = _rest(fd, record.tail_at)
        head = [(key, value) for key, values in record.lists.items() for value in values]
        said = TOLD + b"\n" if b"\n" + TOLD in data else b""
        replace(directory, path, name, content(head, _living(record, data) + said))
        # A rank may have come between the reading and this: it looks whether its file has a name,
        # after it has added its line.
        if more := _rest(fd, record.tail_at + len(data)):
            _append(directory, name, more)
    except UdiError:
        pass
    finally:
        election.release()


def _living(record: NodeRecord, data: bytes) -> bytes:
    members = NodeRecord(content([(k, v) for k in ("user", "mnt") for v in record.lists[k]], data))
    # In their order, of which the builder is the first.
    pairs = dict.fromkeys(reversed([*members.newest()]))
    return b"".join(b"%d %d\n" % pair for pair in pairs if alive(*pair))


def _rest(fd: int, at: int) -> bytes:
    chunks = []
    while chunk := os.pread(fd, 1 << 20, at):
        chunks.append(chunk)
        at += len(chunk)
    return b"".join(chunks)


def _append(directory: int, name: str, lines: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    new = os.open(file_of(name), flags, dir_fd=directory)
    try:
        os.write(new, b"\n" + lines)
    except OSError as error:
        # They can be joined no more; those who are in the new one can.
        if error.errno not in (ENOSPC, EDQUOT):
            raise
    finally:
        os.close(new)
