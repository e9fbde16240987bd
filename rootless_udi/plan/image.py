"""An image, and how it becomes a file system, as data. Pure."""

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Root(Record):
    """How the image becomes a file system: served by FUSE, or as a directory.

    `server` is an image server's name (`rootless_udi.fuse.choice.NAMES`), or "directory". `path` is
    the squashfs file or the directory. `program` is the path of a server that is another program,
    `options` are its further arguments. `reason` says why this server was chosen. `trace` is the
    file to which our own server writes a profile, "" for none. `offset` is where in its file the
    squashfs begins, in bytes.
    """

    server: str
    path: str
    program: str = ""
    reason: str = ""
    trace: str = ""
    options: tuple[str, ...] = ()
    offset: int = 0


class Image(Record):
    """What is known of an image before it is mounted.

    `request` is the image as the caller named it, `digest` its digest ("" if unknown). `path` is
    the squashfs file, "" for an image that is a directory. `directory` is where the extracted image
    is or would be. `facts` is what `udi pull` noted of the image, empty for another tool's file.
    `compressor` is the squashfs file's, by name. `optimized`: `udi optimize` made the file.
    `offset` is where in the file the squashfs begins, in bytes.
    """

    request: str
    digest: str
    path: str
    directory: str
    facts: "dict[str, Any]"
    compressor: str = ""
    optimized: bool = False
    offset: int = 0

    @property
    def identifier(self) -> str:
        """The id that `shifterimg lookup` prints: the digest's hexadecimal part, else `request`."""
        return self.digest.rpartition(":")[2] or self.request
