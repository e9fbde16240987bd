"""The tree of one layer, from its tar's members in their order, without the layers below it.

Later members replace earlier ones, as when a tool unpacks the tar into an empty directory.
Whiteouts, which remove paths of the layers below (OCI image-spec 1.1, layer.md), are kept apart.
"""

from rootless_udi.layers.bounds import STEPS, STEPS_EACH
from rootless_udi.layers.ledger import LOSER, NODE, OTHER, PATH, Ledger, of_xattrs
from rootless_udi.layers.tarfields import Stream, shown
from rootless_udi.layers.tarreader import DIRECTORY, FILE, LINK, SYMLINK, Member

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
"""Begins names of aufs' own files, which old versions of Docker left in layers."""
_MOST_LINKS = 40
"""Symbolic links followed for one member, as the kernel's own limit (path_resolution(7))."""


_NONE: dict[bytes, bytes] = {}


class Replaced(Exception):
    """A file whose content is already written has been replaced by a later member."""


class Node:
    """A regular file that a path holds. Hard links of one layer share one node.

    `path` and `ordinal` (which member of the tar) are those of its member. `primary` is the name
    that its content was written under, None before that. Since there are very many files, a node
    has no more than that: mode, times and attributes are read from the member, which is still at
    hand when its content is written.
    """

    __slots__ = ("ordinal", "path", "primary")
    kind: str = FILE
    target: bytes = b""
    mode: int = 0
    mtime: int = 0
    xattrs: dict[bytes, bytes] = _NONE
    dropped: int = 0
    lost: bool = False
    explicit: bool = True

    def __init__(self, path: bytes, ordinal: int = -1) -> None:
        self.path = path
        self.ordinal = ordinal
        self.primary: bytes | None = None


class Other(Node):
    """What a path holds that is no regular file.

    `kind` LINK is a hard link to `target` in the layers below; `lost` is True where an earlier
    whiteout has removed that. `explicit` is False for a directory that has no member of its own and
    is there because of what is in it.
    """

    __slots__ = ("dropped", "explicit", "kind", "lost", "mode", "mtime", "target", "xattrs")

    def __init__(self, path: bytes, member: Member | None = None, ordinal: int = -1) -> None:
        super().__init__(path, ordinal)
        self.lost = False
        self.explicit = member is not None
        if member is None:
            self.kind, self.mode, self.mtime, self.target = DIRECTORY, 0o755, 0, b""
            self.xattrs, self.dropped = _NONE, 0
        else:
            self.kind, self.mode, self.mtime = member.kind, member.mode, member.mtime
            self.target, self.xattrs = member.target, member.xattrs
            self.dropped = member.dropped


