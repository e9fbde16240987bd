"""Profiles: files that say what a program's start read of an image, for `udi optimize`.

This module records a profile (`Tracer`), reads it and merges several. Usual starts don't import it.

A profile is a text file. Its first line has a version and the key of the start (see
`rootless_udi.serve.prefetch`). Each other line is one read, in order, as a JSON array: [seconds
since the first one, path, offset, length, kind]. `kind` is a letter of `serve.prefetch`; offset and
length in bytes are 0 for all but "r", a part of a file. Look-ups, listings and links are in it too:
their inodes can be put first in an image as well.
"""

import json
import os
import re
from time import monotonic

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.fuse.filesystem import ROOT, Buffer, FileSystem
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.recorder import arranged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from rootless_udi.fuse.recorder import Question

VERSION = "udi profile 1"
KEY = re.compile("([0-9a-f]{32})?").fullmatch


class Read:
    """One read of a start: `path` is from the image's root, without a leading slash."""

    __slots__ = ("kind", "length", "offset", "path", "seconds")

    def __init__(
        self, seconds: float, path: bytes, offset: int, length: int, kind: str = "r"
    ) -> None:
        self.seconds = seconds
        self.path = path
        self.offset = offset
        self.length = length
        self.kind = kind


class Tracer:
    """Makes file systems that record what is read of them.

    An instance stands in the place of the class `FileSystem`, as the argument of `serve`.
    """

    def __init__(self) -> None:
        self.reads: list[tuple[float, int, bytes, int, int, str]] = []
        self.names: dict[int, tuple[int, bytes]] = {}

    def __call__(self, reader: Reader, cache_bytes: int, threads: int) -> FileSystem:
        """Return a file system as FileSystem(...) would be."""
        return _Traced(self, reader, cache_bytes, threads)

    def path(self, node: int) -> bytes:
        """Return a path of `node`: the first one that was seen, if it has several hard links."""
        parts: list[bytes] = []
        while node != ROOT and node in self.names and len(parts) < 4096:
            node, name = self.names[node]
            parts.append(name)
        return b"/".join(reversed(parts))

    def save(self, path: str, key: str = "") -> None:
        """Write the profile to `path`; `key` is that of the start. Raises OSError."""
        start = self.reads[0][0] if self.reads else 0.0
        # A random name: in a folder like /tmp, another user may own any name that can be guessed.
        part = f"{path}.{os.urandom(8).hex()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(part, flags, 0o644), "w") as file:
            file.write(f"{VERSION} {key}".rstrip() + "\n")
            for when, node, name, *rest in self.reads:
                where = os.fsdecode(b"/".join(filter(None, (self.path(node), name))))
                file.write(json.dumps([round(when - start, 6), where, *rest]) + "\n")
        os.replace(part, path)


class _Traced(FileSystem):
    def __init__(self, tracer: Tracer, reader: Reader, cache_bytes: int, threads: int) -> None:
        super().__init__(reader, cache_bytes, threads)
        self._tracer = tracer

    def offer_to(self, offer: "Callable[[int, int, Buffer], object]") -> None:
        """Offer nothing to the kernel: it shall ask for everything, so that all is recorded."""

    def lookup(self, parent: int, name: bytes) -> int:
        node = super().lookup(parent, name)
        if node:
            self._tracer.names.setdefault(node, (parent, name))
        self._note(parent, "s", name=name)
        return node

    def entries(self, node: int, cookie: int) -> "Iterator[tuple[bytes, int, int, int, int]]":
        if cookie == 0:
            self._note(node, "d")
        for entry in super().entries(node, cookie):
            if entry[1]:
                self._tracer.names.setdefault(entry[1], (node, entry[0]))
            yield entry

    def read(self, node: int, offset: int, size: int) -> "list[Buffer]":
        self._note(node, "r", offset, size)
        return super().read(node, offset, size)

    def readlink(self, node: int) -> bytes:
        self._note(node, "l")
        return super().readlink(node)

    def _note(
        self, node: int, kind: str, offset: int = 0, length: int = 0, name: bytes = b""
    ) -> None:
        self._tracer.reads.append((monotonic(), node, name, offset, length, kind))


def serve_traced(
    image: "str | int", fuse_fd: int, target: str, key: str = "", **options: "Any"
) -> None:
    """Serve as `raw_transport.serve` does, with its options; write the profile to `target` at the
    end.

    `key` is the start's, "" where it is not known. Raises what `serve` raises, and OSError.
    """
    from rootless_udi.fuse.raw_transport import serve

    tracer = Tracer()
    try:
        serve(image, fuse_fd, filesystem=tracer, **options)
    finally:
        tracer.save(target, key)


class ReadProfile(list[Read]):
    """The reads of a start, in order, and its `key`, "" where it is not known."""

    key = ""


def load(path: str) -> ReadProfile:
    """Return the profile at `path`.

    Raises UdiError where it is no profile or others may have written it; OSError.
    """
    hint = "make one with `udi profile IMAGE -- COMMAND`"
    found = ReadProfile()
    with open(trust.opened(path, what="the profile")) as file:
        try:
            head = file.readline().rstrip("\n")
            found.key = head.removeprefix(VERSION).removeprefix(" ")
            if head.rstrip() != f"{VERSION} {found.key}".rstrip() or not KEY(found.key):
                raise UdiError(f"reading the profile failed on {path}: not a profile", hint)
            for number, line in enumerate(file, 2):
                try:
                    seconds, name, offset, length, kind = json.loads(line)
                    if kind not in tuple("sdlr") or min(offset, length) < 0:
                        raise ValueError(kind)
                    where = os.fsencode(name), int(offset), int(length)
                    one = Read(float(seconds), *where, kind)
                except (ValueError, TypeError):
                    why = f"line {number} is damaged"
                    raise UdiError(f"reading the profile failed on {path}: {why}", hint) from None
                found.append(one)
        except UnicodeDecodeError:
            raise UdiError(f"reading the profile failed on {path}: not a profile", hint) from None
    return found


def merge(profiles: "Iterable[list[Read]]") -> list[Read]:
    """Return the reads of several starts as one list, each range of a file once.

    A read is placed by its earliest position in any of the profiles, not by its time: nodes differ
    in speed.
    """
    first: dict[tuple[bytes, int, int, str], Read] = {}
    for profile in profiles:
        for rank, one in enumerate(profile):
            key = (one.path, one.offset, one.length, one.kind)
            known = first.get(key)
            if known is None or rank < known.seconds:
                first[key] = Read(float(rank), *key)
    return sorted(first.values(), key=lambda one: one.seconds)


def questions(profiles: "Iterable[ReadProfile]") -> "dict[str, list[Question]]":
    """Return key -> questions of each profile that has a key; of two with one key the later."""
    return {
        one.key: arranged((read.kind, read.path, read.offset, read.length) for read in one)
        for one in profiles
        if one.key
    }
