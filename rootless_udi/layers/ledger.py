"""An estimate of the memory that a merge holds: the bytes that each thing of the image costs.

The constants are bytes.
"""

from rootless_udi.layers.bounds import HELD, HELD_SHARE
from rootless_udi.layers.tarfields import Stream

PATH = 110
"""A path kept in a table: the Python object and its place there, without the text itself."""
NODE, OTHER = 100, 240
"""What is kept of a file; of a folder or link, with its mode, times and target."""
WRITER = 250
"""What tar2sqfs keeps of a file, folder or link beside its names (mksquashfs: 700)."""
NOTE = 300
"""What the search for libraries keeps of a symbolic link, beside its name and target."""
STRINGS = 24 << 20
"""The most of a program's ELF string table that is read; two copies are held meanwhile."""
LOSER = 120
"""What is kept of a file that a later member of its layer replaces, or of a name in its folder."""
_XATTR = 100
"""An extended attribute, beside two copies of its name and value."""


class Ledger:
    """Counts bytes of memory; raises UdiError when there are more than `most`."""

    def __init__(self, compressed: int = 0) -> None:
        """`compressed` is the size of the layers, in bytes."""
        self.most = HELD + compressed // HELD_SHARE
        self.held = 0

    def take(self, size: int, stream: Stream) -> None:
        """Count `size` more bytes, fewer if negative; refuse the layer of `stream` at too many."""
        self.held += size
        if self.held > self.most:
            stream.refuse(
                f"its names, links and attributes, with those of the layers above, take more than "
                f"{self.most >> 20} MiB of memory",
                "this is far more than an image of its size has (a million files need 2 GB of "
                "layers); build it with fewer files, or put them into an archive",
            )

    def room(self) -> int:
        """Return how many bytes are left."""
        return self.most - self.held


def of_xattrs(xattrs: "dict[bytes, bytes]") -> int:
    """Return what extended attributes take, here and in the squashfs writer."""
    return sum(_XATTR + 2 * (len(name) + len(value)) for name, value in xattrs.items())


def of_texts(*texts: bytes) -> int:
    """Return what paths and targets take: kept twice as bytes and once as text."""
    return sum(3 * len(text) if text.isascii() else 10 * len(text) for text in texts)
