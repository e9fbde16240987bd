"""One squashfs file out of a tar stream, by tar2sqfs or mksquashfs; checked, and taken apart again.

Both writers get the same tar and make the same tree; each makes the same bytes every time. Traps
that are dealt with here, seen in squashfs-tools 4.5.1 and squashfs-tools-ng 1.2.0: mksquashfs takes
a quarter of the memory unless told, gives the root directory mode 0777 and the present time and
ignores -root-time when it reads a tar; both compress with zstd 15 unless told.
"""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from tempfile import mkdtemp

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.trees import mount_point, remove_tree
from rootless_udi.fuse.format import SUPERBLOCK_SIZE, Corrupt, Superblock
from rootless_udi.layers.tarwriter import Write

Feed = Callable[[Write], object]
BLOCK_SIZE = 131072
MEMORY = "256M"
PIPE_SIZE = 1 << 20
PLACES = ":/usr/sbin:/sbin"
"""Searched after PATH: some distributions install the tools where no user's PATH leads."""

_LEVELS = {"zstd": 22, "gzip": 9, "lz4": 0, "xz": 0, "lzo": 9, "none": 0}


class Again(Exception):
    """Raised by a feed: what was written is void; call it again with a new writer."""


def build(target: str, compression: str, feed: Feed, writer: str = "") -> None:
    """Write the squashfs file `target` from the tar that `feed` writes through its argument.

    `compression` is "zstd[:1-22]", "gzip[:1-9]", "lzo[:1-9]", "lz4", "xz" or "none"; zstd is level
    3 where none is given. `writer` is the path or name of a tar2sqfs or mksquashfs to use. Raises
    UdiError where there is no writer, it fails, or the disk is full; what `feed` raises passes
    through. `target` is gone then. It is not flushed to disk: that is the caller's, as is a name
    that nobody reads yet.
    """
    argv = command(target, compression, writer or find(compression))
    try:
        while True:
            try:
                _write(argv, target, feed)
                break
            except Again:
                _unlink(target)
        if not _is_tar2sqfs(argv[0]):
            _settle_root(target)
        check(target)
    except BaseException:
        _unlink(target)
        raise


def _unlink(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def find(compression: str) -> str:
    """Return the path of the writer to use; UdiError where this machine has none."""
    # tar2sqfs 1.2.0 has no "none", and unsquashfs 4.5 can't read its lz4 (the id table).
    single = _parse(compression)[0] in ("none", "lz4")
    names = ("mksquashfs",) if single else ("tar2sqfs", "mksquashfs")
    for name in names:
        if path := _which(name):
            return path
    raise UdiError(
        f"making a squashfs file failed: there is no {' or '.join(names)} here",
        "install squashfs-tools-ng (tar2sqfs), or squashfs-tools 4.5 or later (mksquashfs)",
    )


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + PLACES)


def command(target: str, compression: str, writer: str) -> list[str]:
    """Return the command line that reads a tar on standard input and writes `target`."""
    name, level = _parse(compression)
    processors = str(len(os.sched_getaffinity(0)))
    target = os.path.abspath(target)
    if _is_tar2sqfs(writer):
        if name == "none":
            raise UdiError(
                "making a squashfs file failed: tar2sqfs can't leave it uncompressed",
                "install squashfs-tools (mksquashfs), or choose another --compression",
            )
        options = ["--quiet", "--force", "--no-skip", "--num-jobs", processors]
        options += ["--block-size", str(BLOCK_SIZE), "--compressor", name]
        options += ["--comp-extra", f"level={level}"] if level else []
        return [writer, *options, "--defaults", "uid=0,gid=0,mode=0755,mtime=0", target]
    options = ["-tar", "-noappend", "-quiet", "-no-progress", "-processors", processors]
    options += ["-mem", MEMORY, "-b", str(BLOCK_SIZE), "-mkfs-time", "0"]
    options += ["-root-mode", "0755", "-all-root"]
    # The inode table is left uncompressed for _settle_root; it is small, and read faster so.
    options += ["-noI"]
    if name == "none":
        options += ["-noD", "-noF", "-noX"]
    else:
        options += ["-comp", name]
    options += ["-Xcompression-level", str(level)] if level else []
    return [writer, "-", target, *options]


