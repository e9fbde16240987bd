"""Decompress what every dynamic program reads first, before the first program starts.

While the launcher makes the container's mounts, for 10 ms, the image server has little to do. Then
the command starts, and waits for ten blocks of the dynamic loader and the C library one after the
other. So the server looks these files up while it has no request, in small steps in its own thread,
the only one that may read metadata, and has a worker decompress them. Errors are ignored here: a
request that needs the same data gets them.
"""

from os import uname

from rootless_udi.fuse.format import DIR, SYMLINK, Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rootless_udi.fuse.filesystem import FileSystem
    from rootless_udi.fuse.reader import Reader

_LOADERS = {
    "x86_64": (b"lib64/ld-linux-x86-64.so.2", b"lib/ld-musl-x86_64.so.1"),
    "aarch64": (b"lib/ld-linux-aarch64.so.1", b"lib/ld-musl-aarch64.so.1"),
    "ppc64le": (b"lib64/ld64.so.2", b"lib/ld-musl-powerpc64le.so.1"),
    "riscv64": (b"lib/ld-linux-riscv64-lp64d.so.1", b"lib/ld-musl-riscv64.so.1"),
    "s390x": (b"lib/ld64.so.1", b"lib/ld-musl-s390x.so.1"),
}
"""uname(2)'s machine -> the dynamic loaders that programs name (PT_INTERP), of glibc and of musl.
musl's loader is its C library too."""
MOST = 10 << 20
"""Most bytes to decompress here. glibc and its loader have 2.2 MB, Python has 6.8."""
FOLDERS = (b"usr/local/bin/", b"usr/bin/", b"bin/")
"""Where a program is looked for that is named without a folder."""
ENTRIES = 100
"""Most entries of the root directory that are looked at; a distribution's has 20."""
LINKS, PATH_MAX = 40, 4096
"""The kernel's limits: links followed in one path, bytes of a path (path_resolution(7))."""


def steps(fs: "FileSystem", program: bytes = b"") -> "Iterator[None]":
    """Do the work, and yield after each step of 1 ms at most.

    The caller takes the next step when it has nothing else to do. `program` is the first word of
    the command that will be run, if it is known. Raises Corrupt, OSError.
    """
    reader, room = fs.reader, MOST
    root = [reader.super.root]
    # The inodes of the root directory's entries: the launcher lists that directory first.
    top = reader.inode(reader.super.root)
    listed = reader.entries(top, 0) if top.kind == DIR and reader.segments(top) else {}
    for entry in list(listed.values())[:ENTRIES]:
        yield
        try:
            reader.inode(entry >> 36)
        except Corrupt:
            continue
    for path in _LOADERS.get(uname().machine, ()):
        trail = yield from _walk(reader, root, path)
        if trail:
            break
    else:
        return  # an image of static programs
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
    """Return the references of all directories from the root to `path`, and its own; [] for none.

    Links are followed. `start` are the references from the root to the folder that `path` is in.
    Yields as `steps` does.
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
