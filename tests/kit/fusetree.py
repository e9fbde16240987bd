"""Walk a tree and print all that can be seen of it, one JSON object a line. Runs inside of mounts.

As a program: `python3 -IS fusetree.py FOLDER`. As a module: `of_image` reads the same from an image
through our own file system core, `of_folder` from a folder.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator


def of_folder(root: bytes) -> Iterator[dict[str, object]]:
    """Yield what stat(2), readlink(2), read(2), listxattr(2) and readdir(3) tell, in name order."""
    stack = [b""]
    links: dict[int, str] = {}
    while stack:
        path = stack.pop()
        full = root + path
        info = os.lstat(full)
        one = _common(path, info.st_mode, info.st_nlink, info.st_uid, info.st_gid)
        one["mtime"], one["rdev"] = int(info.st_mtime), info.st_rdev
        one["xattrs"] = _xattrs(full)
        if stat.S_ISREG(info.st_mode):
            one["size"] = info.st_size
            one["same"] = links.setdefault(info.st_ino, os.fsdecode(path))
            one["sha256"] = _digest(full)
        elif stat.S_ISLNK(info.st_mode):
            one["size"], one["target"] = info.st_size, os.fsdecode(os.readlink(full))
        elif stat.S_ISDIR(info.st_mode):
            try:
                names = sorted(os.listdir(full), reverse=True)
            except PermissionError:
                names = []
            stack += [path + b"/" + name for name in names]
        yield one


def _common(path: bytes, mode: int, nlink: int, uid: int, gid: int) -> dict[str, object]:
    return {"path": os.fsdecode(path), "mode": oct(mode), "nlink": nlink, "uid": uid, "gid": gid}


def _xattrs(full: bytes) -> dict[str, str]:
    try:
        names = os.listxattr(full, follow_symlinks=False)
    except OSError:
        return {}
    return {n: os.getxattr(full, n, follow_symlinks=False).hex() for n in sorted(names)}


def _digest(full: bytes) -> str:
    digest = hashlib.sha256()
    try:
        with open(full, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except PermissionError:
        return ""
    return digest.hexdigest()


def of_image(path: str) -> Iterator[dict[str, object]]:
    """Yield the same, read by our own core from the image at `path`."""
    from rootless_udi.fuse.filesystem import ROOT, FileSystem
    from rootless_udi.fuse.reader import Reader

    fd = os.open(path, os.O_RDONLY)
    fs = FileSystem(Reader(fd, path))
    links: dict[int, str] = {}
    stack = [(b"", ROOT)]
    while stack:
        name, node = stack.pop()
        number, size, _, mtime, mode, nlink, uid, gid, rdev = fs.attributes(node)
        one = _common(name, mode, nlink, uid, gid)
        one["mtime"] = mtime
        one["rdev"] = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)
        one["xattrs"] = {k.decode(): fs.xattr(node, k).hex() for k in sorted(fs.xattrs(node))}
        if stat.S_ISREG(mode):
            one["size"], one["same"] = size, links.setdefault(number, os.fsdecode(name))
            digest = hashlib.sha256()
            for offset in range(0, size, 1 << 20):
                for part in fs.read(node, offset, 1 << 20):
                    digest.update(part)
            one["sha256"] = digest.hexdigest()
        elif stat.S_ISLNK(mode):
            one["size"], one["target"] = size, os.fsdecode(fs.readlink(node))
        elif stat.S_ISDIR(mode):
            found = [(e[0], e[1]) for e in fs.entries(node, 0) if e[1]]
            for child, one_node in sorted(found, reverse=True):
                assert fs.lookup(node, child) == one_node
                stack.append((name + b"/" + child, one_node))
        yield one
    os.close(fd)


if __name__ == "__main__":
    for line in of_folder(os.fsencode(sys.argv[1])):
        print(json.dumps(line))
