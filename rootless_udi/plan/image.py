"""An image, and how it becomes a file system, as data. Pure."""

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Root(Record):
    """How the image becomes a file system (by which server, or as a directory), and why so.

    `server` is the name of an image server of `rootless_udi.fuse.choice`, or "directory";
    `path` the squashfs file or the directory; `program` the C server's path where there is one;
    `trace` the file that our own server writes a profile to; `options` the C server's words.
    """

    server: str
    path: str
    program: str = ""
    reason: str = ""
    trace: str = ""
    options: tuple[str, ...] = ()


class Image(Record):
    """What is known of an image before its file is touched.

    `path` is the squashfs file ("" for a plain directory), `directory` the extracted tree, where
    it is or would be; `facts` the sidecar that the pull wrote, empty for a foreign file;
    `compressor` the squashfs file's, by name; `optimized` tells that `udi optimize` made it.
    """

    request: str
    digest: str
    path: str
    directory: str
    facts: "dict[str, Any]"
    compressor: str = ""
    optimized: bool = False

    @property
    def identifier(self) -> str:
        """The id that `shifterimg lookup` prints, HEX; for a foreign file the request."""
        return self.digest.rpartition(":")[2] or self.request
