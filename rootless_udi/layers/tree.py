"""The final image while its layers are merged: all of its tree but the contents of files."""

from os import fsdecode, fsencode

from rootless_udi.layers.layer import Node, Other
from rootless_udi.layers.tarreader import DIRECTORY, FILE, SYMLINK
from rootless_udi.plan.mountpoints import DIRECTORIES, FILES, SYMLINKS, places


class Tree:
    """The final image: directories, links and names, which are written after the files' contents.

    Also adds the mount points that each container needs (`plan.mountpoints`), so that a start finds
    them in the image. Paths are relative to the root, without a slash at either end.
    """

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
        if path.rpartition(b"/")[2] in _NAMES:
            # It may be at a mount point. Which paths those are depends on the symbolic links, and
            # all of them are known only at the end (mount_points).
            self._taken.add(path)

    def directory(self, path: bytes, node: Node, sealed: bool) -> None:
        """Note a directory; the highest layer that lists it decides its mode and times.

        `sealed` is said of a directory whose mode and times no lower layer may set (`Above.seals`).
        """
        have = self.others.get(path)
        if have is None or (node.explicit and not have.explicit and not sealed):
            self.others[path] = node

    def mount_points(self) -> bool:
        """Add the directories, files and links of `plan.mountpoints` that the image lacks.

        They go where the image's own symbolic links lead. Return whether all of them are there now.
        Where the image has a file in the place of a directory, or a directory in the place of a
        file, that stays, since its content may be written already; then each start of a container
        mounts what it needs over it.
        """
        whole = True
        where = places(self._link, lambda path: self._kind(path) is DIRECTORY)
        for point, place in where.items():
            for path in _parents(place):
                kind = self._kind(path)
                if kind is FILE:
                    whole = False
                    break
                if kind is not DIRECTORY:
                    last = path == place and point in ("/tmp", "/var/tmp")
                    self._put(path, DIRECTORY, 0o1777 if last else 0o755)
        etc = where["/etc"]
        for point in FILES:
            path = f"{etc}/{point.rpartition('/')[2]}"
            if self._kind(path) is DIRECTORY or self._kind(etc) is not DIRECTORY:
                whole = False
            elif self._kind(path) is not FILE:
                self.others.pop(fsencode(path[1:]), None)
                self.empty.append(fsencode(path[1:]))
        return self._links(where) and whole

    def _links(self, where: dict[str, str]) -> bool:
        """Add the symbolic links of `plan.mountpoints`; only /etc/mtab replaces what the image has.

        Each start needs /etc/mtab as it is there, and can't make it in a read-only image.
        """
        whole = True
        for point, target in SYMLINKS.items():
            folder, _, name = point.rpartition("/")
            path = f"{where[folder]}/{name}"
            kind, ours = self._kind(path), point == "/etc/mtab"
            if self._kind(where[folder]) is not DIRECTORY or (ours and kind in (FILE, DIRECTORY)):
                whole = False
            elif kind is None or ours:
                self._put(path, SYMLINK, 0o777, target)
        return whole

    def _put(self, path: str, kind: str, mode: int, target: str = "") -> None:
        node = Other(fsencode(path[1:]))
        node.kind, node.mode, node.target = kind, mode, fsencode(target)
        self.others[node.path] = node

    def _kind(self, path: str) -> str | None:
        node = self.others.get(fsencode(path[1:]))
        if node is not None:
            return node.kind
        return FILE if fsencode(path[1:]) in self._taken else None

    def _link(self, path: str) -> str | None:
        node = self.others.get(fsencode(path[1:]))
        return fsdecode(node.target) if node is not None and node.kind is SYMLINK else None


def _parents(path: str) -> list[str]:
    """Return the directories above `path`, the highest first, and last `path` itself."""
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(2, len(names) + 1)]


_NAMES = frozenset(p.rpartition("/")[2].encode() for p in (*DIRECTORIES, *FILES, *SYMLINKS))