class OneLayer:
    """The paths of one layer as its members arrive; a refusal names the offset in `stream`.

    `nodes` has what is at each path, `linked` the paths that hard links to this layer's own files
    have, `losers` the ordinals of files that a later member replaced. `held` are the bytes that
    `ledger` has counted for this layer alone.
    """

    def __init__(self, stream: Stream, ledger: Ledger) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.linked: dict[bytes, None] = {}
        self.whiteouts: set[bytes] = set()
        self.opaques: set[bytes] = set()
        self.losers: set[int] = set()
        self.held = 0
        self._stream = stream
        self._ledger = ledger
        self._followed = 0
        self._steps = STEPS
        self._inside: dict[bytes, list[bytes]] | None = None
        """Folder -> paths in it; made when a folder is first replaced, which is rare."""

    def _take(self, size: int) -> None:
        self.held += size
        self._ledger.take(size, self._stream)

    def _step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            self._stream.refuse(
                "its links lead through more folders than those of any image do",
                "it is made to keep its reader busy",
            )

    def add(self, member: Member, ordinal: int) -> Node | None:
        """Apply one member; return its node, None for whiteouts and hard links.

        Raises Replaced where it replaces a file that has been written already.
        """
        path = member.path
        self._steps += STEPS_EACH
        if _WHITEOUT in path and self._whiteout(path):
            return None
        if not path:
            if member.kind is not DIRECTORY:
                self._stream.refuse(f"the root directory is a {member.kind} in it")
            return None
        parent, _, name = path.rpartition(b"/")
        if parent:
            found = self.nodes.get(parent)
            if found is None or found.kind is not DIRECTORY:
                self._followed = 0
                path = _join(self._directory(parent, path), name)
        if member.kind is LINK:
            self._link(path, member, ordinal)
            return None
        node = Node(path, ordinal) if member.kind is FILE else Other(path, member, ordinal)
        self._place(path, node)
        return node

    def _place(self, path: bytes, node: Node) -> None:
        old = self.nodes.get(path)
        if old is None:
            self._new(path, node)
        elif not (old.kind is DIRECTORY and node.kind is DIRECTORY):
            if old.kind is DIRECTORY:
                self._empty(path)
            self._lose(path, old)
        if node.target or node.xattrs:
            self._take(len(node.target) + of_xattrs(node.xattrs))
        self.nodes[path] = node

    def _new(self, path: bytes, node: Node) -> None:
        """Put a node where there is none."""
        size = PATH + len(path)
        if node.kind is FILE:
            self._take(size + NODE)
        else:  # a directory's path may also be kept by `Above`
            self._take((2 * size if node.kind is DIRECTORY else size) + OTHER)
        self.nodes[path] = node
        if self._inside is not None:
            self._note(path)

    def _note(self, path: bytes) -> None:
        assert self._inside is not None
        self._take(LOSER)
        self._inside.setdefault(path.rpartition(b"/")[0], []).append(path)

    def _empty(self, path: bytes) -> None:
        """Remove all that is in a folder, without a look at all other nodes."""
        if self._inside is None:
            self._inside = {}
            for name in self.nodes:
                self._note(name)
        folders = [path]
        while folders:
            for name in self._inside.pop(folders.pop(), ()):
                node = self.nodes.pop(name, None)
                if node is not None:
                    self._lose(name, node)
                    folders.append(name)

    def _lose(self, path: bytes, node: Node) -> None:
        if node.kind is FILE and node.path == path:
            if node.primary is not None:
                raise Replaced
            self._take(LOSER)
            self.losers.add(node.ordinal)

    def _link(self, path: bytes, member: Member, ordinal: int) -> None:
        parent, _, name = member.target.rpartition(b"/")
        self._followed = 0
        target = _join(self._directory(parent, path, make=False), name) if parent else name
        if target in (path, b""):
            self._stream.refuse(f"hard link {shown(path)} to {'itself' if target else 'the root'}")
        node = self.nodes.get(target)
        if node is None:
            node = Other(path, member, ordinal)
            node.target = target
            # The order in the tar counts, as for tools that unpack it: a later whiteout removes the
            # name alone, since this link keeps the content.
            node.lost = self.removes(target)
        elif node.kind is DIRECTORY:
            self._stream.refuse(f"hard link {shown(path)} to the directory {shown(target)}")
        elif self.nodes.get(path) is node:
            return
        self._place(path, node)
        if node.kind is FILE:
            self._take(PATH)
            self.linked[path] = None

    def _directory(self, path: bytes, member: bytes, make: bool = True) -> bytes:
        """Return where directory `path` is, following this layer's own symbolic links.

        Directories that are missing on the way are made. `member` is named in refusals.
        """
        where = b""
        names = path.split(b"/")
        self._step(len(names))
        for name in names:
            where = _join(where, name)
            node = self.nodes.get(where)
            if node is None:
                if make:
                    self._new(where, Other(where))
            elif node.kind is SYMLINK:
                where = self._follow(where, node.target, member, make)
            elif node.kind is not DIRECTORY:
                self._stream.refuse(
                    f"{shown(member)} is beneath {shown(where)}, a {node.kind} in the same layer"
                )
        return where

    def _follow(self, path: bytes, target: bytes, member: bytes, make: bool) -> bytes:
        """Follow symbolic link `path`; refuse one that leads out of the image."""
        what = f"{shown(member)} goes through symbolic link {shown(path)} -> {shown(target)}"
        self._followed += 1
        if self._followed > _MOST_LINKS:
            self._stream.refuse(f"{what}: too many levels of symbolic links")
        # An absolute one begins at the image's root, as it will in the container.
        where = b"" if target.startswith(b"/") else path.rpartition(b"/")[0]
        for name in target.split(b"/"):
            if name == b"..":
                if not where:
                    self._stream.refuse(f"{what}, which leads out of the image")
                where = where.rpartition(b"/")[0]
            elif name not in (b"", b"."):
                where = self._directory(_join(where, name), member, make)
        return where

    def _whiteout(self, path: bytes) -> bool:
        """Take `path` as a whiteout if it is one."""
        if path.startswith(_AUFS) and path != _OPAQUE:
            return True  # aufs' own book-keeping at the root, no file of the image
        parent, _, name = path.rpartition(b"/")
        if parent.startswith(_WHITEOUT) or b"/" + _WHITEOUT in parent:
            self._stream.refuse(f"{shown(path)} is beneath a whiteout")
        if not name.startswith(_WHITEOUT):
            return False
        if name == _OPAQUE:
            self._take(PATH + len(path))
            self.opaques.add(parent)
        elif name[4:] in (b"", b".", b".."):
            self._stream.refuse(f"whiteout {shown(path)} of {shown(name[4:]) or 'nothing'}")
        elif not name.startswith(_AUFS):
            self._take(PATH + len(path))
            self.whiteouts.add(_join(parent, name[4:]))
        return True

    def finish(self) -> None:
        """At the end: make the directories that are implied by an opaque whiteout alone."""
        for path in self.opaques:
            if path and not self.hides_by_file(path):
                self._followed = 0
                self._directory(path, path)

    def hides_by_file(self, path: bytes) -> bool:
        """Tell whether this layer has something other than a directory at `path` or above it."""
        self._step(path.count(b"/") + 1)
        return any(
            (node := self.nodes.get(p)) is not None and node.kind is not DIRECTORY
            for p in above(path)
        )

    def removes(self, path: bytes) -> bool:
        """Tell whether a whiteout of this layer removes `path` of the layers below."""
        self._step(path.count(b"/") + 1)
        parents = above(path)
        return not self.whiteouts.isdisjoint(parents) or any(
            p in self.opaques for p in (*parents[1:], b"")
        )

    def hides(self, path: bytes) -> bool:
        """Tell whether `path` of the layers below can't be seen through this one."""
        return self.hides_by_file(path) or self.removes(path)


def above(path: bytes) -> list[bytes]:
    """Return `path` and the directories above it, the root not among them."""
    found = []
    while path:
        found.append(path)
        path = path.rpartition(b"/")[0]
    return found


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name
