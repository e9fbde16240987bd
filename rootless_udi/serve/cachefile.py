"""Make a perNodeCache in a file: an ext4 in a sparse file without a name, which fuse2fs serves.

When the container ends, its mount is the last one and ends (see `detached`). With it the server
ends, and with the server the file, since nothing else has it open.
"""

import os
from errno import EINVAL, EISDIR, ENOENT, EOPNOTSUPP

from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.plan.pernodecache import FileCache, filled
from rootless_udi.serve import detached, mounting


def make(step: FileCache) -> int:
    """Return a descriptor of the cache's mount, which `detached.attach` will attach.

    Raises UdiError where the file can't be made or a program fails, with what the program said.
    """
    file = _file(step)
    try:
        _mke2fs(step, file)
        argv = filled(step.fuse2fs, f"/dev/fd/{file}", mounting.TARGET)
        # mke2fs makes lost+found; a cache shall be empty.
        return detached.serve(argv, (file,), "lost+found")
    except mounting.Refused as refused:
        raise _failed(step, step.fuse2fs[0], str(refused)) from None
    finally:
        os.close(file)


def _file(step: FileCache) -> int:
    """Make a sparse file without a name; return its descriptor. Raises UdiError."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            fd = os.open(step.directory, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            # Some network file systems have no O_TMPFILE, and answer with different errors.
            if error.errno not in (EOPNOTSUPP, EISDIR, ENOENT, EINVAL):
                raise
            # A random name: in a folder like /tmp, another user could make a file by any other.
            path = f"{step.directory}/.udi-cache-{os.urandom(16).hex()}"
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(path)
        os.ftruncate(fd, step.size)
    except OSError as error:
        raise UdiError(
            f"perNodeCache {step.target}: making its file in {step.directory} failed: "
            f"{error.strerror}",
            disk_hint(error.errno, "name another directory, or keep it in memory: method=tmpfs"),
        ) from None
    return fd


def _mke2fs(step: FileCache, file: int) -> None:
    argv = filled(step.mke2fs, f"/dev/fd/{file}")
    said = os.memfd_create("said")
    os.set_inheritable(file, True)
    status = os.waitpid(mounting.start(argv, said), 0)[1]
    if status:
        raise _failed(step, argv[0], mounting.words(said))
    os.close(said)


def _failed(step: FileCache, program: str, words: str) -> UdiError:
    return UdiError(
        f"perNodeCache {step.target}: {program} failed: {words}",
        "keep it in memory: method=tmpfs; `udi doctor` checks fuse2fs",
    )
