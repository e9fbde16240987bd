"""What the layers seen so far, from the top down, leave of lower ones; and the finished tree."""

from os import fsdecode, fsencode

from rootless_udi.ledger import PATH
from rootless_udi.onelayer import Node, OneLayer, Other
from rootless_udi.skeleton import DIRECTORIES, FILES, SYMLINKS, places
from rootless_udi.tarstream import DIRECTORY, FILE, SYMLINK

_DIR, _CLOSED, _OPAQUE, _SEALED = 1, 2, 4, 8


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

    def add(self, layer: OneLayer) -> int:
        """Take in a layer, the next one below those already here; return the bytes that takes."""
        flags = self._flags
        new = (p for paths in (layer.nodes, layer.whiteouts, layer.opaques) for p in paths)
        size = sum(PATH + len(path) for path in new if path not in flags)
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
        return size

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
