"""What the layers seen so far, from the top down, leave of lower ones; and the finished tree."""

from os import fsdecode, fsencode

from rootless_udi.layers.layer import Node, Other
from rootless_udi.layers.tarreader import DIRECTORY, FILE, SYMLINK
from rootless_udi.plan.mountpoints import DIRECTORIES, FILES, SYMLINKS, places


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
        if path.rpartition(b"/")[2] in _NAMES:
            # Which of these are at a mount point is known when all links are.
            self._taken.add(path)

    def directory(self, path: bytes, node: Node, sealed: bool) -> None:
        """Note a directory; the highest layer that lists it decides its mode and times."""
        have = self.others.get(path)
        if have is None or (node.explicit and not have.explicit and not sealed):
            self.others[path] = node

    def mount_points(self) -> bool:
        """Put in the directories, files and links of skeleton.py, where the image's links lead.

        Return whether they are all there. A file in the place of a directory, or the other way
        round, may be written already: it stays, and each start lays over it what must be there.
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
        """Put in the links of skeleton.py; only /etc/mtab replaces what the image has.

        Each start makes that one, and can't on a read-only image, unless it is there.
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
    """Return the parents of `path` and it, the highest first."""
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(2, len(names) + 1)]


_NAMES = frozenset(p.rpartition("/")[2].encode() for p in (*DIRECTORIES, *FILES, *SYMLINKS))
