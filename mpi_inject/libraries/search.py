"""Find host libraries as ld.so(8) would, and all that they need in turn.

Every path is looked for under `root`, so that a tree made for a test can stand for the host. Only
reads; nothing is run.
"""

import os

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import elf, ldcache
from rootless_udi.mpi_inject.libraries.rooted import MAXSYMLINKS, real, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_GLIBC = frozenset(
    (
        "ld-linux.so.2",
        "libBrokenLocale.so.1",
        "libanl.so.1",
        "libc.so.6",
        "libc_malloc_debug.so.0",
        "libdl.so.2",
        "libm.so.6",
        "libmvec.so.1",
        "libnsl.so.1",
        "libpthread.so.0",
        "libresolv.so.2",
        "librt.so.1",
        "libthread_db.so.1",
        "libutil.so.1",
    )
)
"""Files of glibc, which must be of one version with each other and with ld.so."""

MULTIARCH = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "ppc64": "powerpc64le-linux-gnu",
    "s390x": "s390x-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
    "arm": "arm-linux-gnueabihf",
    "i386": "i386-linux-gnu",
}
"""Debian's library folder of each machine."""


STACK = (
    "libabt",
    "libcollectives",
    "libcxi",
    "libefa",
    "libevent",
    "libfabric",
    "libgdrapi",
    "libhcoll",
    "libhns",
    "libhwloc",
    "libibumad",
    "libibverbs",
    "libirdma",
    "libmca_common",
    "libmemkind",
    "libmlx4",
    "libmlx5",
    "libmpi_gtl",
    "libocoms",
    "libopen-pal",
    "libopen-rte",
    "libopen_mpi",
    "libopa",
    "libpals",
    "libpmi",
    "libpmix",
    "libprrte",
    "libpsm",
    "librdmacm",
    "libsharp",
    "libucc",
    "libucm",
    "libucp",
    "libucs",
    "libuct",
    "libwlm_detect",
    "libxpmem",
)
"""How the names of libraries below an MPI begin: for the network, the launcher's interface, the
node's topology. If the host's MPI needs them, they must be the host's, whose drivers and daemons
they use."""

COMPILER = ("libstdc++", "libgcc_s", "libgfortran", "libquadmath", "libatomic", "libgomp")
"""GCC's run-time libraries. Newer ones work for programs of older compilers, older ones do not for
programs of newer compilers."""


def is_stack(name: str) -> bool:
    """Tell whether `name` is a library below an MPI (see STACK)."""
    return name.startswith(STACK)


def is_glibc(name: str) -> bool:
    """Tell whether `name` is a part of glibc or its dynamic linker."""
    return name in _GLIBC or name.startswith(("ld-linux", "ld64.so", "libnss_", "linux-vdso"))


def default_folders(machine: str) -> tuple[str, ...]:
    """Return the folders that ld.so searches last, Debian's among them."""
    arch = MULTIARCH.get(machine, "")
    debian = (f"/lib/{arch}", f"/usr/lib/{arch}") if arch else ()
    return (*debian, "/lib64", "/usr/lib64", "/lib", "/usr/lib")


class Found(Record):
    """A host library: the path it was found at, the real file, its ELF description.

    `names` are those that other libraries ask for it by; `wanted_by` is the first that did.
    """

    path: str
    real: str
    elf: elf.Elf
    name: str
    wanted_by: str = ""


