"""The bound of every field that a layer, a manifest or an image can choose, and the reason for it.

The pull's numbers are here. The image server's are where it uses them, so that a start need not
load this; the table names them too. A test compares the table with the code: every field of a tar
header, keyword of pax, key of a document and field of squashfs that is read has a row.

Things of which an image has many (names, link targets, extended attributes, whiteouts) have no
bound for each kind. The memory that they take is counted while they are read, with what the
squashfs writer keeps of each (`ledger.Ledger`). The bound of that sum grows with the compressed
size of the layers, which whoever wants to fill our memory would have to send: 300,000 files fit in
any image, a million in one of 2 GB.
"""

from rootless_udi.base.records import Record
from rootless_udi.base.superblock import HEAD
from rootless_udi.fuse import blocks, filesystem, format, reader

MIB, GIB = 1 << 20, 1 << 30

HELD = 200 * MIB
HELD_SHARE = 8
"""What a merge may hold in memory, in bytes: HELD and one HELD_SHARE-th of the layers' size."""
CONTENT = 64 * GIB
CONTENT_RATIO = 2000
"""Most bytes of an image's uncompressed tars and the holes of their sparse files: CONTENT, and
CONTENT_RATIO times the compressed size of the layers. gzip shrinks to 1/1030 at best, zstd to
1/30,000."""
EXTENSION = MIB
"""Bytes of one pax header or GNU long name: as in Go's archive/tar, which containerd uses."""
GLOBAL = 64 << 10
"""Bytes of the global pax records that are in force: each member has them."""
FRAGMENTS = 1 << 17
"""Parts of one sparse file that are stored."""
SPARSE = 1 << 40
"""Bytes of one sparse file with its holes, also where CONTENT has room for more."""
PATH, NAME = 4095, 255
"""PATH_MAX and NAME_MAX of Linux (limits.h)."""
XATTR_NAME = 255
"""XATTR_NAME_MAX of Linux (limits.h)."""
XATTRS, XATTR_RECORD = 55 << 10, 24
"""Bytes of one member's extended attributes as pax records, and the bytes of a record beside name
and value. tar2sqfs reads headers of at most 64 KiB, in which path and target must fit too."""
STEPS, STEPS_EACH = 2_000_000, 40
"""Folders that are looked up in one layer while its links are followed: STEPS, and STEPS_EACH more
for each member of the layer."""
WAITS = 5_000_000
"""A hard link whose target is in a lower layer is looked for in each layer below it. Such look-ups
in all: WAITS, and STEPS_EACH more for each member of the layers."""
ENTRIES = 200_000
"""Entries of one folder: for each new one tar2sqfs and mksquashfs look through all the others,
which takes two minutes for this many."""
WINDOW = 64 * MIB
"""Bytes of a decompressor's window, the data it can refer back to: zstd to level 21, `xz -9`."""
XZ_MEMORY = 80 * MIB
"""Bytes that liblzma may allocate (lzma.LZMADecompressor, memlimit)."""
DOCUMENT = 4 * MIB
"""Bytes of an index, manifest or config: what registries accept (distribution-spec, "Pushing")."""
LAYERS = 1000
"""Layers of an image. Docker makes 127 at most; overlayfs mounts 500."""
INDEXES = 4
"""Indexes that refer to each other before a manifest is found."""
MEMBERS = 100_000
"""Of an archive of `docker save`: a file for each layer and document."""
OBSERVED = 96 * MIB
"""Bytes of a program or library whose ELF headers are read, if HELD leaves room to hold it."""
HISTORY = 256
"""Steps of the image's history that are kept."""
FACTS = 40 * MIB
"""Bytes of names (sonames, symbol versions) that are kept of all programs and libraries."""


class Row(Record):
    """The largest value of one field that a stranger chooses, and the reason for that bound.

    `form` is the format ("tar", "pax", "document", ...), `field` its name there, `most` a number,
    or words where it is no number.
    """

    form: str
    field: str
    most: int | str
    why: str


_COUNTED = "HELD"
_UNUSED = "not used"
_CUT = "its bits are cut out"
_BYTES = "CONTENT"

