"""What the layers seen so far, from the top down, leave of lower ones; and the finished tree."""

from rootless_udi.errors import UdiError
from rootless_udi.onelayer import Node, OneLayer
from rootless_udi.skeleton import DIRECTORIES, FILES, SYMLINKS
from rootless_udi.tarbytes import shown
from rootless_udi.tarstream import DIRECTORY, FILE, SYMLINK

_DIR, _CLOSED, _OPAQUE, _SEALED = 1, 2, 4, 8

REPLACED = frozenset({"/run", "/tmp", "/var/tmp"})
"""Where a symbolic link of the image becomes a directory: each start mounts something of its own
there. A link at /etc or another mount point is refused: files of the image are found through it."""


class Above:
    """What higher layers say about each path.

    DIR: they have a directory there. CLOSED: nothing of the lower layers is seen there or beneath.
    OPAQUE: a directory whose contents come from the higher layers alone. SEALED: so do its mode and
    times.
    """

    def __init__(self) -> None:
        self._flags: dict[bytes, int] = {}
        self._covered: dict[bytes, bool] = {}

    def _under(self, directory: bytes) -> bool:
        """Tell whether what lower layers have in `directory` is hidden."""
        chain = []
        while (known := self._covered.get(directory)) is None:
            chain.append(directory)
            if self._flags.get(directory, 0) & (_CLOSED | _OPAQUE):
                known = True
                break
            if not directory:
                known = False
                break
            directory = directory.rpartition(b"/")[0]
        for one in chain:
            self._covered[one] = known
        return known

    def hides(self, path: bytes, kind: str) -> bool:
        """Tell whether a `kind` at `path` in the next lower layer is hidden."""
        if not self._flags:
            return False
        flags = self._flags.get(path, 0)
        if flags & _CLOSED or (flags and kind is not DIRECTORY):
            return True
        return self._under(path.rpartition(b"/")[0])

    def seals(self, path: bytes) -> bool:
        """Tell whether a directory's mode and times do not come from the lower layers."""
        return bool(self._flags.get(path, 0) & _SEALED)

    def add(self, layer: OneLayer) -> None:
        """Take in a layer, the next one below those already here."""
        flags = self._flags
        for path, node in layer.nodes.items():
            have = flags.get(path, 0)
            if node.kind is DIRECTORY:
                if not have & _CLOSED:
                    flags[path] = have | _DIR
            else:
                flags[path] = self._closed(have)
        for path in layer.whiteouts:
            flags[path] = self._closed(flags.get(path, 0))
        for path in layer.opaques:
            flags[path] = flags.get(path, 0) | _OPAQUE
        self._covered.clear()

    @staticmethod
    def _closed(have: int) -> int:
        return have | _OPAQUE | _SEALED if have & _DIR else have | _CLOSED


class Tree:
    """The merged tree but for contents: what is written at the end; the standard mount points."""

    def __init__(self) -> None:
        self.others: dict[bytes, Node] = {}
        """Directories, symbolic links, FIFOs."""
        self.links: dict[bytes, bytes] = {}
        """Hard links: name -> the name that has the content."""
        self.empty: list[bytes] = []
        """Empty regular files to make."""
        self._taken: set[bytes] = set()

    def file(self, path: bytes) -> None:
        """Note that a regular file is at `path`."""
        if path in _POINTS:
            self._taken.add(path)

    def directory(self, path: bytes, node: Node, sealed: bool) -> None:
        """Note a directory; the highest layer that lists it decides its mode and times."""
        have = self.others.get(path)
        if have is None or (node.explicit and not have.explicit and not sealed):
            self.others[path] = node

    def mount_points(self) -> None:
        """Put in the directories, files and links of skeleton.py; refuse an image that can't."""
        for point in DIRECTORIES:
            path = point[1:].encode()
            kind = self._kind(path)
            if kind is None or (kind is SYMLINK and point in REPLACED):
                node = Node(path, None)
                node.mode = 0o1777 if point in ("/tmp", "/var/tmp") else 0o755
                self.others[path] = node
            elif kind is not DIRECTORY:
                self._refuse(point, kind, "a directory")
        for point in FILES:
            path = point[1:].encode()
            kind = self._kind(path)
            if kind is None or kind is SYMLINK:
                self.others.pop(path, None)
                self.empty.append(path)
            elif kind is not FILE:
                self._refuse(point, kind, "a file")
        for point, target in SYMLINKS.items():
            path = point[1:].encode()
            if self._kind(path) is None:
                node = Node(path, None)
                node.kind, node.mode, node.target = SYMLINK, 0o777, target.encode()
                self.others[path] = node

    def _kind(self, path: bytes) -> str | None:
        node = self.others.get(path)
        if node is not None:
            return node.kind
        return FILE if path in self._taken else None

    def _refuse(self, point: str, kind: str, wanted: str) -> None:
        node = self.others.get(point[1:].encode())
        what = f"the image has a {kind} there"
        if node is not None and node.kind is SYMLINK:
            what = f"the image has a symbolic link there, to {shown(node.target)}"
        raise UdiError(
            f"making the mount point {point} failed: {what}, and it must be {wanted}",
            f"every container gets something of the host's mounted there; make {point} {wanted} "
            "in the image",
        )


_POINTS = frozenset(p[1:].encode() for p in (*DIRECTORIES, *FILES, *SYMLINKS))
