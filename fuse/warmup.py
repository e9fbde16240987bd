"""What every dynamic program reads first, at hand before the first one starts.

From the mount to execve(2) a launcher makes mounts for 10 ms, in which the server has little to do;
then the command waits for ten blocks of the dynamic loader and the C library, one by one. So these
are looked up while no request is there, step by step in the server's own thread, which alone may
touch metadata, and decompressed by a worker. What is here can only be early, never wrong: errors
are left for the request that meets them again.
"""

from os import uname

from rootless_udi.fuse.format import DIR, SYMLINK, Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rootless_udi.fuse.filesystem import FileSystem
    from rootless_udi.fuse.reader import Reader

LOADERS = {
    "x86_64": (b"lib64/ld-linux-x86-64.so.2", b"lib/ld-musl-x86_64.so.1"),
    "aarch64": (b"lib/ld-linux-aarch64.so.1", b"lib/ld-musl-aarch64.so.1"),
    "ppc64le": (b"lib64/ld64.so.2", b"lib/ld-musl-powerpc64le.so.1"),
    "riscv64": (b"lib/ld-linux-riscv64-lp64d.so.1", b"lib/ld-musl-riscv64.so.1"),
    "s390x": (b"lib/ld64.so.1", b"lib/ld-musl-s390x.so.1"),
}
"""The programs' interpreter (PT_INTERP) by their ABI; a musl one is the C library too."""
MOST = 10 << 20
"""Bytes decompressed in advance at most; a glibc and its loader have 2.2 MB, a Python 6.8."""
FOLDERS = (b"usr/local/bin/", b"usr/bin/", b"bin/")
"""Where a program is that is named without a folder."""
ENTRIES = 100
"""Of the root directory; a distribution's has 20."""
LINKS, PATH_MAX = 40, 4096
"""As the kernel has them (path_resolution(7))."""


def steps(fs: "FileSystem", program: bytes = b"") -> "Iterator[None]":
    """Yield between steps of 1 ms at most; the caller goes on when it has nothing else to do.

    `program` is the first word of the command that will be run, if that is known.
    Raises what reading metadata raises.
    """
    reader, room = fs.reader, MOST
    root = [reader.super.root]
    # What a listing of the root asks for, which is a launcher's first question.
    top = reader.inode(reader.super.root)
    listed = reader.entries(top, 0) if top.kind == DIR and reader.segments(top) else {}
    for entry in list(listed.values())[:ENTRIES]:
        yield
        try:
            reader.inode(entry >> 36)
        except Corrupt:
            continue
    for path in LOADERS.get(uname().machine, ()):
        trail = yield from _walk(reader, root, path)
        if trail:
            break
    else:
        return  # only static programs can run from it
    room -= fs.expect(reader.inode(trail[-1]), room)
    for start, path in ((root, b"etc/ld.so.cache"), (trail[:-1], b"libc.so.6")):
        found = yield from _walk(reader, start, path)
        if found:
            room -= fs.expect(reader.inode(found[-1]), room)
        yield
    if not program:
        return
    for folder in (b"",) if b"/" in program else FOLDERS:
        found = yield from _walk(reader, root, folder + program)
        if found:
            fs.expect(reader.inode(found[-1]), room)
            break


def _walk(reader: "Reader", start: list[int], path: bytes) -> "Generator[None, None, list[int]]":
    """Return the references from the root to `path`, links followed; empty where there is none.

    `start` are those to the folder that `path` is in.
    """
    trail, links = start[:], 0
    names = path.split(b"/")[::-1]
    while names:
        name = names.pop()
        if name == b"..":
            trail = trail[:-1] or trail
        elif name and name != b".":
            folder = reader.inode(trail[-1])
            entry = reader.lookup(folder, name) if folder.kind == DIR else 0
            yield
            if not entry:
                return []
            one = reader.inode(entry >> 36)
            if one.kind != SYMLINK:
                trail.append(entry >> 36)
                continue
            links += 1
            if links > LINKS or one.size >= PATH_MAX:
                return []
            target = reader.target(one)
            if target.startswith(b"/"):
                del trail[1:]
            names += target.split(b"/")[::-1]
    return trail
