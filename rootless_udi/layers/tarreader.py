"""A walk over the 512-byte headers of a tar stream (POSIX.1-2017 pax, ustar, GNU tar's manual).

Here is what the bytes of a layer mean, member by member; what members mean together is in layer.py
(of one layer) and merge.py (of all). `tarfile` is not used: 31 to 112 us a member against
10 here, and it rejects archives that real tools write (no end blocks, last member not padded).
"""

from binascii import Error, a2b_base64
from collections.abc import Iterator
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from rootless_udi.base.errors import amount, counted
from rootless_udi.layers import tarsparse
from rootless_udi.layers.bounds import EXTENSION, GLOBAL, PATH, XATTR_NAME, XATTR_RECORD, XATTRS
from rootless_udi.layers.tarfields import (
    BLOCK,
    FIELDS,
    Stream,
    checksum,
    decimal,
    field,
    relative,
    shown,
)

FILE, LINK, SYMLINK, DEVICE, DIRECTORY, FIFO = (
    "file",
    "hard link",
    "symlink",
    "device",
    "dir",
    "fifo",
)
_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"S": FILE,
    b"1": LINK,
    b"2": SYMLINK,
    b"3": DEVICE,
    b"4": DEVICE,
    b"5": DIRECTORY,
    b"D": DIRECTORY,
    b"6": FIFO,
}

