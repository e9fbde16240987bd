"""Merge an image's layers into one tar stream of what is visible in the end.

Each layer is read once, from the top one down. So what the higher layers have and what they remove
is known when a lower layer is read, and each of its files can be written or skipped at once. (To
read all headers first and the contents later would decompress everything twice.) In two cases that
is not enough. A file that is hidden at its own path may be the target of a hard link that comes
later: then that layer is read a second time for its content. A file that is written already may be
replaced by a later member of the same layer: then the merge begins again, knowing which files those
are (`Again`); image builders do not write such layers.

What is chosen where tools differ:
- A directory in a layer, listed or only implied by a member beneath it, replaces a symbolic link
  or file of the layers below: as on overlayfs, where each layer is a directory of its own. So
  nothing is ever written through a lower layer's link.
- Within one layer, a member beneath a symbolic link of that layer goes where the link leads; an
  absolute link begins at the image's root. One that leads out of the image is refused.
- A hard link to a file of the layers below means what is there when the link comes in the tar: a
  whiteout that comes later removes the name alone, after an earlier one there is no file to link
  to.
- A directory that is only implied keeps the mode and times that a lower layer gives it.
- Files come first, in the order of the layers; then directories, symbolic links and FIFOs by name;
  then hard links. Squashfs sorts its directories itself, so readers do not see that order.
- Owner and group are 0:0 (one id is mapped in a container), setuid and setgid bits are dropped
  (they can't work there), device nodes are left out (an ordinary user can't make them, and /dev is
  the host's). FIFOs are kept. Of the extended attributes only `user.*` are kept, and not
  `user.overlay.*`, which would speak to our own overlay mount, nor more than the squashfs writers
  take (bounds.XATTRS).
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from os import fsdecode, stat
from stat import S_ISGID, S_ISUID

from rootless_udi.base.errors import amount
from rootless_udi.base.records import Record
from rootless_udi.layers.blob import ahead, chunks, verified
from rootless_udi.layers.bounds import (
    CONTENT,
    CONTENT_RATIO,
    ENTRIES,
    OBSERVED,
    STEPS_EACH,
    WAITS,
)
from rootless_udi.layers.hidden import Above
from rootless_udi.layers.layer import Node, OneLayer, Replaced
from rootless_udi.layers.ledger import (
    NOTE,
    OTHER,
    PATH,
    STRINGS,
    WRITER,
    Ledger,
    of_texts,
    of_xattrs,
)
from rootless_udi.layers.observer import Observer, observed
from rootless_udi.layers.squashfs_tools import Again
from rootless_udi.layers.tarfields import Stream, shown
from rootless_udi.layers.tarreader import DEVICE, DIRECTORY, FILE, LINK, Member, members
from rootless_udi.layers.tarwriter import TarWriter, Write
from rootless_udi.layers.tree import Tree


class Layer:
    """A layer's blob: a local file `path`, compressed or not.

    `diff_id` is the digest of the uncompressed tar, from the image's configuration.
    """

    def __init__(self, path: str, diff_id: str) -> None:
        self.path = path
        self.diff_id = diff_id
        self.losers: frozenset[int] | None = None
        """Ordinals (which member of the tar) of files that later members of this layer replace.

        None until a merge has found such a file; it raises `Again` then."""

    def __repr__(self) -> str:
        return f"Layer({self.path!r}, {self.diff_id!r})"


class Summary(Record):
    """What a merge wrote and left out. Paths are absolute."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0
    fifos: int = 0
    bytes: int = 0
    """Sum of the files' sizes."""
    devices: tuple[str, ...] = ()
    """Device nodes left out."""
    setuid: tuple[str, ...] = ()
    """Files and directories whose setuid or setgid bit was dropped."""
    xattrs: int = 0
    """Extended attributes dropped."""
    mount_points: bool = True
    """Whether the image has all of `plan.mountpoints`; else each start mounts what it lacks."""


def merge(layers: Sequence[Layer], write: Write, observer: Observer | None = None) -> Summary:
    """Write the merged tar of `layers` (bottom first) through `write`.

    Raises UdiError for a damaged or hostile layer, and `squashfs.Again` where what was written is
    void and the call is to be made once more, with the same `layers`, into an empty output
    (squashfs_tools.build does so).
    """
    compressed = sum(stat(path).st_size for path in {layer.path for layer in layers})
    one = _Merge(TarWriter(write), observer, compressed)
    for index in reversed(range(len(layers))):
        try:
            one.layer(layers[index], last=index == 0)
        except Replaced:
            for layer in layers[: index + 1]:
                layer.losers = _survey(layer, compressed)
            raise Again from None
    return one.finish()


@contextmanager
def _opened(layer: Layer, most: int, check: bool) -> Iterator[Stream]:
    """Yield a layer's tar, decompressed by a thread, which is ended with the block.

    Also when the layer is refused: Python 3.13 does not wait for such threads when it ends itself.
    """
    with closing(ahead(chunks(layer.path, layer.diff_id))) as parts:
        checked = verified(parts, layer.diff_id, layer.diff_id) if check else parts
        yield Stream(checked, layer.diff_id, most)


