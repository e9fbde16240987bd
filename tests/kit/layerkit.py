"""Layers for the tests of merge and squashfs: built member by member, merged, read back by tarfile.

`model` is the merge once more, written the other way round: from the bottom layer up, on a
dictionary of all paths. It knows nothing of streams and is what layers.merge must agree with.
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rootless_udi.layers.merge import Layer, Summary, merge
from rootless_udi.layers.observer import Observer
from rootless_udi.layers.squashfs_tools import Again
from rootless_udi.plan.mountpoints import DIRECTORIES, FILES, SYMLINKS

SKELETON = {p[1:] for p in (*DIRECTORIES, *FILES, *SYMLINKS)}


class M(NamedTuple):
    """A member: kind is "file", "dir", "symlink", "link", "fifo" or "device"."""

    name: str
    kind: str
    content: bytes = b""
    target: str = ""
    mode: int = 0o644
    mtime: int = 1_000_000_000
    pax: dict[str, str] = {}  # noqa: RUF012


def file(name: str, content: bytes | str = b"", **more: Any) -> M:
    return M(name, "file", content if isinstance(content, bytes) else content.encode(), **more)


def directory(name: str, mode: int = 0o755, **more: Any) -> M:
    return M(name, "dir", mode=mode, **more)


def symlink(name: str, target: str) -> M:
    return M(name, "symlink", target=target, mode=0o777)


def link(name: str, target: str) -> M:
    return M(name, "link", target=target)


def whiteout(name: str) -> M:
    head, slash, tail = name.rpartition("/")
    return M(f"{head}{slash}.wh.{tail}", "file")


def opaque(name: str) -> M:
    return M(f"{name}/.wh..wh..opq" if name else ".wh..wh..opq", "file")


_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


def tar(members: Sequence[M]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for m in members:
            info = tarfile.TarInfo(m.name)
            info.type = _TYPES[m.kind]
            info.size, info.linkname = len(m.content), m.target
            info.mode, info.mtime = m.mode, m.mtime
            info.uid, info.gid = 1000, 100
            info.pax_headers = dict(m.pax)
            archive.addfile(info, io.BytesIO(m.content))
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(folder: Path, data: bytes, compress: bool = False) -> Layer:
    """Write an uncompressed tar (or its gzip) as a blob in `folder`."""
    blob = gzip.compress(data, 1, mtime=0) if compress else data
    path = folder / digest(blob)[7:]
    path.write_bytes(blob)
    return Layer(str(path), digest(data))


def merged(layers: Sequence[Layer], observer: Observer | None = None) -> tuple[bytes, Summary]:
    """Return the merged tar and the summary; begin again as squashfs_tools.build does."""
    while True:
        out = io.BytesIO()
        try:
            summary = merge(layers, out.write, observer)
        except Again:
            continue
        return out.getvalue(), summary


Seen = tuple[str, int, Any, int]


def read(data: bytes, skeleton: bool = False) -> dict[str, Seen]:
    """Return {path: (kind, mode, content or target, mtime)}, hard links as files."""
    found: dict[str, Seen] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as archive:
        for info in archive:
            assert (info.uid, info.gid) == (0, 0)
            name = info.name
            assert name not in found, f"{name} twice"
            if info.isdir():
                found[name] = ("dir", info.mode, None, int(info.mtime))
            elif info.issym():
                found[name] = ("symlink", info.mode, info.linkname, int(info.mtime))
            elif info.isfifo():
                found[name] = ("fifo", info.mode, None, int(info.mtime))
            elif info.islnk():
                found[name] = found[info.linkname]
            else:
                body = archive.extractfile(info)
                assert body is not None
                found[name] = ("file", info.mode, body.read(), int(info.mtime))
    if not skeleton:
        found = {name: what for name, what in found.items() if name not in SKELETON}
    return found


class Refused(Exception):
    """The model refuses the layers."""


class Node:
    """What the model has at a path; hard links share one."""

    def __init__(self, kind: str, mode: int, what: Any, mtime: int, listed: bool = True) -> None:
        self.kind, self.mode, self.what, self.mtime, self.listed = kind, mode, what, mtime, listed
        self.borrowed = False
        """Of a lower layer, by a hard link: nothing may be beneath it, though it is a symlink."""


State = dict[str, Node]


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _drop(state: State, path: str, itself: bool = True) -> None:
    for name in [n for n in state if (itself and n == path) or n.startswith(path + "/")]:
        del state[name]


def _resolve(upper: State, path: str, depth: int = 0) -> str:
    """Return `path` with the links of its own layer followed in all but the last component."""
    if depth > 40:
        raise Refused("loop")
    parts = path.split("/")
    for n in range(1, len(parts)):
        parent = "/".join(parts[:n])
        node = upper.get(parent)
        if node is None or node.kind == "dir":
            continue
        if node.kind != "symlink" or node.borrowed:
            raise Refused(parent)
        where = [] if node.what.startswith("/") else parts[: n - 1]
        for name in node.what.split("/"):
            if name == "..":
                if not where:
                    raise Refused("escapes")
                where = where[:-1]
            elif name not in ("", "."):
                at = _resolve(upper, "/".join([*where, name, "x"]), depth + 1)
                where = at.split("/")[:-1]
        return _resolve(upper, "/".join([*where, *parts[n:]]), depth + 1)
    return path


def _apply(lower: State, members: Sequence[M]) -> State:
    hidden = dict(lower)
    upper: State = {}
    opaques = []
    for m in members:
        head, _, name = m.name.rpartition("/")
        if name == ".wh..wh..opq":
            opaques.append(head)
            _drop(hidden, head, itself=False) if head else hidden.clear()
            continue
        if name.startswith(".wh."):
            _drop(hidden, f"{head}/{name[4:]}" if head else name[4:])
            continue
        path = _resolve(upper, m.name)
        for parent in _parents(path):
            upper.setdefault(parent, Node("dir", 0o755, None, 0, listed=False))
        node = _node(upper, hidden, path, m)
        old = upper.get(path)
        if old is not None and node is not old and not (old.kind == node.kind == "dir"):
            _drop(upper, path)
        upper[path] = node
    for head in opaques:
        if all(upper[p].kind == "dir" for p in [*_parents(head), head] if head and p in upper):
            for parent in [*_parents(head), head] if head else []:
                upper.setdefault(parent, Node("dir", 0o755, None, 0, listed=False))
    for path in sorted(upper):
        node = upper[path]
        below = hidden.get(path)
        if node.kind == "dir":
            if below is not None and below.kind != "dir":
                _drop(hidden, path)
                below = None
            if node.listed or below is None:
                hidden[path] = node
        else:
            _drop(hidden, path)
            hidden[path] = node
    return hidden


def _node(upper: State, hidden: State, path: str, m: M) -> Node:
    if m.kind != "link":
        what = m.content if m.kind == "file" else m.target if m.kind == "symlink" else None
        return Node(m.kind, m.mode, what, m.mtime)
    target = _resolve(upper, m.target)
    if target == path:
        raise Refused("itself")
    if target in upper:
        if upper[target].kind == "dir":
            raise Refused("to a directory")
        return upper[target]
    below = hidden.get(target)
    # A link to nothing is refused only where its name is seen in the end.
    node = Node("missing", 0, None, 0)
    if below and below.kind != "dir":
        node = Node(below.kind, below.mode, below.what, below.mtime)
    node.borrowed = True
    return node


def model(layers: Sequence[Sequence[M]]) -> dict[str, Seen]:
    """Return what the merge must give, as `read` does; raise Refused."""
    state: State = {}
    for members in layers:
        state = _apply(state, members)
    if any(node.kind == "missing" for node in state.values()):
        raise Refused("missing")
    return {
        path: (node.kind, node.mode & 0o1777, node.what, node.mtime)
        for path, node in state.items()
        if node.kind != "device"
    }
