"""Prefetch: read early what earlier starts of the same program read of an image.

A program that starts looks up, lists and reads some thousand things of its image, and waits for the
image server each time. What the first start on a node read is written to a file. At later starts a
process of its own reads the same while the container is still being made, so that the kernel has
it in its caches when the command wants it. Prefetching can't do harm: it changes nothing, and
nobody waits for it.

The file is in the folder `starts` of the state directory, which is this node's and the user's
alone. Its name (`launch.facts`) is a digest of the image's file and of what is run. It holds texts
that end with NUL: HEAD, then the questions in their order, with paths from the image's root:

    s PATH                  is looked up, whether or not it is there
    d PATH                  a directory that is listed
    l PATH                  a link whose target is read
    r OFFSET LENGTH PATH    a file of which a part is read, in bytes

`udi optimize` appends such texts to the image itself, made from profiles, so that the first start
on a node can prefetch too. The layout behind the image: for each kind of start its key (32 digits),
the text's length (4 bytes, little-endian) and the text; zeros up to a multiple of BLOCK; last, ASKS
and the length of all this (8 bytes).
"""

import os
from errno import ENOTCONN
from time import monotonic

from rootless_udi.base import trust
from rootless_udi.base.superblock import ASKS
from rootless_udi.base.syscalls import is_local
from rootless_udi.node import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rootless_udi.fuse.recorder import Question


FOLDER = "starts"
HEAD = b"udi start 1"

BLOCK = 4096
LARGEST = 256 << 10
"""Most bytes of such a file."""
_BEHIND = 1000
"""Most kinds of start that are appended to one image."""
BYTES = 64 << 20
"""Most bytes of file content to prefetch: programs and libraries; what is read later is data."""
FILES = 64
"""Most files in the folder; the oldest are removed."""
PATIENCE = 5.0
"""Seconds; while prefetching runs it keeps the mount alive."""


def pack(questions: "Iterable[Question]") -> bytes:
    """Return the text of a file with these questions: as many as it may hold, from the first on."""
    parts, size, room = [HEAD], len(HEAD), BYTES
    for kind, path, offset, length in questions:
        if length > room:
            continue
        room -= length
        word = kind.encode() + b" "
        if kind == "r":
            word += b"%d %d " % (offset, length)
        size += len(word) + len(path) + 1
        if size >= LARGEST:
            break
        parts.append(word + path)
    return b"\0".join([*parts, b""])


def unpack(data: bytes) -> "list[Question]":
    """Return the questions in a file's text. Raises ValueError where it is damaged."""
    head, *words, rest = data.split(b"\0")
    if head != HEAD or rest:
        raise ValueError("not the questions of a start")
    found: list[Question] = []
    room = BYTES
    for word in words:
        kind, path = word[:2], word[2:]
        if kind == b"r ":
            offset, length, path = path.split(b" ", 2)
            found.append(("r", path, _number(offset), _number(length)))
            room -= found[-1][3]
        elif kind in (b"s ", b"d ", b"l "):
            found.append((kind[:1].decode(), path, 0, 0))
        else:
            raise ValueError(f"an unknown question {word[:20]!r}")
    if room < 0:
        raise ValueError("more bytes than a start reads")
    return found


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ValueError(f"not a number: {text[:20]!r}")
    return int(text)


def tail(starts: "Mapping[str, Iterable[Question]]") -> bytes:
    """Return what to append to an image: the questions of `starts`, by key; b"" for none."""
    data = b""
    for key, questions in list(starts.items())[:_BEHIND]:
        packed = pack(questions)
        data += key.encode() + len(packed).to_bytes(4, "little") + packed
    if not data:
        return b""
    data += bytes(-(len(data) + 16) % BLOCK)
    return data + ASKS + (len(data) + 16).to_bytes(8, "little")