def _parse(compression: str) -> tuple[str, int]:
    """Return name and level (0: the writer's own)."""
    name, colon, text = compression.partition(":")
    level = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    most = _LEVELS.get(name)
    if most is None or (colon and not 1 <= level <= most):
        raise UdiError(
            f"making a squashfs file failed: unknown compression {compression!r}",
            "use zstd:1 to zstd:22, gzip:1 to gzip:9, lzo:1 to lzo:9, lz4, xz or none",
        )
    return name, level or (3 if name == "zstd" else 0)


def _is_tar2sqfs(writer: str) -> bool:
    return "tar2sqfs" in os.path.basename(writer)


def _write(argv: list[str], target: str, feed: Feed) -> None:
    env = {**os.environ, "LC_ALL": "C"}
    env.pop("SOURCE_DATE_EPOCH", None)  # fatal to mksquashfs together with -mkfs-time
    said = os.memfd_create("stderr")
    # Held open, so that a writer that removes what it could not finish does not hide a full disk.
    held = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with open(said, "r+b") as stderr, open(held, "r+b", buffering=0) as output:
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, env=env
            )
        except OSError as err:
            raise UdiError(
                f"starting {argv[0]} failed: {err.strerror}", "see `udi doctor`"
            ) from err
        assert child.stdin
        broken = False
        with child.stdin:
            try:
                _enlarge(child.stdin)
                feed(child.stdin.write)
                child.stdin.close()
            except BrokenPipeError:
                broken = True  # the writer has ended, and says why
            except BaseException:
                child.kill()
                child.wait()
                _close(child.stdin)
                raise
            _close(child.stdin)
        status = child.wait()
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
        if status and "I/O error" in text:
            text += _write_error(output)  # tar2sqfs says no more than that
    if status or broken:
        raise _failure(os.path.basename(argv[0]), "writing", target, status, text)


def _close(pipe: object) -> None:
    """Close without flushing to a reader that is gone."""
    try:
        pipe.close()  # type: ignore[attr-defined]
    except BrokenPipeError:
        pass


def _enlarge(pipe: object) -> None:
    """Fewer switches between the two processes; beyond the user's pipe quota it stays as it is."""
    try:
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)  # type: ignore[attr-defined]
    except OSError:
        pass


def _failure(program: str, doing: str, path: str, status: int, text: str) -> UdiError:
    """Return the UdiError for a program's exit status and what it said."""
    what = f"{doing} {path} failed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for reason in ("No space left on device", "Disk quota exceeded"):
        if reason in text:
            where = mount_point(os.path.dirname(os.path.abspath(path)))
            return UdiError(
                f"{what}: {reason} (file system {where})",
                "make room there, or put the store elsewhere with UDI_STORE",
            )
    if status == -signal.SIGXFSZ or "File too large" in text:
        return UdiError(f"{what}: File too large", "raise the limit of file sizes (ulimit -f)")
    if status < 0:
        name = signal.Signals(-status).name if -status in list(signal.Signals) else str(-status)
        hint = "out of memory? see dmesg, or ask for more memory" if name == "SIGKILL" else ""
        return UdiError(f"{what}: {program} was killed by signal {name}", hint)
    if "invalid option" in text and doing == "writing":
        return UdiError(
            f"{what}: this {program} can't read a tar",
            "install squashfs-tools 4.5 or later, or squashfs-tools-ng (tar2sqfs)",
        )
    why = lines[-1] if lines else "it says nothing"
    return UdiError(f"{what}: {program} ended with status {status}: {why}", "see `udi doctor`")