_TAR: tuple[tuple[str, int | str, str], ...] = (
    ("name", PATH, "joined with prefix; a part has 255 at most; all of them are counted in HELD"),
    ("mode", 0o7777, _CUT),
    ("size", _BYTES, "a stream that is passed on; of an extension header EXTENSION"),
    ("mtime", (1 << 32) - 1, "brought to what squashfs can say"),
    ("checksum", "exact", "the header is refused otherwise"),
    ("typeflag", "known ones", "others are refused"),
    ("linkname", PATH, "what symlink(2) makes; counted in HELD"),
    ("magic", "compared", "tells ustar from GNU"),
    ("prefix", PATH, "joined with name"),
    ("sparse", FRAGMENTS, "of GNU's old format: the entries of a map"),
    ("isextended", FRAGMENTS, "blocks of a map go on until it"),
    ("realsize", SPARSE, "holes are written out; they count for CONTENT"),
    ("members", _COUNTED, "each costs 250 to 1000 bytes and its names"),
    ("replaced members", _COUNTED, "100 bytes each, though only the last is in the image"),
    ("whiteouts", _COUNTED, "as members"),
    ("entries of one folder", ENTRIES, "the squashfs writers take quadratic time for them"),
    ("hard links that wait for lower layers", WAITS, "each layer is looked at for each of them"),
    ("folders within each other", PATH, "by the path's length; steps are counted in STEPS"),
    ("links followed", 40, "as the kernel does; what they lead through is counted in STEPS"),
    ("bytes of a layer", _BYTES, "each is decompressed, hashed and written once or twice"),
    ("window of the compressor", WINDOW, "it is held in memory"),
    ("window of xz", XZ_MEMORY, "as its library counts it"),
    ("bytes of a program", OBSERVED, "it is looked into in memory"),
    ("names in programs", FACTS, "they are kept to the end of the pull"),
)
_PAX: tuple[tuple[str, int | str, str], ...] = (
    ("path", PATH, "as name"),
    ("linkpath", PATH, "as linkname"),
    ("size", _BYTES, "20 digits at most"),
    ("mtime", (1 << 32) - 1, "20 digits at most"),
    ("SCHILY.xattr.", XATTRS, "user.* alone is kept, the others are dropped as they are read"),
    ("LIBARCHIVE.xattr.", XATTRS, "as SCHILY.xattr."),
    ("xattrs of a member", XATTRS, "what tar2sqfs takes; what is beyond is dropped"),
    ("sum of xattrs", _COUNTED, "the squashfs writer keeps them all"),
    ("GNU.sparse.name", PATH, "as name"),
    ("GNU.sparse.size", SPARSE, "as realsize"),
    ("GNU.sparse.realsize", SPARSE, "as realsize"),
    ("GNU.sparse.numblocks", FRAGMENTS, "the map is what counts"),
    ("GNU.sparse.map", FRAGMENTS, "an entry takes 130 bytes"),
    ("GNU.sparse.offset", FRAGMENTS, "as the map"),
    ("GNU.sparse.numbytes", FRAGMENTS, "as the map"),
    ("GNU.sparse.major", 1, "others are refused"),
    ("GNU.sparse.minor", 0, "others are refused"),
    ("header", EXTENSION, "all other keywords are passed over"),
    ("global headers", GLOBAL, "the sum of what is in force"),
)
_DOCUMENTS: tuple[tuple[str, int | str, str], ...] = (
    ("bytes", DOCUMENT, "of each document: its strings, lists and objects come to 30 times it"),
    ("depth", "1000 or so", "Python's limit of recursion; a line says so"),
    ("digits of a number", 4300, "Python's limit; a line says so"),
    ("mediaType", "known ones", "others are refused or passed over"),
    ("digest", 135, "sha256 or sha512 in hexadecimal"),
    ("size", (1 << 62) - 1, "compared with what is sent; the store must have room"),
    ("annotations", DOCUMENT, "read for names of tags, and for a digest"),
    ("artifactType", "compared", "tells a pushed squashfs; its facts have 64 MiB at most"),
    ("subject", DOCUMENT, "as a descriptor"),
    ("manifests", DOCUMENT, "entries of an index; one is chosen"),
    ("indexes", INDEXES, "within each other"),
    ("platform", "compared", "with this machine's"),
    ("schemaVersion", 2, "others are refused"),
    ("imageLayoutVersion", 1, "others are refused"),
    ("config", DOCUMENT, "as a document"),
    ("layers", LAYERS, "each is opened, decompressed and hashed, the same blob as often as named"),
    ("rootfs", LAYERS, "its diff_ids are as many as the layers"),
    ("diff_ids", LAYERS, "as many as the layers"),
    ("os", "compared", "with this machine's"),
    ("architecture", "compared", "with this machine's"),
    ("variant", "compared", "with this machine's"),
    ("created", DOCUMENT, "kept as text"),
    ("Env", DOCUMENT, "kept as text; execve(2) has its own limit"),
    ("Entrypoint", DOCUMENT, "as Env"),
    ("Cmd", DOCUMENT, "as Env"),
    ("WorkingDir", DOCUMENT, "kept as text"),
    ("User", DOCUMENT, "kept as text"),
    ("Labels", DOCUMENT, "kept as text"),
    ("Volumes", DOCUMENT, "kept as text"),
    ("ExposedPorts", DOCUMENT, "kept as text"),
    ("history", HISTORY, "the steps that are kept, 400 characters of each"),
    ("created_by", 400, "characters that are kept"),
    ("comment", 400, "in place of created_by"),
    ("empty_layer", "compared", "with true"),
    ("Config", DOCUMENT, "of `docker save`: as a document"),
    ("Layers", LAYERS, "of `docker save`"),
    ("RepoTags", DOCUMENT, "of `docker save`"),
    ("members of an archive", MEMBERS, "of `docker save`: each is held"),
)
_PLACE = "the image's size"
_WHY_PLACE = "a read beyond it is refused"
_SQUASHFS: tuple[tuple[str, int | str, str], ...] = (
    ("superblock.base", "the file's size", "where a SIF file has its image; in the file"),
    ("superblock.block_log", 20, "blocks of 1 MiB"),
    ("superblock.block_size", MIB, "must be what block_log says"),
    ("superblock.bytes_used", "the file's size", "an image that is cut short is refused"),
    ("superblock.compressor", "known ones", "others are refused"),
    ("superblock.directory_table", _PLACE, _WHY_PLACE),
    ("superblock.export_table", _PLACE, _UNUSED),
    ("superblock.flags", 0xFFFF, "two of its bits are looked at"),
    ("superblock.fragment_count", "the table's size", "fragments are looked up one by one"),
    ("superblock.fragment_table", _PLACE, _WHY_PLACE),
    ("superblock.head", HEAD, "what is read of the start"),
    ("superblock.id_count", 65535, "36 bytes each"),
    ("superblock.id_table", _PLACE, _WHY_PLACE),
    ("superblock.inode_count", (1 << 32) - 1, "passed on to statfs(2)"),
    ("superblock.inode_table", _PLACE, _WHY_PLACE),
    ("superblock.mtime", (1 << 32) - 1, _UNUSED),
    ("superblock.root", _PLACE, _WHY_PLACE),
    ("superblock.xattr_table", _PLACE, _WHY_PLACE),
    ("inode.type", 14, "others are refused"),
    ("inode.mode", 0o7777, _CUT),
    ("inode.uid", 65535, "an index into the table of owners"),
    ("inode.gid", 65535, "an index into the table of owners"),
    ("inode.mtime", (1 << 32) - 1, "passed on"),
    ("inode.number", (1 << 32) - 1, "passed on"),
    ("dir.start", _PLACE, _WHY_PLACE),
    ("dir.nlink", (1 << 32) - 1, "passed on"),
    ("dir.size", 65535, "as ldir.size"),
    ("dir.offset", format.METADATA, "in a metadata block"),
    ("dir.parent", (1 << 32) - 1, "passed on"),
    ("ldir.nlink", (1 << 32) - 1, "passed on"),
    ("ldir.size", reader.LARGEST_LISTING, "parsed in parts of 64 KiB; their list is kept"),
    ("ldir.start", _PLACE, _WHY_PLACE),
    ("ldir.parent", (1 << 32) - 1, "passed on"),
    ("ldir.count", 65535, "rows of its index: gone through once"),
    ("ldir.offset", format.METADATA, "in a metadata block"),
    ("ldir.xattr", "the table's count", "others are refused"),
    ("reg.start", _PLACE, _WHY_PLACE),
    ("reg.fragment", "fragment_count", "others are refused"),
    ("reg.offset", "the fragment's size", "others are refused"),
    ("reg.size", blocks.MOST_BLOCKS, "blocks: what is kept of the list of them grows with it"),
    ("lreg.start", _PLACE, _WHY_PLACE),
    ("lreg.size", blocks.MOST_BLOCKS, "as reg.size"),
    ("lreg.sparse", "the size", "others count as none"),
    ("lreg.nlink", (1 << 32) - 1, "passed on"),
    ("lreg.fragment", "fragment_count", "others are refused"),
    ("lreg.offset", "the fragment's size", "others are refused"),
    ("lreg.xattr", "the table's count", "others are refused"),
    ("symlink.nlink", (1 << 32) - 1, "passed on"),
    ("symlink.size", format.LONGEST_TARGET, "what symlink(2) makes"),
    ("device.nlink", (1 << 32) - 1, "passed on"),
    ("device.rdev", (1 << 32) - 1, "passed on; the mount is nodev"),
    ("ldevice.nlink", (1 << 32) - 1, "passed on"),
    ("ldevice.rdev", (1 << 32) - 1, "passed on; the mount is nodev"),
    ("ldevice.xattr", "the table's count", "others are refused"),
    ("ipc.nlink", (1 << 32) - 1, "passed on"),
    ("lipc.nlink", (1 << 32) - 1, "passed on"),
    ("lipc.xattr", "the table's count", "others are refused"),
    ("listing.count", 256, "others are refused"),
    ("listing.start", _PLACE, _WHY_PLACE),
    ("listing.number", (1 << 32) - 1, "passed on"),
    ("entry.offset", format.METADATA, "in a metadata block"),
    ("entry.delta", 32767, "added to the number"),
    ("entry.type", 7, "others are refused"),
    ("entry.size", filesystem.LONGEST_NAME, "bytes of a name"),
    ("dir_index.where", "the listing's size", "others: the index is not used"),
    ("dir_index.start", _PLACE, _WHY_PLACE),
    ("dir_index.size", 256, "bytes of a name"),
    ("fragment.start", _PLACE, _WHY_PLACE),
    ("fragment.size", MIB, "the block size"),
    ("fragment.unused", 0, _UNUSED),
    ("xattr_table.start", _PLACE, _WHY_PLACE),
    ("xattr_table.count", "the table's size", "sets are looked up one by one"),
    ("xattr_table.unused", 0, _UNUSED),
    ("xattr_id.place", _PLACE, _WHY_PLACE),
    ("xattr_id.count", reader.XATTR_PAIRS, "names are kept, values read when asked for"),
    ("xattr_id.size", reader.XATTR_WALK, "counted as it is gone through"),
    ("xattr_entry.type", 2, "others are passed over"),
    ("xattr_entry.size", XATTR_NAME, "bytes of a name; XATTR_NAMES of all"),
    ("xattr value", reader.XATTR_VALUE, "XATTR_SIZE_MAX"),
    ("names of xattrs", reader.XATTR_NAMES, "of one inode: what listxattr(2) can give"),
    ("metadata block", format.METADATA, "others are refused"),
    ("hot.magic", "compared", "tells the marker of `udi optimize`"),
    ("hot.first", _PLACE, _WHY_PLACE),
    ("hot.first size", format.EXPECTED, "windows of 1 MiB"),
    ("hot.second", _PLACE, _WHY_PLACE),
    ("hot.second size", format.EXPECTED, "windows of 1 MiB"),
)

TABLE = tuple(
    Row(form, *row)
    for form, rows in (
        ("tar", _TAR),
        ("pax", _PAX),
        ("document", _DOCUMENTS),
        ("squashfs", _SQUASHFS),
    )
    for row in rows
)
