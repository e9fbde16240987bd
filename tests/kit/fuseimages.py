"""Squashfs images for the tests, made by the real tools of a tar with all types of files."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

from tests.conftest import User
from tests.kit import images

COMPRESSORS = ("gzip", "lzo", "lz4", "xz", "zstd", "lzma")
"""What mksquashfs writes; tar2sqfs writes all but lzma."""
BLOCK_SIZES = (4096, 8192, 16384, 65536, 131072, 262144, 524288, 1048576)


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that no compressor makes smaller, the same for the same seed."""
    import random

    return random.Random(seed).randbytes(size)


def words(size: int, seed: int = 1) -> bytes:
    """Return bytes that compress well, unlike from place to place."""
    line = b"%d: the quick brown fox jumps over the lazy dog %d\n"
    return b"".join(line % (n, n * seed) for n in range(size // 40 + 1))[:size]


def everything(xattrs: bool = True) -> bytes:
    """Return a tar with every type of file, sizes around every edge, links, owners, names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _fill(archive, xattrs)
    return out.getvalue()


def _fill(archive: tarfile.TarFile, xattrs: bool) -> None:

    def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mtime = kind, len(data), 1_600_000_000
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        for key, value in more.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(data))

    add(".", tarfile.DIRTYPE, mode=0o751)
    for folder in ("sizes", "sizes/deep", "links", "special", "names", "owners", "empty", "many"):
        add(folder, tarfile.DIRTYPE)
    for size in (0, 1, 4095, 4096, 4097, 8192, 131071, 131072, 131073, 1 << 20, (3 << 20) + 17):
        add(f"sizes/words-{size}", data=words(size))
        add(f"sizes/noise-{size}", data=noise(size, size))
    add("sizes/zeros", data=bytes(700_000))
    add("sizes/holes", data=words(200_000) + bytes(1 << 20) + words(200_000, 2))
    add("sizes/deep/same", data=noise(131073, 131073))  # a duplicate: its blocks are shared
    add("links/one", data=b"hard")
    add("links/two", tarfile.LNKTYPE, linkname="links/one")
    add("links/three", tarfile.LNKTYPE, linkname="links/one")
    add("links/soft", tarfile.SYMTYPE, linkname="one")
    add("links/far", tarfile.SYMTYPE, linkname="/usr/" + "x" * 2000)
    add("links/dangling", tarfile.SYMTYPE, linkname="../nowhere/né")
    add("special/fifo", tarfile.FIFOTYPE)
    add("special/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    add("special/high", tarfile.CHRTYPE, devmajor=250, devminor=70000)
    add("special/disk", tarfile.BLKTYPE, devmajor=8, devminor=1)
    add("special/setuid", data=b"x", mode=0o4755)
    add("special/sticky", tarfile.DIRTYPE, mode=0o1777)
    add("names/" + "n" * 255, data=b"long")
    add("names/né ünï", data=b"utf-8")
    add("names/new\nline", data=b"newline")
    for n, owner in enumerate((0, 1, 1000, 65534, 4_000_000_000)):
        add(f"owners/{n}", data=b"x", uid=owner, gid=owner + 1)
    for n in range(700):
        add(f"many/file-{n:05d}", data=b"%d" % n)
    if xattrs:
        value = "v" * 3000
        pax = {"SCHILY.xattr.user.one": "1", "SCHILY.xattr.user.long": value}
        add("owners/xattrs", data=b"x", pax_headers=pax)
        add("owners/again", data=b"x", pax_headers={"SCHILY.xattr.user.long": value})
        add("owners/link", tarfile.SYMTYPE, linkname="again")
        add("owners/dir", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.user.d": "dir"})


LOADER, LIBC, CACHE = words(200_000), words(1_900_000, 2), words(20_000, 5)


def debian() -> list[images.Entry]:
    """Return the members of a tar with what every dynamic program needs, linked as Debian does."""
    folders = ("etc", "usr", "usr/bin", "usr/lib64", "usr/lib", "usr/lib/m")
    return [
        ("lib64", "usr/lib64", {}),
        ("lib", "usr/lib", {}),
        ("bin", "usr/bin", {}),
        *((name, None, {}) for name in folders),
        ("usr/lib64/ld-linux-x86-64.so.2", "../../lib/m/ld-linux-x86-64.so.2", {}),
        ("usr/lib/m/ld-linux-x86-64.so.2", LOADER, {}),
        ("usr/lib/m/libc.so.6", LIBC, {}),
        ("usr/lib/m/libm.so.6", words(900_000, 3), {}),
        ("etc/ld.so.cache", CACHE, {}),
        ("usr/bin/env", b"env", {}),
    ]


def mksquashfs(tar: bytes, image: Path, *options: str) -> Path:
    """Write `image` from `tar` with mksquashfs."""
    base = ["-tar", "-noappend", "-quiet", "-no-progress", "-mem", "256M", "-root-mode", "0755"]
    return _write(["mksquashfs", "-", str(image), *base, *options], tar, image)


def tar2sqfs(tar: bytes, image: Path, *options: str) -> Path:
    """Write `image` from `tar` with tar2sqfs."""
    return _write(["tar2sqfs", "-q", "-f", *options, str(image)], tar, image)


def _write(argv: list[str], tar: bytes, image: Path) -> Path:
    done = subprocess.run(argv, input=tar, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return image


def from_cache(tar: Path, name: str, *options: str) -> Path:
    """Return the squashfs of a cached tar, kept beside it: zstd level 3 as a pull makes it."""
    image = tar.with_name(f"{tar.stem}-{name}.sqfs")
    made = images.made_before(image.name)
    if made is not None and not options:
        return made
    if not image.exists():
        partial = image.with_suffix(f".{os.getpid()}")
        argv = ["tar2sqfs", "-q", "-f", "-c", "zstd", "-X", "level=3", *options, str(partial)]
        with open(tar, "rb") as file:
            subprocess.run(argv, stdin=file, check=True, capture_output=True, timeout=600)
        partial.rename(image)
    return image


def exported(user: User, folder: Path, size: int) -> Path:
    """Return an image with `size` bytes of noise that `udi export` wrote and the store has not;
    `folder` gets its layout."""
    layout = images.Layout(folder / "layout")
    entries = [*images.busybox_entries(), ("noise", noise(size), {})]
    layout.image("1", [images.tar(entries)], {"Env": ["FROM=afar", "PATH=/bin"]})
    name, path = f"oci:{layout.path}:1", user.home / "app.sqfs"
    for words in (("pull", "-q", name), ("export", name, path), ("rm", name)):
        done = user.run("udi", *words)
        assert done.returncode == 0, done.stderr
    return path
