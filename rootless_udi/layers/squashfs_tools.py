"""Programs that write and unpack squashfs files: tar2sqfs or mksquashfs, and unsquashfs.

Both writers get the same tar and make the same tree; each makes the same bytes every time. What
they do by default and must be told otherwise (squashfs-tools 4.5.1, squashfs-tools-ng 1.2.0): both
compress with zstd level 15; mksquashfs takes a quarter of the memory, gives the root directory mode
0777 and the present time, and ignores -root-time when it reads a tar.
"""

import fcntl
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from io import FileIO
from tempfile import mkdtemp

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.base.trees import mount_point, remove_tree
from rootless_udi.fuse.format import SUPERBLOCK_SIZE, Corrupt, Superblock
from rootless_udi.layers.tarwriter import Write

Feed = Callable[[Write], object]
"""Writes a tar by calling its argument with one part after the other."""
_BLOCK_SIZE = 131072
"""Bytes of a squashfs block: the default of both writers."""
_MEMORY = "256M"
"""mksquashfs's -mem: the size of its caches."""
_PIPE_SIZE = 1 << 20
PLACES = ":/usr/sbin:/sbin"
"""Searched after PATH: some distributions install the tools in folders of no user's PATH."""

_LEVELS = {"zstd": 22, "gzip": 9, "lz4": 0, "xz": 0, "lzo": 9, "none": 0}
"""The highest level of each compressor; 0 for those that have no levels."""
_INODE_MTIME = 8
"""Where the 32-bit time is in an inode, behind type, mode, uid and gid of 16 bits each."""
_METADATA = 8192
"""Bytes of an uncompressed metadata block, which follow a header of 16 bits."""
_UNCOMPRESSED = 0x80
"""In the second byte of that header: the highest bit (Documentation/filesystems/squashfs.rst)."""


class Again(Exception):
    """Raised by a feed: what it wrote is to be thrown away, and the feed called once more."""


def build(target: str, compression: str, feed: Feed, writer: str = "", called: str = "") -> None:
    """Write the squashfs file `target` from the tar that `feed` writes through its argument.

    `compression` is "zstd[:1-22]", "gzip[:1-9]", "lzo[:1-9]", "lz4", "xz" or "none"; zstd is level
    3 where none is given. `writer` is the path or name of a tar2sqfs or mksquashfs to use; `called`
    is the file's name in errors, if `target` is the link of an open one in /proc. Raises UdiError
    where there is no writer, it fails, or the disk is full; what `feed` raises passes through; then
    there is no `target`. The caller chooses a name that nobody reads yet, and has the file flushed
    to disk (fsync(2)).
    """
    argv = command(target, compression, writer or find(compression))
    try:
        while True:
            try:
                _write(argv, target, feed, called or target)
                break
            except Again:
                _unlink(target)
        if not _is_tar2sqfs(argv[0]):
            _settle_root(target)
        check(target, called)
    except BaseException:
        _unlink(target)
        raise


def _unlink(path: str) -> None:
    if os.path.lexists(path) and not path.startswith("/proc/"):
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
        options += ["--block-size", str(_BLOCK_SIZE), "--compressor", name]
        options += ["--comp-extra", f"level={level}"] if level else []
        return [writer, *options, "--defaults", "uid=0,gid=0,mode=0755,mtime=0", target]
    options = ["-tar", "-noappend", "-quiet", "-no-progress", "-processors", processors]
    options += ["-mem", _MEMORY, "-b", str(_BLOCK_SIZE), "-mkfs-time", "0"]
    options += ["-root-mode", "0755", "-all-root"]
    # -noI leaves the inode table uncompressed, for _settle_root; it is small, and read faster so.
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


def _write(argv: list[str], target: str, feed: Feed, called: str) -> None:
    env = {**os.environ, "LC_ALL": "C"}
    env.pop("SOURCE_DATE_EPOCH", None)  # fatal to mksquashfs together with -mkfs-time
    said = os.memfd_create("stderr")
    # Kept open, for _write_error: a writer that fails removes its file, and with it the full disk.
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
            text += _write_error(output)  # tar2sqfs does not say which error
    if status or broken:
        raise _failure(os.path.basename(argv[0]), "writing", called, status, text)