class HostLibraries:
    """A host's libraries, found by its ld.so.cache and search rules; each file is read once."""

    def __init__(
        self, root: str = "/", search: "Iterable[str]" = (), machine: str = "", bits: int = 64
    ) -> None:
        """`search` is LD_LIBRARY_PATH in order; only files of `machine` and `bits` count."""
        self.root = root
        self.search = tuple(search)
        self.machine = machine or os.uname().machine
        self.bits = bits
        self.foreign: list[tuple[str, str]] = []
        self._files: dict[str, elf.Elf | None] = {}
        self._cache: tuple[ldcache.Names, ...] | None = None
        self._folders: dict[str, str] = {}
        self._listed: dict[str, tuple[str, ...]] = {}
        self._real: dict[str, str] = {}

    def read(self, path: str) -> "elf.Elf | None":
        """Return what is at `path`, or None where it is no ELF file that can be read.

        /lib and /usr/lib are mostly one folder, whose files are read once.
        """
        folder, _, name = path.rpartition("/")
        path = f"{self._folder(folder)}/{name}"
        if path not in self._files:
            try:
                self._files[path] = self._open(path)
            except (OSError, elf.ElfError):
                self._files[path] = None
        return self._files[path]

    def _open(self, path: str) -> elf.Elf:
        """Read an ELF file, and note its real path: one more system call while it is open."""
        file = os.open(under(self.root, path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self.root == "/":
                real_path = os.readlink(f"/proc/self/fd/{file}")
                if not real_path.endswith(" (deleted)"):
                    self._real[path] = real_path
            return elf.ElfReader(file).elf()
        finally:
            os.close(file)

    def needed(self, path: str) -> tuple[str, ...]:
        """Return DT_NEEDED of the ELF file at `path`: of a plugin nothing else is wanted."""
        try:
            file = os.open(under(self.root, path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ()
        try:
            return elf.ElfReader(file).needed()
        except (OSError, elf.ElfError):
            return ()
        finally:
            os.close(file)

    def listed(self, folder: str) -> tuple[str, ...]:
        """Return the names with ".so" in a folder, sorted, read once; () where there is none."""
        if folder not in self._listed:
            try:
                names = os.listdir(under(self.root, folder))
            except OSError:
                names = []
            self._listed[folder] = tuple(sorted(n for n in names if ".so" in n))
        return self._listed[folder]

    def cached_names(self, start: str) -> list[str]:
        """Return the names in ld.so.cache that begin with `start`, sorted.

        Listing a distribution's library folder of thousands would take a millisecond.
        """
        cache = self._names()
        return cache.names(start) if cache else []

    def cached(self, name: str) -> "list[str]":
        """Return the paths of `name` in ld.so.cache, those for every processor first."""
        cache = self._names()
        try:
            found = cache.find(name) if cache else []
        except ldcache.LdCacheError:
            return []
        return [path for _hwcaps, path in sorted((e.hwcaps, e.path) for e in found)]

    def _names(self) -> "ldcache.Names | None":
        """Return ld.so.cache; None where it is missing or damaged: ld.so ignores it then too."""
        if self._cache is None:
            try:
                with open(under(self.root, ldcache.PATH), "rb") as file:
                    data = file.read()
                self._cache = (ldcache.Names(data),)
            except (OSError, ldcache.LdCacheError):
                self._cache = ()
        return self._cache[0] if self._cache else None

    def _folder(self, folder: str) -> str:
        """Return the real path of a folder without a slash at its end, resolved once."""
        known = self._folders.get(folder)
        if known is None:
            known = self.real(folder) if folder else ""
            self._folders[folder] = known = known.rstrip("/")
        return known

    def real(self, path: str) -> str:
        """Return the real path; each file and folder is resolved once (realpath(3): 0.1 ms)."""
        folder, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            return real(self.root, path)
        path = f"{self._folder(folder)}/{name}"
        known = self._real.get(path)
        if known is None:
            known = self._real[path] = self._resolve(path)
        return known

    def _resolve(self, path: str) -> str:
        """Return the real path of a file whose folder is real."""
        folder = path.rpartition("/")[0]
        for _ in range(MAXSYMLINKS):
            try:
                target = os.readlink(under(self.root, path))
            except OSError:
                return path
            if "/" in target or target in (".", ".."):
                return real(self.root, path)
            path = f"{folder}/{target}"
        return path

    def find(self, name: str, by: "Found | None" = None, rpath: "Iterable[str]" = ()) -> str:
        """Return the path of `name`, wanted by the library `by`, or "" (ld.so(8)'s order).

        `rpath` is what the libraries that wanted `by` add by DT_RPATH, already expanded.
        """
        if "/" in name:
            return name if self.read(name) else ""
        folders = list(rpath) if by and not by.elf.runpath else []
        folders += self.search
        if by:
            folders += self.expand(by.elf.runpath, by)
        for folder in folders:
            if self.fits(f"{folder}/{name}"):
                return f"{folder}/{name}"
        for path in self.cached(name):
            if self.fits(path):
                return path
        for folder in default_folders(self.machine):
            if self.fits(f"{folder}/{name}"):
                return f"{folder}/{name}"
        return ""

    def fits(self, path: str) -> bool:
        """Tell whether there is an ELF file of the right machine; note those of another."""
        found = self.read(path)
        if found is None:
            return False
        if (found.machine, found.bits) == (self.machine, self.bits):
            return True
        what = found.machine if found.machine != self.machine else f"{found.bits} bits"
        self.foreign.append((path, what))
        return False

    def expand(self, folders: "Iterable[str]", of: Found) -> list[str]:
        """Return DT_RPATH or DT_RUNPATH with ld.so's $ORIGIN, $LIB and $PLATFORM replaced."""
        origin = of.path.rpartition("/")[0]
        libs = ["lib64", "lib/" + MULTIARCH.get(of.elf.machine, ""), "lib"]
        out = []
        for folder in folders:
            text = folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
            text = text.replace("${PLATFORM}", of.elf.machine).replace("$PLATFORM", of.elf.machine)
            for lib in libs if "$LIB" in text or "${LIB}" in text else libs[:1]:
                out.append(text.replace("${LIB}", lib).replace("$LIB", lib))
        return [f for f in out if f.startswith("/")]

    def load(self, path: str, name: str = "", wanted_by: str = "") -> "Found | None":
        """Return the library at `path`, or None where there is no ELF file."""
        found = self.read(path)
        if found is None:
            return None
        known = name or found.soname or path.rpartition("/")[2]
        return Found(path, self.real(path), found, known, wanted_by)

    def closure(
        self, first: "Iterable[Found]", keep: "Callable[[str, Found], bool]"
    ) -> "tuple[list[Found], list[tuple[str, str]]]":
        """Return `first` and all that they need, and (name, wanted by) of what was not found.

        `keep(name, by)` tells that `name` stays the image's own, as glibc always does: then neither
        it nor what it needs is looked for. Each name is looked at once, which ends circles.
        """
        queue = [(one, self.expand(() if one.elf.runpath else one.elf.rpath, one)) for one in first]
        done = {one.name for one, _ in queue} | {one.elf.soname for one, _ in queue}
        found, missing = [], []
        while queue:
            one, rpath = queue.pop(0)
            found.append(one)
            for name in one.elf.needed:
                if name in done or is_glibc(name) or keep(name, one):
                    continue
                done.add(name)
                path = self.find(name, one, rpath)
                new = self.load(path, name, one.name) if path else None
                if new is None:
                    missing.append((name, one.name))
                    continue
                own = self.expand(() if new.elf.runpath else new.elf.rpath, new)
                queue.append((new, own + rpath))
        return found, missing
