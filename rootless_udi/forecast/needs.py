"""What a check wants to know of an image: the protocol of a gatherer.

A gatherer is shown all of an image once. What it returns is kept with the image's facts, so that
the next `udi check` reads nothing of the image. `imagefacts.GATHERERS` names all of them.
"""

from typing import Any, Protocol

from rootless_udi.base.records import Record


class ImageEntry(Record):
    """A file of an image, of any kind, as it lies there (nothing is followed).

    `path` begins with "/". `kind` is "file", "directory", "link", "device", "fifo" or "socket".
    `mode` are the permission bits with setuid, setgid, sticky (07777). `target` is a link's.
    Hard links are entries of their own.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str = ""


class FileContent(Protocol):
    """The bytes of a regular file, read as they are asked for, and kept while it is shown."""

    @property
    def head(self) -> bytes:
        """The first 4 KiB, or all of a shorter file."""
        ...

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from `at`, fewer at the file's end. Raises Unreadable."""
        ...


class Unreadable(Exception):
    """A file of the image can't be read: it is damaged, or (in a directory) not the caller's."""


class Gatherer(Protocol):
    """Is shown an image's files, in the order of their paths; see `imagefacts`.

    NAME is the key of its result in `facts["forecast"]`, VERSION a number to be raised when the
    result's form or meaning changes: older results are then made anew. Time is short (1 GB in
    2 seconds for all gatherers together): `wants` decides by the entry alone, and `file` reads as
    little as it can.
    """

    NAME: str
    VERSION: int

    def wants(self, entry: ImageEntry) -> bool:
        """Take note of an entry of any kind; tell whether `file` shall see a file's content."""
        ...

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        """Take a wanted file. Unreadable that it raises is noted under "unread" of the facts."""
        ...

    def result(self) -> Any:
        """Return what is to be kept, JSON's types throughout, bounded in size (100 KB)."""
        ...
