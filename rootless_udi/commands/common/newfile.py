"""Write a file that appears whole under its name or not at all, whatever ends the command."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, EISDIR, ENOENT, EOPNOTSUPP
from typing import BinaryIO, NoReturn

from rootless_udi.base.errors import UdiError, disk_hint

_NO_TMPFILE = (EISDIR, EOPNOTSUPP, EINVAL, ENOENT)


@contextmanager
def writing(path: str, replace: bool) -> Iterator[BinaryIO]:
    """Yield a file to write to; at the end of the block it gets the name `path`.

    Raises UdiError if `path` exists and is not to be replaced, and for errors of the file system.
    """
    where = os.path.abspath(path)
    if os.path.lexists(where) and not replace:
        raise UdiError(f"{path} is there already", "--force replaces it")
    folder = os.path.dirname(where)
    hidden = f"{folder}/.{os.path.basename(where)[:100]}.{os.urandom(6).hex()}.part"
    try:
        with ending():
            fd, named = _open(folder, hidden)
            try:
                with open(fd, "w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(fd)
                    if not named:
                        _link(fd, hidden)
                    os.rename(hidden, where)
            finally:
                with suppress(OSError):
                    os.unlink(hidden)
    except OSError as error:
        why = error.strerror or str(error)
        raise UdiError(f"writing {path} failed: {why}", disk_hint(error.errno)) from None


def _open(folder: str, hidden: str) -> tuple[int, bool]:
    """Open the new file; return its descriptor, and whether it has its hidden name.

    A file without a name (open(2), O_TMPFILE; not on NFS or Lustre) is gone if this process ends.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o644), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    return os.open(hidden, flags | os.O_CREAT | os.O_EXCL, 0o644), True


def _link(fd: int, path: str) -> None:
    # Only with a folder's descriptor does Python use linkat(2) with AT_SYMLINK_FOLLOW, which is
    # needed for the link in /proc.
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def ending() -> Iterator[None]:
    """Have the signals that end a command raise SystemExit, so that `finally` blocks are run."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {n: signal.signal(n, end) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
