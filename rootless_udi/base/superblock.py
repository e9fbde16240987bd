"""Of a squashfs file's superblock, what a start and the image server both have to know. Pure.

A start looks at these bytes of an image and no more (`rootless_udi.store.resolve.check`); the whole
format is in `rootless_udi.fuse.format`. Source: Documentation/filesystems/squashfs.rst and
fs/squashfs/squashfs_fs.h of Linux. All numbers are little-endian.
"""

MAGIC = 0x73717368
SIZE = 96
"""Bytes of a superblock."""
COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""Names by the number at byte 20."""
OPTIMIZED = b"udi-hot1"
"""What `udi optimize` writes behind the superblock and the compressor's options."""
HEAD = 512
"""Bytes to read for a superblock and what may follow it."""