def behind(image: str, key: str) -> "list[Question]":
    """Return the questions for `key` that are appended to the file `image`; [] for none."""
    try:
        fd = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            last = os.pread(fd, 16, max(size - 16, 0))
            at, end = size - int.from_bytes(last[8:], "little"), size - 16
            for _ in range(_BEHIND):
                if last[:8] != ASKS or not 0 <= at < end:
                    break
                head = os.pread(fd, 36, at)
                length = int.from_bytes(head[32:], "little")
                if not 0 < length <= LARGEST:
                    # The zeros before ASKS, or a damaged length.
                    break
                if head[:32] == key.encode():
                    return unpack(os.pread(fd, length, at + 36))
                at += 36 + length
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass
    return []


def find(path: str) -> "list[Question]":
    """Return the questions in the file at `path`; [] for none. Remove the file if it is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if trust.refusal(fd):
                return []
            return unpack(os.read(fd, LARGEST))
        except ValueError:
            # So that the next start writes a new one.
            os.unlink(path)
        finally:
            os.close(fd)
    except OSError:
        pass
    return []


def keep(
    environ: "Mapping[str, str]", uid: int, name: str, questions: "Iterable[Question]"
) -> bool:
    """Write what a start asked to the file `name` in the state directory; tell whether it is there.

    Not where the directory is on a network file system, or there is no room. Raises OSError,
    UdiError.
    """
    _, directory = places.state(places.directories(environ, uid), make=False)
    if directory < 0:
        return False
    try:
        return is_local(directory) and put(directory, name, pack(questions))
    finally:
        os.close(directory)


def put(directory: int, name: str, data: bytes) -> bool:
    """Write `data` to the file `name` of FOLDER in the state directory of that descriptor; tell
    whether there is room for it. Raises OSError."""
    try:
        os.mkdir(FOLDER, 0o700, dir_fd=directory)
    except FileExistsError:
        pass
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(FOLDER, flags, dir_fd=directory)
    try:
        _thin_out(folder)
        new = f"{name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=folder)
        try:
            whole = os.write(fd, data) == len(data)
        except OSError:
            whole = False
        finally:
            os.close(fd)
        try:
            if whole:
                os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            whole = False
        if not whole:
            os.unlink(new, dir_fd=folder)
        return whole
    finally:
        os.close(folder)


def _thin_out(folder: int) -> None:
    """Remove the oldest files until there is room for one more; some may be unfinished ones."""
    names = os.listdir(folder)
    if len(names) < FILES:
        return
    ages = {}
    for one in names:
        try:
            ages[one] = os.stat(one, dir_fd=folder, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            pass
    for one in sorted(ages, key=lambda each: ages[each])[: len(ages) - FILES + 1]:
        try:
            os.unlink(one, dir_fd=folder)
        except OSError:
            pass


def drop(state: str, name: str, pid: int) -> None:
    """Remove the unfinished file of process `pid`, which has died, in the state directory."""
    try:
        os.unlink(f"{state}/{FOLDER}/{name}.{pid}")
    except OSError:
        pass


def over(watch: int | None) -> "Callable[[], bool]":
    """Return a function that tells whether to stop: after PATIENCE, or when `watch` is readable.

    `watch` is the inotify descriptor that becomes readable when the container has ended.
    """
    from select import POLLIN, poll

    gone, end = poll(), monotonic() + PATIENCE
    if watch is not None:
        gone.register(watch, POLLIN)
    return lambda: bool(gone.poll(0)) or monotonic() > end


def ask(questions: "Iterable[Question]", over: "Callable[[], bool]") -> None:
    """Read the things of `questions` from an image; the process's root directory is the image's.

    Stops when the image server has ended, or `over` says so.
    """
    opened, fd = b"", -1
    for kind, path, offset, length in questions:
        if over():
            return
        try:
            if kind == "s":
                os.lstat(path)
            elif kind == "d":
                _list(path or b".", over)
            elif kind == "l":
                os.readlink(path)
            else:
                if path != opened:
                    if fd >= 0:
                        os.close(fd)
                    opened, fd = path, -1
                    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            if error.errno == ENOTCONN:
                return
        except ValueError:
            return


def _list(path: bytes, over: "Callable[[], bool]") -> None:
    """List a directory, looking now and then whether to stop: a bad image's may be endless."""
    with os.scandir(path) as entries:
        for number, _ in enumerate(entries, 1):
            if number % 1000 == 0 and over():
                return
