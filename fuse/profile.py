"""What a start-up reads: traced while it runs, written, merged. Not imported by a plain launch.

A profile is a text file: a first line with its version, then one JSON array a read, in order,
[seconds since the first request, path, offset, length]. A directory's listing is a read of length 0
at offset 0, a symbolic link's target too: where their inodes lie matters as well.
"""

import json
import os
from time import monotonic

from rootless_udi.errors import UdiError
from rootless_udi.fuse.filesystem import ROOT, Buffer, FileSystem
from rootless_udi.fuse.reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

VERSION = "udi profile 1"


class Read:
    """One read of a start-up: `path` from the image's root, without a leading slash."""

    __slots__ = ("length", "offset", "path", "seconds")

    def __init__(self, seconds: float, path: bytes, offset: int, length: int) -> None:
        self.seconds = seconds
        self.path = path
        self.offset = offset
        self.length = length


class Tracer:
    """Makes file systems that note what is read of them. Stands where FileSystem stands."""

    def __init__(self) -> None:
        self.reads: list[tuple[float, int, int, int]] = []
        self.names: dict[int, tuple[int, bytes]] = {}

    def __call__(self, reader: Reader, cache_bytes: int, threads: int) -> FileSystem:
        """Return a file system as FileSystem(...) would be."""
        return _Traced(self, reader, cache_bytes, threads)

    def path(self, node: int) -> bytes:
        """Return a path of `node` (of the first name that was looked up of a hard link)."""
        parts: list[bytes] = []
        while node != ROOT and node in self.names and len(parts) < 4096:
            node, name = self.names[node]
            parts.append(name)
        return b"/".join(reversed(parts))

    def save(self, path: str) -> None:
        """Write the profile to `path`. Raises OSError."""
        start = self.reads[0][0] if self.reads else 0.0
        with open(f"{path}.part", "w") as file:
            file.write(VERSION + "\n")
            for when, node, offset, length in self.reads:
                name = os.fsdecode(self.path(node))
                file.write(json.dumps([round(when - start, 6), name, offset, length]) + "\n")
        os.replace(f"{path}.part", path)


class _Traced(FileSystem):
    def __init__(self, tracer: Tracer, reader: Reader, cache_bytes: int, threads: int) -> None:
        super().__init__(reader, cache_bytes, threads)
        self._tracer = tracer

    def offer_to(self, offer: "Callable[[int, int, Buffer], object]") -> None:
        """Offer nothing: the kernel is to ask for whatever is read."""

    def lookup(self, parent: int, name: bytes) -> int:
        node = super().lookup(parent, name)
        if node:
            self._tracer.names.setdefault(node, (parent, name))
            self._note(node, 0, 0)
        return node

    def entries(self, node: int, cookie: int) -> "Iterator[tuple[bytes, int, int, int, int]]":
        if cookie == 0:
            self._note(node, 0, 0)
        for entry in super().entries(node, cookie):
            if entry[1]:
                self._tracer.names.setdefault(entry[1], (node, entry[0]))
            yield entry

    def read(self, node: int, offset: int, size: int) -> "list[Buffer]":
        self._note(node, offset, size)
        return super().read(node, offset, size)

    def readlink(self, node: int) -> bytes:
        self._note(node, 0, 0)
        return super().readlink(node)

    def _note(self, node: int, offset: int, length: int) -> None:
        self._tracer.reads.append((monotonic(), node, offset, length))


def serve_traced(image: "str | int", fuse_fd: int, target: str, **options: "Any") -> None:
    """Serve as `raw.serve` does, with its options, and write the profile to `target` at the end."""
    from rootless_udi.fuse.raw import serve

    tracer = Tracer()
    try:
        serve(image, fuse_fd, filesystem=tracer, **options)
    finally:
        tracer.save(target)


def load(path: str) -> list[Read]:
    """Return the reads of the profile at `path`. Raises UdiError where it is none; OSError."""
    hint = "make one with `udi profile IMAGE -- COMMAND`"
    found = []
    with open(path) as file:
        try:
            if file.readline().rstrip("\n") != VERSION:
                raise UdiError(f"reading the profile failed on {path}: not a profile", hint)
            for number, line in enumerate(file, 2):
                try:
                    seconds, name, offset, length = json.loads(line)
                    one = Read(float(seconds), os.fsencode(name), int(offset), int(length))
                except (ValueError, TypeError):
                    why = f"line {number} is damaged"
                    raise UdiError(f"reading the profile failed on {path}: {why}", hint) from None
                found.append(one)
        except UnicodeDecodeError:
            raise UdiError(f"reading the profile failed on {path}: not a profile", hint) from None
    return found


def merge(profiles: "Iterable[list[Read]]") -> list[Read]:
    """Return the reads of several start-ups as one, each range of a file once.

    In the order of the earliest time that any profile has for it: what all start-ups read first
    comes first, whichever was traced on a slower node.
    """
    first: dict[tuple[bytes, int, int], Read] = {}
    for profile in profiles:
        for rank, one in enumerate(profile):
            key = (one.path, one.offset, one.length)
            known = first.get(key)
            if known is None or rank < known.seconds:
                first[key] = Read(float(rank), one.path, one.offset, one.length)
    return sorted(first.values(), key=lambda one: one.seconds)
