"""udi pack: a directory of many small files as one squashfs file, for --volume."""

import os

from rootless_udi.base.errors import UdiError, amount, counted
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common import newfile
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.commands.pull import compression_of
from rootless_udi.config import load
from rootless_udi.plan.options import SQUASHFS_SUFFIXES


def add(commands: Parsers) -> None:
    """Add the parser of `udi pack`."""
    one = command(commands, "pack", pack, "write a directory as one squashfs file, for --volume")
    one.add_argument("directory")
    one.add_argument("file", help="ends in .sqfs")
    one.add_argument("--compression", help="zstd[:LEVEL], gzip[:LEVEL], xz, lz4, lzo or none")
    one.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="FILE",
        help="the files that it names come first, in its order",
    )
    one.add_argument("--force", action="store_true", help="replace the file")


def pack(arguments: Arguments) -> int:
    """udi pack: write the file, with the list of its windows, and print its path."""
    from rootless_udi.layers import packing, squashfs_tools, tarwriter
    from rootless_udi.store import windows

    top, target = arguments.directory, arguments.file
    if not os.path.isdir(top):
        raise UdiError(f"packing {top} failed: it is no directory", "udi pack DIR FILE.sqfs")
    if not target.endswith(SQUASHFS_SUFFIXES):
        raise UdiError(f"{target} does not end in .sqfs, by which udi-run knows such a file")
    inside = os.path.realpath(os.path.dirname(os.path.abspath(target)))
    if f"{inside}/".startswith(f"{os.path.realpath(top)}/"):
        raise UdiError(
            f"packing {top} failed: {target} lies in it", "write it beside the directory"
        )
    compression = arguments.compression or compression_of(load.load(os.environ))
    first = _order(arguments.profile)
    with newfile.writing(target, arguments.force) as out:
        found = packing.look(top)
        total = 0

        def feed(write: tarwriter.Write) -> None:
            nonlocal total
            total = packing.write(top, found, first, write)

        # Its name of this process's: the file may have no other.
        name = f"/proc/{os.getpid()}/fd/{out.fileno()}"
        squashfs_tools.build(name, compression, feed, called=target)
        windows.append(out.fileno())
        size = os.fstat(out.fileno()).st_size
    if found.left_out:
        name = os.path.join(top, os.fsdecode(found.left_out[0]))
        number = len(found.left_out)
        tell(f"left out: {number} that {'is' if number == 1 else 'are'} no file, as {name}")
    files = f"{counted(len(found.files), 'file')} of {amount(total)}"
    tell(f"{files}, packed {amount(size)}")
    say(target)
    return 0


def _order(paths: "list[str]") -> "list[bytes]":
    """Return the files that profiles name, in the order in which they were read."""
    if not paths:
        return []
    from rootless_udi.fuse import profile

    merged = profile.merge([profile.load(path) for path in paths])
    return list(dict.fromkeys(one.path for one in merged if one.kind == "r"))
