"""What learns of the files of an image while its layers are merged."""

from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from os import fsdecode
from typing import Protocol

HEAD = 64
"""First bytes of a file, by which an Observer tells whether it wants all of it."""


class Observer(Protocol):
    """Is told what is in the image while it is merged. Paths are as os.fsdecode gives them.

    After `Again` everything is told once more: of calls for one path the last one counts.
    """

    def wants(self, path: str, size: int, head: bytes) -> bool:
        """Tell whether `file` is to be called with the content of this regular file.

        `head` is its first HEAD bytes, or all if it is shorter. Called only for files of at most
        bounds.OBSERVED bytes for which there is memory left.
        """

    def file(self, path: str, data: bytes) -> None:
        """Take the content of a file that was wanted."""

    def link(self, path: str, target: str) -> None:
        """Take a symbolic link; `target` as it is."""

    def same(self, path: str, other: str) -> None:
        """Take a hard link: `path` is another name of the file `other`."""


def observed(
    observer: Observer, path: bytes, size: int, body: Iterator[memoryview]
) -> Iterator[memoryview]:
    """Show a file to `observer`; return its content again, `size` bytes, as `body` yields it."""
    first = next(body, memoryview(b""))
    while len(first) < min(HEAD, size):
        first = memoryview(bytes(first) + bytes(next(body)))
    name = "/" + fsdecode(path)
    if not observer.wants(name, size, bytes(first[:HEAD])):
        return chain((first,), body)
    held = BytesIO()  # b"".join would hold all pieces and the whole at once
    for piece in chain((first,), body):
        held.write(piece)
    data = held.getvalue()
    del held
    observer.file(name, data)
    return iter((memoryview(data),))
