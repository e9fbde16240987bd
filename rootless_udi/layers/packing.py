"""Write a directory's files as one tar: the same tree gives the same bytes, whoever packs it.

Names are in the order of their bytes, the owner is always 0:0, and times are the files' own. Files
that a profile names come first, in its order: what is read together lies together then.
"""

import os
import stat
from collections.abc import Iterable, Iterator

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.layers.tarreader import DIRECTORY, LINK, SYMLINK
from rootless_udi.layers.tarwriter import TarWriter, Write

_PIECE = 1 << 20
_AGAIN = "pack it when nobody writes there"


class Listed(Record):
    """The tree's names, below its top. `left_out` are sockets, FIFOs and devices."""

    directories: tuple[bytes, ...]
    links: tuple[bytes, ...]
    files: tuple[bytes, ...]
    left_out: tuple[bytes, ...]


def look(top: str) -> Listed:
    """Return what is below the directory `top`; raises UdiError where it can't all be listed."""
    kinds: dict[str, list[bytes]] = {name: [] for name in Listed.FIELDS}
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(os.fsencode(top), folder)) as listing:
                entries = list(listing)
        except OSError as error:
            raise _failed(top, folder, error) from None
        for entry in entries:
            name = folder + b"/" + entry.name if folder else entry.name
            if entry.is_symlink():
                kinds["links"].append(name)
            elif entry.is_dir():
                kinds["directories"].append(name)
                folders.append(name)
            else:
                kinds["files" if entry.is_file() else "left_out"].append(name)
    return Listed(*(tuple(sorted(kinds[name])) for name in Listed.FIELDS))


def write(top: str, found: Listed, first: "Iterable[bytes]", out: Write) -> int:
    """Write the tree to `out` as a tar, with the files `first` before others; return their bytes.

    Raises UdiError where a file can't be read, or changes meanwhile.
    """
    tar, base, total = TarWriter(out), os.fsencode(top), 0
    names: dict[tuple[int, int], bytes] = {}
    for path in (*found.directories, *found.links):
        try:
            status = os.lstat(os.path.join(base, path))
            is_link = stat.S_ISLNK(status.st_mode)
            target = os.readlink(os.path.join(base, path)) if is_link else b""
        except OSError as error:
            raise _failed(top, path, error) from None
        kind = SYMLINK if is_link else DIRECTORY
        tar.member(kind, path, stat.S_IMODE(status.st_mode), int(status.st_mtime), target)
    known = set(found.files)
    order = dict.fromkeys([*(path for path in first if path in known), *found.files])
    for path in order:
        total += _file(tar, top, path, names)
    tar.close()
    return total


def _file(tar: TarWriter, top: str, path: bytes, names: "dict[tuple[int, int], bytes]") -> int:
    """Write a file, or the link to a name that was written before; return its bytes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(os.fsencode(top), path), flags)
    except OSError as error:
        raise _failed(top, path, error) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _changed(top, path)
        mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        if status.st_nlink > 1:
            other = names.setdefault((status.st_dev, status.st_ino), path)
            if other != path:
                tar.member(LINK, path, mode, mtime, other)
                return 0
        tar.file(path, status.st_size, mode, mtime, _content(fd, status.st_size, top, path))
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise _changed(top, path)
        return status.st_size
    finally:
        os.close(fd)


def _content(fd: int, size: int, top: str, path: bytes) -> Iterator[memoryview]:
    while size:
        try:
            data = os.read(fd, min(size, _PIECE))
        except OSError as error:
            raise _failed(top, path, error) from None
        if not data:
            raise _changed(top, path)
        size -= len(data)
        yield memoryview(data)


def _failed(top: str, path: bytes, error: OSError) -> UdiError:
    name = os.path.join(top, os.fsdecode(path)) if path else top
    return UdiError(f"packing {top} failed on {name}: {error.strerror}", "nothing was written")


def _changed(top: str, path: bytes) -> UdiError:
    name = os.path.join(top, os.fsdecode(path))
    return UdiError(f"packing {top} failed on {name}: it changed meanwhile", _AGAIN)