def _write_error(file: FileIO) -> str:
    """Return the system's reason why `file` can't grow, or an empty string."""
    try:
        file.seek(0, os.SEEK_END)
        for _ in range(16):
            file.write(bytes(1 << 18))
            os.fsync(file.fileno())
    except OSError as err:
        return str(err.strerror)
    return ""


def check(path: str) -> None:
    """Raise UdiError where `path` is no squashfs 4.0 file, or shorter than it says it is.

    Looks at the superblock alone (Documentation/filesystems/squashfs.rst of the kernel).
    """
    with open(trust.regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(SUPERBLOCK_SIZE)
    why = ""
    try:
        used = Superblock(head).bytes_used
        if used > size:
            why = f"it is cut short: {size} bytes of {used}"
    except Corrupt as error:
        why = str(error)
    if why:
        raise UdiError(
            f"reading {path} failed: corrupt squashfs: {why}",
            "remove the image and pull it again, or copy the file again",
        )


def _settle_root(path: str) -> None:
    """Set the root directory's time to 0: mksquashfs -tar knows no option for it.

    The time is the 32 bits after type, mode, uid and gid of the root's inode, whose place is in the
    superblock: block << 16 | offset in a block of 8192 bytes after its two-byte header.
    """
    with open(path, "r+b") as file:
        found = Superblock(file.read(SUPERBLOCK_SIZE))
        block, offset = found.inode_table + (found.root >> 16), found.root & 0xFFFF
        for at in range(offset + 8, offset + 12):
            start = block + at // 8192 * 8194
            file.seek(start)
            if not file.read(2)[1] & 0x80:
                raise UdiError(f"writing {path} failed: mksquashfs has compressed the inode table")
            file.seek(start + 2 + at % 8192)
            file.write(b"\0")


def extract(path: str, directory: str) -> None:
    """Unpack the squashfs file `path` as `directory`, by unsquashfs, as the calling user.

    Extended attributes and device nodes are left out, and nobody but the caller gets permission to
    write: unlike the squashfs file, the tree could be changed by others. The work goes on beside
    `directory` under a temporary name, so that a complete tree or none is found; what a killed call
    left is removed by the next. The caller holds a lock. Does nothing where `directory` exists.
    Raises UdiError.
    """
    if os.path.lexists(directory):
        return
    check(path)
    program = _which("unsquashfs")
    if program is None:
        raise UdiError(
            f"unpacking {path} failed: there is no unsquashfs here", "install squashfs-tools"
        )
    parent, name = os.path.split(os.path.abspath(directory))
    prefix = f".{name}.partial-"
    for old in os.listdir(parent):
        if old.startswith(prefix):
            # An unsquashfs that outlived its caller may still add to it; it will fail soon.
            with suppress(OSError):
                remove_tree(os.path.join(parent, old))
    partial = mkdtemp(prefix=prefix, dir=parent)
    try:
        tree = os.path.join(partial, "root")
        _unsquashfs(program, path, tree, directory)
        for root, _, _ in os.walk(tree):
            mode = stat.S_IMODE(os.lstat(root).st_mode)
            # rename(2) of a directory into another needs permission to write in it.
            os.chmod(root, mode & ~0o022 | (0o700 if root == tree else 0))
        os.rename(tree, directory)
    finally:
        remove_tree(partial)


def _unsquashfs(program: str, path: str, tree: str, directory: str) -> None:
    processors = str(len(os.sched_getaffinity(0)))
    argv = [program, "-quiet", "-no-progress", "-no-xattrs", "-processors", processors]
    argv += ["-da", "64", "-fr", "64", "-dest", tree, os.path.abspath(path)]
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        umask=0o022,
    )
    text = done.stderr.decode(errors="replace")
    # An ordinary user can't make device nodes; unsquashfs 4.5 says so and goes on, status 2.
    others = [x for x in text.splitlines() if x.strip() and "not superuser" not in x]
    if done.returncode and (others or done.returncode < 0 or not os.path.isdir(tree)):
        raise _failure("unsquashfs", "unpacking", directory, done.returncode, "\n".join(others))