_KEYWORDS = frozenset(
    (
        *(b"path", b"linkpath", b"size", b"mtime"),
        *(b"GNU.sparse.name", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.map"),
        *(b"GNU.sparse.numblocks", b"GNU.sparse.offset", b"GNU.sparse.numbytes"),
        *(b"GNU.sparse.major", b"GNU.sparse.minor"),
    )
)
"""The pax keywords that are used. Also those that begin with one of these:"""
_XATTRS = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_EXTENSIONS = b"xXgLKNVM"
"""Types of headers that say something of members: pax (x, g; X of Solaris), GNU's long names and
link targets (L, K; N is old) and volumes (V a label, M a file that goes on)."""
_NO_XATTRS: dict[bytes, bytes] = {}
"""What most members have: one empty dictionary for all, which nobody changes."""


class Member:
    """One member of a tar.

    `path` is relative to the root, without `.` components and without a slash at its end (the root
    itself is b""); `target` is a symbolic link's text as it is, or a hard link's path as `path`.
    `size` is the length of `body()`, holes of a sparse file included. `mtime` is in whole seconds
    and may be negative. `xattrs` has the extended attributes that an image keeps, `dropped` counts
    the others.
    """

    __slots__ = (
        "_map",
        "_pad",
        "_stored",
        "dropped",
        "kind",
        "mode",
        "mtime",
        "path",
        "size",
        "stream",
        "target",
        "xattrs",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._map: list[tuple[int, int]] | None = None
        self._stored = self._pad = self.size = self.mode = self.mtime = self.dropped = 0
        self.path = self.target = b""
        self.kind = FILE
        self.xattrs = _NO_XATTRS

    @property
    def holes(self) -> int:
        """Bytes of the content that are not in the tar."""
        return self.size - sum(length for _, length in self._map) if self._map is not None else 0

    def body(self) -> Iterator[memoryview]:
        """Yield the content, once; raise UdiError where the stream ends before it does."""
        if self._map is None:
            yield from self._take(self._stored)
            return
        at = 0
        for offset, length in self._map:
            yield from tarsparse.zeros(offset - at)
            yield from self._take(length)
            at = offset + length
        yield from tarsparse.zeros(self.size - at)

    def _take(self, size: int) -> Iterator[memoryview]:
        left = size
        for piece in self.stream.pieces(size):
            left -= len(piece)
            self._stored -= len(piece)
            yield piece
        if left:
            self._truncated(left)

    def _truncated(self, missing: int) -> NoReturn:
        self.stream.refuse(
            f"the layer ends {counted(missing, 'byte')} before the end of {shown(self.path)}"
        )

    def finish(self) -> None:
        """Pass over what is left of the content, and its padding."""
        if self._stored and (missing := self.stream.skip(self._stored)):
            self._truncated(missing)
        self._stored = 0
        # The last member may lack its padding (`umoci insert` 0.4.7 writes such tars).
        if self._pad:
            self.stream.skip(self._pad)


def members(stream: Stream) -> Iterator[Member]:
    """Yield the members of `stream` in order; each one's body is to be read before the next.

    A tar that ends without its end blocks, or with a last member that is not padded, is accepted;
    what follows an end block is read and ignored. Raises UdiError for anything else that is no tar.
    """
    common: dict[bytes, bytes] = {}
    pax: dict[bytes, bytes] = {}
    name = target = None
    while True:
        header = stream.read(BLOCK)
        if header[:1] in (b"", b"\0") and not header.strip(b"\0"):
            break
        if len(header) < BLOCK:
            stream.refuse(f"a header of {counted(len(header), 'byte')} in place of 512")
        checksum(stream, header)
        kind = header[FIELDS["typeflag"]]
        if kind in _EXTENSIONS:
            stored = field(stream, header, "size")
            if kind == b"M":
                stream.refuse("it goes on from another volume of a multi-volume archive")
            data = _extension(stream, stored)
            if kind == b"g":
                common.update((key, value) for key, value in _records(stream, data) if _lasts(key))
                if sum(len(key) + len(value) for key, value in common.items()) > GLOBAL:
                    stream.refuse(f"global pax headers of more than {amount(GLOBAL)} are in force")
            elif kind in b"xX":
                pax = dict(_records(stream, data))
                if b"GNU.sparse.numblocks" in pax and b"GNU.sparse.map" not in pax:
                    pax[b"GNU.sparse.map"] = _map_of_records(stream, data)
            elif kind == b"L":
                name = data.split(b"\0", 1)[0]
            elif kind == b"K":
                target = data.split(b"\0", 1)[0]
            continue
        member = _member(stream, header, {**common, **pax} if common else pax, name, target)
        pax, name, target = {}, None, None
        yield member
        member.finish()
    stream.drain()


def _extension(stream: Stream, size: int) -> bytes:
    """Return the data of an extension header (pax, GNU long name)."""
    if not 0 <= size <= EXTENSION:
        stream.refuse(
            f"an extension header of {amount(size)} (at most {amount(EXTENSION)} are taken)"
        )
    data = stream.read(size)
    if len(data) < size:
        missing = counted(size - len(data), "byte")
        stream.refuse(f"the layer ends {missing} before an extension header's end")
    stream.skip(-size % BLOCK)
    return data


def _records(stream: Stream, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of a pax header: `LENGTH KEY=VALUE\\n`."""
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 12)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if end <= space + 2 or end > len(data) or data[end - 1 : end] != b"\n":
            stream.refuse(f"a pax record with no valid length: '{shown(data[at : at + 40])}'")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            stream.refuse(f"a pax record without a name: '{shown(data[at : at + 40])}'")
        if key in _KEYWORDS or key.startswith(_XATTRS):
            yield key, value
        at = end


def _lasts(key: bytes) -> bool:
    """Tell whether a global header's record is used: of extended attributes only `user.*` is."""
    return key in _KEYWORDS or key.startswith(b"SCHILY.xattr.user.")


def _map_of_records(stream: Stream, data: bytes) -> bytes:
    """Return the repeated records of GNU's sparse format 0.0 as the one map of format 0.1."""
    keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
    return b",".join(value for key, value in _records(stream, data) if key in keys)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _member(
    stream: Stream,
    header: bytes,
    pax: dict[bytes, bytes],
    name: bytes | None,
    target: bytes | None,
) -> Member:
    member = Member(stream)
    if name is None:
        name = _text(header[FIELDS["name"]])
        # In GNU's old format, which has another magic, times and sparse maps are in that place.
        if header[FIELDS["magic"]] == b"ustar\0" and (prefix := _text(header[FIELDS["prefix"]])):
            name = prefix + b"/" + name
    kind = header[FIELDS["typeflag"]]
    member.size = field(stream, header, "size")
    member.mode = field(stream, header, "mode") & 0o7777
    member.mtime = field(stream, header, "mtime")
    target = target if target is not None else _text(header[FIELDS["linkname"]])
    if pax:
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
        target = pax.get(b"linkpath") or target
        _from_pax(stream, member, pax)
    if kind not in _KINDS:
        stream.refuse(f"{shown(name)} is of unknown type '{shown(kind)}'")
    member.kind = _KINDS[kind]
    if member.kind is FILE and name.endswith(b"/"):
        member.kind = DIRECTORY
    member.path = relative(stream, name, "a member has")
    if member.kind is LINK:
        member.target = relative(stream, target, f"hard link {shown(member.path)} to")
    elif member.kind is SYMLINK:
        member.target = _symlink(stream, member.path, target)
    _lengths(stream, member, kind, header, pax)
    return member


def _from_pax(stream: Stream, member: Member, pax: dict[bytes, bytes]) -> None:
    if size := pax.get(b"size"):
        member.size = decimal(stream, size, "a pax header's size")
    if mtime := pax.get(b"mtime"):
        whole, _, fraction = mtime.partition(b".")
        minus = whole.startswith(b"-")
        seconds = decimal(stream, whole[1:] if minus else whole, "a pax header's mtime")
        member.mtime = -seconds if minus else seconds
        if fraction and not fraction.isdigit():
            stream.refuse(f"a pax header's mtime is '{shown(mtime)}' in place of a number")
    found: dict[bytes, bytes] = {}
    for key, value in pax.items():
        if key.startswith(b"SCHILY.xattr."):
            found[key.removeprefix(b"SCHILY.xattr.")] = value
        elif key.startswith(b"LIBARCHIVE.xattr."):
            found.setdefault(*_libarchive(stream, key.removeprefix(b"LIBARCHIVE.xattr."), value))
    if found:
        member.xattrs = _kept(found)
        member.dropped = len(found) - len(member.xattrs)


def _kept(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the extended attributes that an image keeps.

    These are `user.*` but for `user.overlay.*`, which would be orders to our overlay mount (its
    option userxattr), and no more than the squashfs writers take.
    """
    kept: dict[bytes, bytes] = {}
    room = XATTRS
    for name, value in xattrs.items():
        if (
            name.startswith(b"user.")
            and not name.startswith(b"user.overlay.")
            and 5 < len(name) <= XATTR_NAME
            and b"\0" not in name
            and (size := XATTR_RECORD + len(name) + len(value)) <= room
        ):
            room -= size
            kept[name] = value
    return kept or _NO_XATTRS


def _libarchive(stream: Stream, key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Decode libarchive's own record: the name URL-encoded, the value in base64 without padding."""
    try:
        return unquote_to_bytes(key), a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except Error:
        stream.refuse(f"the extended attribute {shown(key)} is not in base64")


def _lengths(
    stream: Stream, member: Member, kind: bytes, header: bytes, pax: dict[bytes, bytes]
) -> None:
    """Set how many bytes the tar has of a member, and how many its content has.

    The size in the header of a link, directory or device says nothing about data.
    """
    if member.size < 0:
        stream.refuse(f"{shown(member.path)} has a size of {member.size} bytes")
    if member.kind is DIRECTORY and kind != b"5":
        member._stored, member.size = member.size, 0
    elif member.kind is not FILE:
        member.size = 0
    else:
        member._stored = member.size
    member._pad = -member._stored % BLOCK
    path, stored = member.path, member._stored
    if kind == b"S":
        member._map, member.size = tarsparse.old(stream, header, path, stored)
    elif b"GNU.sparse.map" in pax:
        member._map, member.size = tarsparse.in_header(stream, pax, path, stored)
    elif pax.get(b"GNU.sparse.major"):
        found = tarsparse.before_data(stream, pax, path, stored)
        member._map, member.size, length = found
        member._stored -= length


def _symlink(stream: Stream, path: bytes, target: bytes) -> bytes:
    if not target:
        stream.refuse(f"symbolic link {shown(path)} to nothing")
    if b"\0" in target or len(target) > PATH:
        stream.refuse(f"symbolic link {shown(path)} to {len(target)} bytes that are no path")
    return target