def _content(compressed: int) -> int:
    """Return the most uncompressed bytes for layers of `compressed` bytes in all."""
    return CONTENT + CONTENT_RATIO * compressed


def _survey(layer: Layer, compressed: int) -> frozenset[int]:
    """Return the ordinals of the files that later members of the same layer replace."""
    with _opened(layer, _content(compressed), check=False) as stream:
        found = OneLayer(stream, Ledger(compressed))
        for ordinal, member in enumerate(members(stream)):
            found.add(member, ordinal)
    return frozenset(found.losers)


class _Merge:
    def __init__(self, tar: TarWriter, observer: Observer | None, compressed: int) -> None:
        """`compressed` is the size of all layers, in bytes."""
        self.tar = tar
        self.ledger = Ledger(compressed)
        self.most = self.left = _content(compressed)
        """Bytes that the tars and the holes of sparse files may have; and how many are left."""
        self.observer = observer
        self.above = Above()
        self.tree = Tree()
        self.pending: dict[bytes, list[bytes]] = {}
        """Paths in the layers still to come -> the names that hard links give their contents."""
        self.missed: dict[int, tuple[Node, list[bytes]]] = {}
        """Ordinal -> a skipped file of this layer, and the names that make it visible."""
        self.waits = WAITS
        """How often more a hard link may wait for a further layer (bounds.WAITS)."""
        self.entries: dict[bytes, int] = {}
        """Folder of the final image -> how many names are in it."""
        self.files = self.bytes = self.xattrs = 0
        self.devices: set[bytes] = set()
        self.setuid: set[bytes] = set()

    def layer(self, layer: Layer, last: bool) -> None:
        """Write what is visible of the next lower layer, which may be the `last` one."""
        with _opened(layer, self.left, check=True) as stream:
            view = OneLayer(stream, self.ledger)
            losers = layer.losers or frozenset()
            for ordinal, member in enumerate(members(stream)):
                node = view.add(member, ordinal)
                self.waits += STEPS_EACH
                if node is None or node.kind is not FILE or ordinal in losers:
                    continue
                names = [] if self.above.hides(node.path, FILE) else [node.path]
                if self.pending:
                    names += self.pending.pop(node.path, [])
                if names:
                    self._content(node, member, names)
            view.finish()
        self.left -= stream.offset
        self._settle(view, stream)
        if self.missed:
            self._again(layer)
        self.ledger.take(-view.held, stream)
        if not last:
            self.ledger.take(self.above.add(view), stream)
        elif self.pending:
            path, names = next(iter(self.pending.items()))
            self._missing(path, names[0], stream)

    def _content(self, node: Node, member: Member, names: list[bytes]) -> None:
        """Write a file under the first of `names`; the others become hard links to it."""
        path = node.primary = names[0]
        stream = member.stream
        for name in names[1:]:
            self._link(name, path, stream)
        self.ledger.take(WRITER + of_xattrs(member.xattrs), stream)
        self._entry(path, stream)
        self.left -= member.holes
        if self.left < 0:
            stream.refuse(
                f"{shown(path)} is a sparse file of {amount(member.size)}, more than an image of "
                "its compressed size may come to",
                "shrink it in the image (often /var/log/lastlog, from a very large user id)",
            )
        body = member.body()
        needed = member.size + 2 * min(member.size, STRINGS)
        if self.observer is not None and member.size <= OBSERVED and needed <= self.ledger.room():
            body = observed(self.observer, path, member.size, body)
        mode = self._allowed(path, member, stream)
        self.tar.file(path, member.size, mode, member.mtime, body, member.xattrs)
        self.tree.file(path)
        self.files += 1
        self.bytes += member.size

    def _entry(self, path: bytes, stream: Stream) -> None:
        """Count a name of the finished tree in its folder."""
        folder = path.rpartition(b"/")[0]
        count = self.entries.get(folder, 0) + 1
        if count == 1:
            self.ledger.take(PATH + len(folder), stream)
        elif count > ENTRIES:
            stream.refuse(
                f"the folder {shown(folder)} has more than {ENTRIES} entries, for which squashfs's "
                "writers take quadratic time",
                "spread them over several folders, or pack them (tar, HDF5, a volume) in the image",
            )
        self.entries[folder] = count

    def _link(self, name: bytes, path: bytes, stream: Stream) -> None:
        self.ledger.take(PATH + WRITER + NOTE + of_texts(name, path), stream)
        self._entry(name, stream)
        self.tree.links[name] = path
        self.tree.file(name)
        if self.observer is not None:
            self.observer.same("/" + fsdecode(name), "/" + fsdecode(path))

    def _allowed(self, path: bytes, one: Member | Node, stream: Stream | None) -> int:
        """Return the mode that is kept; count what is left out."""
        if one.mode & (S_ISUID | S_ISGID):
            if stream is not None:
                self.ledger.take(PATH + of_texts(path), stream)
            self.setuid.add(path)
        self.xattrs += one.dropped
        return one.mode & 0o1777

    def _settle(self, view: OneLayer, stream: Stream) -> None:
        """At a layer's end: note its directories and links, resolve hard links to its files."""
        wanted = self.pending
        self.pending = {}
        for path, node in view.nodes.items():
            names = wanted.pop(path, []) if wanted else []
            if node.kind is DIRECTORY:
                if names:
                    stream.refuse(
                        f"hard link {shown(names[0])} of a higher layer to the directory "
                        f"{shown(path)}"
                    )
                if not self.above.hides(path, DIRECTORY):
                    self._keep(path, node, stream)
                    self.tree.directory(path, node, self.above.seals(path))
                continue
            if node.kind is FILE and path not in view.linked:
                continue
            if not self.above.hides(path, node.kind):
                names.insert(0, path)
            if names:
                self._names(node, names, view, stream)
        self.waits -= len(wanted)
        if self.waits < 0:
            stream.refuse(
                f"{len(wanted)} hard links of higher layers wait for it, more than any image has",
                "it is made to keep its reader busy",
            )
        for path, names in wanted.items():
            if view.hides(path):
                self._missing(path, names[0], stream)
            self.pending.setdefault(path, []).extend(names)

    def _names(self, node: Node, names: list[bytes], view: OneLayer, stream: Stream) -> None:
        """Give `node`, whatever it is, these names in the merged tree."""
        if node.kind is LINK:
            # The target is in a lower layer. (If this layer has that path too, it came after the
            # link; else OneLayer would have joined the two.)
            if node.lost:
                self._missing(node.target, names[0], stream)
            self.ledger.take((PATH + len(node.target)) * len(names), stream)
            self.pending.setdefault(node.target, []).extend(names)
        elif node.kind is DEVICE:
            self.ledger.take(PATH * len(names) + of_texts(*names), stream)
            self.devices.update(names)
        elif node.kind is not FILE:
            for name in names:
                self._keep(name, node, stream)
                self.tree.others[name] = node
        elif node.primary is None:
            self.ledger.take(PATH, stream)
            self.missed.setdefault(node.ordinal, (node, []))[1].extend(names)
        else:
            for name in names:
                if name != node.primary:
                    self._link(name, node.primary, stream)

    def _keep(self, path: bytes, node: Node, stream: Stream) -> None:
        """Count the memory that `node` takes until the end, here and in the squashfs writer."""
        if path not in self.tree.others:
            size = PATH + OTHER + WRITER + len(path) + of_xattrs(node.xattrs)
            if node.target:
                size += NOTE + of_texts(path, node.target)
            self.ledger.take(size, stream)
            self._entry(path, stream)

    @staticmethod
    def _missing(path: bytes, name: bytes, stream: Stream) -> None:
        stream.refuse(f"hard link {shown(name)} to {shown(path)}, which is not in the image")

    def _again(self, layer: Layer) -> None:
        """Read a layer a second time, for files that are visible through hard links alone."""
        with _opened(layer, self.most, check=False) as stream:
            for ordinal, member in enumerate(members(stream)):
                if ordinal in self.missed:
                    node, names = self.missed.pop(ordinal)
                    self._content(node, member, names)
                    if not self.missed:
                        return
            stream.refuse("the blob has changed while it was read")

    def finish(self) -> Summary:
        """Write all that is no regular file, then the hard links, and close the tar."""
        whole = self.tree.mount_points()
        kinds: dict[str, int] = {}
        for path in sorted(self.tree.others):
            node = self.tree.others[path]
            kinds[node.kind] = kinds.get(node.kind, 0) + 1
            mode = self._allowed(path, node, None)
            self.tar.member(node.kind, path, mode, node.mtime, node.target, node.xattrs)
            if self.observer is not None and node.target:
                self.observer.link("/" + fsdecode(path), fsdecode(node.target))
        for path in self.tree.empty:
            self.tar.file(path, 0, 0o644, 0, ())
        for name in sorted(self.tree.links):
            self.tar.member(LINK, name, 0o644, 0, self.tree.links[name])
        self.tar.close()

        def paths(found: set[bytes]) -> tuple[str, ...]:
            return tuple("/" + fsdecode(path) for path in sorted(found))

        return Summary(
            files=self.files + len(self.tree.empty),
            directories=kinds.get(DIRECTORY, 0),
            symlinks=kinds.get("symlink", 0),
            links=len(self.tree.links),
            fifos=kinds.get("fifo", 0),
            bytes=self.bytes,
            devices=paths(self.devices),
            setuid=paths(self.setuid),
            xattrs=self.xattrs,
            mount_points=whole,
        )
