"""A squashfs file's superblock: what both udi-run and the image server must know of it. Pure.

udi-run reads only an image's first bytes (`rootless_udi.store.resolve.check`); the whole format is
in `rootless_udi.fuse.format`. Source: Documentation/filesystems/squashfs.rst and
fs/squashfs/squashfs_fs.h of Linux. All numbers are little-endian.
"""

MAGIC = 0x73717368
"""The first 4 bytes, "hsqs"."""
SIZE = 96
"""Bytes of a superblock."""
COMPRESSOR, VERSION, USED = slice(20, 22), slice(28, 32), slice(40, 48)
"""Where these fields are: the compressor's number, the version (2 bytes each for major and minor),
the image's size in bytes."""
VERSION_4_0 = b"\x04\0\0\0"
COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""Compressors' names by their number."""
OPTIMIZED = b"udi-hot1"
"""`udi optimize` writes this behind the superblock and the compressor's options
(`fuse.format.Superblock.hot`)."""
HEAD = 512
"""Bytes to read for a superblock and what may follow it there."""
INSIDE, ASKS = b"udi-fact", b"udi-asks"
"""Behind the squashfs a file may have facts, which `udi export` writes, and then questions, which
`udi optimize` writes (`serve.prefetch`). Both parts end with 16 bytes: this mark, and the part's
length with these 16 bytes, 8 bytes little-endian."""
