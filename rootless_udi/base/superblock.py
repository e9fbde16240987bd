"""A squashfs file's superblock: what both udi-run and the image server must know of it. Pure.

udi-run reads only an image's first bytes (`rootless_udi.store.resolve.check`); the whole format is
in `rootless_udi.fuse.format`. Source: Documentation/filesystems/squashfs.rst and
fs/squashfs/squashfs_fs.h of Linux. All numbers are little-endian.
"""

MAGIC = 0x73717368
"""The first 4 bytes, "hsqs"."""
SIZE = 96
"""Bytes of a superblock."""
COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""Compressors' names by their number, 2 bytes at byte 20."""
OPTIMIZED = b"udi-hot1"
"""`udi optimize` writes this behind the superblock and the compressor's options
(`fuse.format.Superblock.hot`)."""
HEAD = 512
"""Bytes to read for a superblock and what may follow it there."""
