"""A mutating fuzzer over real images: `python3 -m tests.kit.fuzz_squashfs [SECONDS]` (600 of CPU).

Images are made by mksquashfs, compressed and not (uncompressed metadata lets a mutation reach the
structures). Each mutant is opened and walked with our own core in this process; what may come of it
is a UdiError, a Corrupt or an OSError. Anything else, more than 10 s of CPU for one mutant, or more
memory than LIMIT is a finding: the mutant is kept and the seed printed.
"""

import functools
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.protocol import LOOKUP, READDIRPLUS, READLINK
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.recorder import MOST, PATH_MAX, questions
from rootless_udi.fuse.warmup import steps
from tests.kit import fuseimages
from tests.kit import images as images_

EXPECTED = (UdiError, Corrupt, OSError)
LIMIT = 96 << 10
"""KiB of memory that mutants may need besides; each has 14 MiB of caches."""
SECONDS_EACH = 10
NODES = 1500
RAW = ("-noI", "-noD", "-noF", "-noX", "-noId")
INTERESTING = (0, 1, 2, 3, 7, 8, 14, 15, 0x7F, 0x80, 0xFF, 0xFFFF, 0x8000, 0x7FFFFFFF, 0xFFFFFFFF)


def images(folder: Path) -> list[bytes]:
    """Return the images that mutants are made of."""
    tar = fuseimages.everything()
    sets = (
        RAW,
        (*RAW, "-b", "4096"),
        ("-comp", "zstd"),
        ("-comp", "gzip", "-b", "4096"),
        ("-comp", "lz4"),
        ("-comp", "lzo"),
        ("-comp", "xz"),
        ("-comp", "zstd", "-no-fragments", "-b", "1M"),
    )
    found = []
    for number, options in enumerate(sets):
        path = fuseimages.mksquashfs(tar, folder / f"{number}", *options)
        found.append(path.read_bytes())
    loader = images_.tar(fuseimages.debian())
    for name, options in (("loader", ("-comp", "zstd")), ("raw-loader", RAW)):
        found.append(fuseimages.mksquashfs(loader, folder / name, *options).read_bytes())
    found.append(_large_directory(folder))
    return found


def _large_directory(folder: Path) -> bytes:
    (folder / "in").mkdir()
    for number in range(6000):
        os.mknod(folder / "in" / f"{number}-{'n' * 20}")
    argv: list[str | Path] = [
        "mksquashfs",
        folder / "in",
        folder / "large",
        *RAW,
        "-quiet",
        "-no-progress",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return (folder / "large").read_bytes()


def mutate(image: bytes, chance: random.Random) -> bytes:
    """Return `image` with a few bytes changed, most often where its structures are."""
    data = bytearray(image)
    tables = int.from_bytes(image[64:72], "little")
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        where = chance.random()
        if where < 0.1:
            at = chance.randrange(96)
        elif where < 0.85:
            at = chance.randrange(tables, len(data))
        else:
            at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            size = chance.choice((1, 2, 4, 8))
            value = chance.choice(INTERESTING) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == 2:
            data[at : at + 8] = chance.randbytes(8)
        elif kind == 3:  # a piece of the image in another place
            source = chance.randrange(tables, len(data))
            size = chance.randrange(1, 64)
            data[at : at + size] = data[source : source + size]
        elif kind == 4:
            size = chance.choice((4, 8))
            old = int.from_bytes(data[at : at + size], "little")
            new = (old + chance.choice((-1, 1, 16, -16, 4096))) % (1 << 8 * size)
            data[at : at + size] = new.to_bytes(size, "little")
        else:
            data[at] = chance.choice(INTERESTING) & 0xFF
    if chance.random() < 0.05:
        del data[chance.randrange(len(data)) :]
    return bytes(data)


def walk(path: Path, threads: int) -> Iterator[Exception]:
    """Ask for everything that the kernel might ask for; yield what was refused."""
    fd = os.open(path, os.O_RDONLY)
    try:
        try:
            fs = FileSystem(Reader(fd, "mutant", 6 << 20), 8 << 20, threads)
        except EXPECTED as error:
            yield error
            return
        fs.statfs()
        try:
            for _ in steps(fs):
                continue
        except EXPECTED as error:
            yield error
        seen, stack = {ROOT}, [ROOT]
        taken: list[tuple[int, int, bytes]] = []
        while stack and len(seen) < NODES:
            node = stack.pop()
            asks: list[Callable[[int], object]] = [fs.attributes, fs.readlink]
            asks += [functools.partial(ask, fs) for ask in (_xattrs, _data, _lookups)]
            for ask in asks:
                try:
                    ask(node)
                except EXPECTED as error:
                    yield error
            try:
                taken.append((READDIRPLUS, node, b""))
                for number, entry in enumerate(fs.entries(node, 0)):
                    taken += ((LOOKUP, node, entry[0] + b"\0"), (READLINK, entry[1], b""))
                    if entry[1] and entry[1] not in seen:
                        seen.add(entry[1])
                        stack.append(entry[1])
                    if number > NODES:
                        break
            except EXPECTED as error:
                yield error
        for kind, name, _, _ in questions(fs, taken[:MOST]):
            assert kind in "sdl" and len(name) < PATH_MAX + 256, name
        fs.close()
    finally:
        os.close(fd)


def _data(fs: FileSystem, node: int) -> None:
    size = fs.attributes(node)[1]
    for offset in (0, size // 2, max(size - 100, 0), 1 << 62):
        got = sum(len(part) for part in fs.read(node, offset, 300_000))
        assert got <= 300_000


def _xattrs(fs: FileSystem, node: int) -> None:
    for name in fs.xattrs(node):
        assert len(fs.xattr(node, name)) <= 65536


def _lookups(fs: FileSystem, node: int) -> None:
    for name in (b"absent", b"zzzz", b"0", b"n" * 256):
        fs.lookup(node, name)


def _alarm(_number: int, _frame: object) -> None:
    raise AssertionError(f"more than {SECONDS_EACH} s of CPU, or asleep")


def fuzz(seconds: float, seed: int, keep: Path) -> tuple[int, int]:
    """Run for `seconds` of CPU; return how many mutants there were and how many were refused.

    Raises AssertionError at the first finding, whose mutant is then in `keep`.
    """
    signal.signal(signal.SIGALRM, _alarm)
    signal.signal(signal.SIGPROF, _alarm)
    mutants = refused = 0
    with tempfile.TemporaryDirectory() as name:
        sources = images(Path(name))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        end = time.process_time() + seconds
        path = Path(name) / "mutant"
        while time.process_time() < end:
            chance = random.Random(seed + mutants)
            path.write_bytes(mutate(chance.choice(sources), chance))
            signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
            signal.setitimer(signal.ITIMER_REAL, 60 * SECONDS_EACH)  # for what hangs and sleeps
            try:
                # Not the errors: each holds the frames it went through, and a decompressor in them.
                kinds = {type(error) for error in walk(path, mutants % 2)}
                refused += bool(kinds & {Corrupt, UdiError})
            except BaseException as error:
                keep.write_bytes(path.read_bytes())
                traceback.print_exc()
                raise AssertionError(f"seed {seed + mutants}: {error!r}; see {keep}") from None
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            mutants += 1
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert more < LIMIT, f"seed {seed + mutants}: {more} KiB more are resident"
    return mutants, refused


if __name__ == "__main__":
    many, bad = fuzz(
        float(sys.argv[1]) if len(sys.argv) > 1 else 600,
        int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30),
        Path(tempfile.gettempdir()) / "squashfs-mutant",
    )
    print(f"{many} mutants, {bad} of them refused in part; nothing else happened")
