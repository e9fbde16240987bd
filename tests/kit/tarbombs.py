"""Images whose layers and documents are small files and claim to hold much.

Each function returns (layers as tars, config) or writes an archive, and is named after the quantity
that it makes large. `many` scales it: 1 is for every run of the tests, 10 for the slow ones.
"""

import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

END = bytes(1024)


class Bomb(NamedTuple):
    """`refused`: what the message has to say; empty where the image is pulled all the same."""

    layers: list[bytes]
    refused: str = ""
    config: dict[str, Any] = {}  # noqa: RUF012
    compress: str = "gzip"


def head(name: str, kind: bytes = b"0", size: int = 0, link: str = "", mode: int = 0o644) -> bytes:
    """Return a ustar header; `name` and `link` have 100 bytes at most."""
    fields = (name.encode(), mode, 0, 0, size, 1_600_000_000, b" " * 8, kind, link.encode())
    block = fields[0].ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % fields[1:6]
    block += fields[6] + kind + fields[8].ljust(100, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def record(key: str, value: bytes) -> bytes:
    """Return a pax record: the length counts itself."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, key.encode(), value)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    """Return a pax header of records."""
    return head("pax", kind, len(records)) + records + bytes(-len(records) % 512)


def tar(*parts: bytes) -> bytes:
    return b"".join((*parts, END))


def members(many: int) -> Bomb:
    return Bomb([tar(*(head(f"d{n // 100}/{n}") for n in range(30_000 * many)))])


def members_beyond(many: int) -> Bomb:
    return Bomb(
        [tar(*(head(f"{n // 100}/{n}") for n in range(80_000 * many)))],
        "names, links and attributes",
    )


def names(many: int) -> Bomb:
    part = "/".join(["n" * 200] * 19).encode()
    rows = (pax(record("path", b"%d/" % n + part)) + head("f") for n in range(6000 * many))
    return Bomb([tar(*rows)], "names, links and attributes")


def depth(many: int) -> Bomb:
    part = b"/".join([b"n"] * 2000)
    rows = (pax(record("path", b"%d/" % n + part)) + head("f") for n in range(100 * many))
    return Bomb([tar(*rows)], "names, links and attributes")


def targets(many: int) -> Bomb:
    part = b"/".join([b"t" * 200] * 20)
    rows = (pax(record("linkpath", part)) + head(f"l{n}", b"2") for n in range(40_000 * many))
    return Bomb([tar(*rows)], "names, links and attributes")


def hard_links(many: int) -> Bomb:
    rows = (head(f"h{n}", b"1", link="a") for n in range(10_000 * many))
    return Bomb([tar(head("a"), *rows)])


def links_below(many: int) -> Bomb:
    """Hard links to files of a lower layer, through a hundred layers between."""
    rows = [head(f"h{n}", b"1", link=f"a{n}") for n in range(2000 * many)]
    base = [head(f"a{n}") for n in range(2000 * many)]
    return Bomb([tar(*base), *(tar(head(f"x{n}")) for n in range(20)), tar(*rows)])


def whiteouts(many: int) -> Bomb:
    return Bomb([tar(head("a")), tar(*(head(f".wh.{n}") for n in range(20_000 * many)))])


def replaced_folders(many: int) -> Bomb:
    """10,000 folders, each replaced by a FIFO: no replacement may look at all other paths."""
    rows = [head(f"a/d{n}", b"5") for n in range(10_000 * many)]
    again = [head("z", b"5") + head("z/x", b"5") + head("z", b"6") for n in range(5000 * many)]
    return Bomb([tar(*rows, *again)])


def replaced_files(many: int) -> Bomb:
    return Bomb([tar(*(head("x") for _ in range(30_000 * many)))])


def links_followed(many: int) -> Bomb:
    """Members below a link whose target has 2000 parts."""
    part = b"/".join([b"t"] * 2000)
    rows = (head(f"l/{n}") for n in range(10_000 * many))
    return Bomb([tar(pax(record("linkpath", part)) + head("l", b"2"), *rows)], "more folders")


def devices(many: int) -> Bomb:
    return Bomb([tar(*(head(f"dev/{n}", b"3", mode=0o4666) for n in range(20_000 * many)))])


def xattrs_dropped(many: int) -> Bomb:
    """Xattrs that are dropped: 1.65 MB of such a layer once took 1.7 GB of memory."""
    big = pax(record("SCHILY.xattr.security.x", b"a" * ((1 << 20) - 100)))
    return Bomb([tar(*(big + head(f"f{n}") for n in range(150 * many)))])


def xattrs_kept(many: int) -> Bomb:
    big = pax(record("SCHILY.xattr.user.a", b"a" * 55_000))
    rows = (big + head(f"f{n}", b"5") for n in range(2200 * many))
    return Bomb([tar(*rows)], "names, links and attributes")


def xattrs_many(many: int) -> Bomb:
    """More names than listxattr(2) can give: what is beyond is left out."""
    rows = b"".join(record(f"SCHILY.xattr.user.name-{n}", b"1") for n in range(20_000))
    return Bomb([tar(pax(rows), head("f"))])


def pax_header(many: int) -> Bomb:
    return Bomb([tar(pax(record("comment", b"a" * (9 << 20))), head("f"))], "extension header")


def pax_records(many: int) -> Bomb:
    rows = b"".join(record(f"k{n}", b"") for n in range(60_000))
    return Bomb([tar(*(pax(rows) + head(f"f{n}") for n in range(5 * many)))])


def global_headers(many: int) -> Bomb:
    """Global pax headers, which were once copied for each member."""
    parts = []
    for number in range(10 * many):
        parts.append(pax(b"".join(record(f"k{number}-{n}", b"a") for n in range(40_000)), b"g"))
    return Bomb([tar(*parts, *(head(f"f{n}") for n in range(1000)))])


def global_xattrs(many: int) -> Bomb:
    rows = b"".join(record(f"SCHILY.xattr.user.{n}", b"a") for n in range(2000))
    files = (head(f"f{n}", b"5") for n in range(2000 * many))
    return Bomb([tar(pax(rows, b"g"), *files)], "names, links and attributes")


def sparse_map(many: int) -> Bomb:
    numbers = b",".join([b"0"] * 400_000)
    rows = record("GNU.sparse.map", numbers) + record("GNU.sparse.size", b"1")
    return Bomb([tar(pax(rows), head("f"))], "sparse map")


def sparse_blocks(many: int) -> Bomb:
    """GNU's old format: blocks of a map without end."""
    block = head("f", b"S")
    first = block[:148] + b" " * 8 + block[156:482] + b"\1" + block[483:]
    first = first[:148] + b"%06o\0 " % sum(first) + first[156:]
    one = (b"%011o\0" % 0 + b"%011o\0" % 0) * 21 + b"\1" + bytes(7)
    return Bomb([tar(first, one * 40_000)], "sparse map")


def sparse_size(many: int) -> Bomb:
    rows = record("GNU.sparse.map", b"0,0") + record("GNU.sparse.size", b"%d" % (1 << 40))
    return Bomb([tar(pax(rows), head("f"))], "sparse file")


def content(many: int) -> Bomb:
    """Files of zeros, which gzip makes a thousand times smaller."""
    size = (200 << 20) * many
    return Bomb([tar(head("zeros", size=size), bytes(size))])


def window(many: int) -> Bomb:
    """A zstd frame that needs a window of 128 MiB."""
    return Bomb([tar(head("zeros", size=1 << 20), bytes(1 << 20))], "blob", compress="zstd-window")


def program(many: int) -> Bomb:
    """A library of the largest size that is looked into, full of names."""
    size = 90 << 20
    dynamic = b"".join(n.to_bytes(8, "little") for n in (5, 4096, 10, size - 4096, 1, 1, 0, 0))
    start = b"\x7fELF\2\1\1".ljust(16, b"\0")
    start += b"\3\0\x3e\0\1\0\0\0" + bytes(8) + (64).to_bytes(8, "little") + bytes(8)
    start += bytes(4) + b"\x40\0\x38\0\2\0\0\0\0\0\0\0"
    load = (1, 0, 0, 0, 0, size, size, 4096)
    table = (2, 0, 1024, 1024, 1024, len(dynamic), len(dynamic), 8)
    for kind, flags, *rest in (load, table):
        start += kind.to_bytes(4, "little") + flags.to_bytes(4, "little")
        start += b"".join(n.to_bytes(8, "little") for n in rest)
    body = (start.ljust(1024, b"\0") + dynamic).ljust(4096, b"\0")
    data = body + b"a" * (size - len(body))
    return Bomb([tar(*(head(f"lib{n}.so", size=size) + data for n in range(many)))])


def loader_files(many: int) -> Bomb:
    """A thousand megabytes of configuration of ld.so."""
    text = b"a" * 900_000
    one = text + bytes(-len(text) % 512)
    name = "etc/ld.so.conf.d/{}.conf"
    rows = (head(name.format(n), size=len(text)) + one for n in range(150 * many))
    return Bomb([tar(*rows)])


def layers(many: int) -> Bomb:
    return Bomb([tar(head("a"))] * 1001, "layers; at most")


def config(many: int) -> Bomb:
    labels = {f"label{n}": "v" * 50 for n in range(20_000)}
    env = [f"NAME{n}={'v' * 50}" for n in range(20_000)]
    return Bomb([tar(head("a"))], config={"Labels": labels, "Env": env})


def config_size(many: int) -> Bomb:
    return Bomb([tar(head("a"))], "MB; at most", {"Labels": {"a": "v" * (5 << 20)}})


BOMBS: dict[str, Callable[[int], Bomb]] = {
    one.__name__: one
    for one in (
        *(members, names, depth, targets, hard_links, links_below, whiteouts),
        *(replaced_folders, replaced_files, links_followed, devices),
        *(xattrs_dropped, xattrs_kept, xattrs_many, pax_header, pax_records),
        *(global_headers, global_xattrs, sparse_map, sparse_blocks, sparse_size),
        *(content, window, program, loader_files, layers, config, config_size),
    )
}


def junk(document: bytes, objects: int = 1_350_000) -> bytes:
    """Return a JSON object with many empty objects added, 25 times larger in memory."""
    return document[:-1] + b',"junk":[' + b",".join([b"{}"] * objects) + b"]}"


def archive(header: int) -> bytes:
    """Return a tar as of `docker save` whose first pax header has that many bytes."""
    return tar(pax(record("comment", b"a" * header)), head("manifest.json", tarfile.REGTYPE))
