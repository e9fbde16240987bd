"""What a remote image is, found out before it is mounted: its beginning, its list, its facts.

Of a file on a web server all that is in the file itself. Of an image in a registry it is in a
squashfs that was pushed for it (`pull.artifact`), where there is one that is believed.
"""

import os

from rootless_udi.base import windows
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.base.superblock import HEAD, INSIDE, MAGIC, SIZE, USED
from rootless_udi.base.windows import WINDOW, WindowList, place
from rootless_udi.fuse.format import Corrupt, Superblock
from rootless_udi.plan.reference import platform_of, web
from rootless_udi.remote.origins import Web
from rootless_udi.remote.ranges import Ranges
from rootless_udi.store import journal
from rootless_udi.store.resolve import parsed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rootless_udi.remote.origins import Origin

_LAST = 2
"""Most windows of tables that are fetched with what is behind the squashfs."""
_BEHIND_MAX = 80 << 20
"""Most bytes behind a squashfs: its list of windows, its facts and what starts ask."""


class RemoteRequest(Record):
    """What udi-run or `udi fetch` asks for: an image's name or URL.

    `timeout` in seconds. `folder` is the store in which windows are kept, "" for none; with `fill`
    it is to get the whole image.
    """

    image: str
    timeout: float
    insecure: bool = False
    fill: bool = False
    platform: str = ""
    folder: str = ""


class Remote(Record):
    """An image elsewhere: `used` bytes of squashfs, of which `head` is the beginning; `tail` is
    what is behind it in the file, `known` the list of its windows, if there is one.

    `digest` is what the image is called in a store, "" where nothing proves it; `names` its names
    there, each (platform key, name). `last` is the squashfs from a window's beginning to its end,
    where that has come with the tail.
    """

    ranges: Ranges
    head: memoryview
    used: int
    tail: memoryview
    known: WindowList | None
    digest: str
    facts: "Mapping[str, Any]"
    names: tuple[tuple[str, str], ...] = ()
    last: memoryview = memoryview(b"")

    @property
    def size(self) -> int:
        return place(self.used) + len(self.tail) if self.tail else self.used


def of_web(asked: RemoteRequest) -> Remote:
    """Return the image at a URL. Raises UdiError."""
    url, _, _ = asked.image.partition("#")
    origin = Web(url, asked.timeout, asked.insecure)
    ranges, head, used = begun(origin, asked.timeout)
    last, tail = end(ranges, head, used, asked.folder)
    try:
        known = windows.behind(lambda at, most: bytes(tail[at - place(used) :][:most]), used)
    except ValueError:
        known = None  # whoever reads the image will say what is wrong
    if known is None:
        return Remote(ranges, head, used, tail, None, "", {})
    name, key = web(asked.image).canonical, platform_of(os.uname().machine).key()
    facts = {"version": 1, **_inside(bytes(tail)), "digest": known.digest, "reference": name}
    return Remote(ranges, head, used, tail, known, known.digest, facts, ((key, name),), last)


def end(ranges: Ranges, head: memoryview, used: int, folder: str) -> tuple[memoryview, memoryview]:
    """Return `Remote.last` and `Remote.tail`, which come with one request: a start reads the tables
    next, and a request is a round trip. The tail alone where the store at `folder` seems to have
    windows of this image. Raises UdiError."""
    at = place(used) if folder and journal.kept(folder, ranges.size) else _last(head, used)
    rest = ranges.part(at, ranges.size)
    return rest[: max(used - at, 0)], rest[place(used) - at :]


def _last(head: memoryview, used: int) -> int:
    """Return where the window begins in which an image's tables do; nearer to its end where they
    are long; where the squashfs ends if that is in the first window."""
    if used <= WINDOW:
        return place(used)
    try:
        tables = int(Superblock(bytes(head[:HEAD])).inode_table)
    except Corrupt:
        tables = used  # whoever reads the image will say what is wrong
    end = (used - 1) // WINDOW
    return max(min(tables // WINDOW, end), end - _LAST + 1, 1) * WINDOW


def begun(origin: "Origin", timeout: float) -> tuple[Ranges, memoryview, int]:
    """Return what reads a squashfs file, its first window, and the size of the squashfs in it.

    Raises UdiError for what is none.
    """
    ranges = Ranges(origin, timeout)
    head = ranges.begin(WINDOW)
    name = ranges.shown
    if len(head) < SIZE or int.from_bytes(head[:4], "little") != MAGIC:
        raise UdiError(f"image {name} is no squashfs file", "is it the URL of a web page?")
    used = int.from_bytes(head[USED], "little")
    if used > ranges.size or ranges.size - place(used) > _BEHIND_MAX:
        raise UdiError(f"image {name} is no whole squashfs file: {ranges.size} bytes of {used}")
    return ranges, head, used


def _inside(tail: bytes) -> "dict[str, Any]":
    """Return the facts that `udi export` wrote behind the squashfs; {} for none or damaged ones.

    They end with the mark and their length; what `udi optimize` appends may follow.
    """
    end = tail.rfind(INSIDE)
    length = int.from_bytes(tail[end + 8 : end + 16], "little")
    start = end + 16 - length
    if end < 0 or not 0 <= start < end:
        return {}
    try:
        return parsed(tail[start:end].rstrip(b"\0"))
    except ValueError:
        return {}