def _close(pipe: object) -> None:
    """Close the pipe to a writer, which may have ended before it has read all."""
    try:
        pipe.close()  # type: ignore[attr-defined]
    except BrokenPipeError:
        pass


def _enlarge(pipe: object) -> None:
    """Enlarge a pipe, for fewer switches between the processes; not beyond the user's quota."""
    try:
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)  # type: ignore[attr-defined]
    except OSError:
        pass


def _failure(program: str, doing: str, path: str, status: int, text: str) -> UdiError:
    """Return the UdiError for a program's exit status and what it said."""
    what = f"{doing} {path} failed"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number in (ENOSPC, EDQUOT):
        if (reason := os.strerror(number)) in text:
            where = mount_point(os.path.dirname(os.path.abspath(path)))
            return UdiError(
                f"{what}: {reason} (file system {where})",
                disk_hint(number, "put the store elsewhere with UDI_STORE"),
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
    """Return why `file` can't grow (the text of the kernel's error), "" where it can.

    Writes 4 MiB of zeros behind it: a file that nobody needs any more.
    """
    try:
        file.seek(0, os.SEEK_END)
        for _ in range(16):
            file.write(bytes(1 << 18))
            os.fsync(file.fileno())
    except OSError as err:
        return str(err.strerror)
    return ""


def check(path: str, called: str = "") -> None:
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
            f"reading {called or path} failed: corrupt squashfs: {why}",
            "remove the image and pull it again, or copy the file again",
        )


def _settle_root(path: str) -> None:
    """Set the root directory's time to 0: mksquashfs -tar knows no option for it.

    The superblock says where the root's inode is: the place of a metadata block in the inode table,
    shifted left by 16 bits, and the offset in that block. The four bytes may be in two blocks.
    """
    with open(path, "r+b") as file:
        found = Superblock(file.read(SUPERBLOCK_SIZE))
        block, offset = found.inode_table + (found.root >> 16), found.root & 0xFFFF
        for at in range(offset + _INODE_MTIME, offset + _INODE_MTIME + 4):
            start = block + at // _METADATA * (2 + _METADATA)
            file.seek(start)
            if not file.read(2)[1] & _UNCOMPRESSED:
                raise UdiError(f"writing {path} failed: mksquashfs has compressed the inode table")
            file.seek(start + 2 + at % _METADATA)
            file.write(b"\0")


def extract(path: str, directory: str, offset: int = 0, fd: int = -1) -> None:
    """Unpack the squashfs file `path` as `directory`, by unsquashfs, as the calling user.

    `offset` is where in the file it begins; `fd` is the file where it is open already, which is
    then read whatever is at `path`.

    Extended attributes and device nodes are left out. Only the caller may write to the tree, since
    others could change it, unlike a squashfs file. It is unpacked beside `directory` under a
    temporary name and renamed at the end, so that nobody finds an incomplete one; what a killed
    call has left is removed by the next. The caller holds a lock. Does nothing where `directory`
    exists. Raises UdiError.
    """
    if os.path.lexists(directory):
        return
    if fd < 0:
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
            # An unsquashfs whose caller was killed may still be writing there. Then removing fails;
            # its folders are gone by and by, so that it fails too.
            with suppress(OSError):
                remove_tree(os.path.join(parent, old))
    partial = mkdtemp(prefix=prefix, dir=parent)
    try:
        tree = os.path.join(partial, "root")
        name = os.path.abspath(path) if fd < 0 else f"/dev/fd/{fd}"
        words = ["-offset", str(offset)] if offset else []
        _unsquashfs(program, [*words, "-dest", tree, name], fd, directory)
        for root, _, _ in os.walk(tree):
            mode = stat.S_IMODE(os.lstat(root).st_mode)
            # rename(2) of a directory into another needs permission to write in it.
            os.chmod(root, mode & ~0o022 | (0o700 if root == tree else 0))
        os.rename(tree, directory)
    finally:
        remove_tree(partial)


def _unsquashfs(program: str, words: list[str], fd: int, directory: str) -> None:
    processors = str(len(os.sched_getaffinity(0)))
    argv = [program, "-quiet", "-no-progress", "-no-xattrs", "-processors", processors]
    argv += ["-da", "64", "-fr", "64", *words]
    tree = words[-2]
    done = subprocess.run(
        argv,
        pass_fds=() if fd < 0 else (fd,),
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
