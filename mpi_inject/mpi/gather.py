"""Read all that belongs to a host MPI: its libraries, its plugin folders, and what it lacks.

Reads files of the host only. The result is data; `planner.plan` decides by it.
"""

import os

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.mpi_inject.libraries.search import Found, HostLibraries, is_glibc, is_stack
from rootless_udi.mpi_inject.libraries.symbols import lacking
from rootless_udi.mpi_inject.mpi import discover
from rootless_udi.mpi_inject.mpi.discover import HostMpi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rootless_udi.mpi_inject.libraries.glibc import Family

_PLUGINS = {
    "libucs": ("ucx",),
    "libfabric": ("libfabric", "prov"),
    "libpmix": ("pmix", "pmix2/lib/pmix"),
    "libhwloc": ("hwloc",),
    "libucc": ("ucc",),
    "libibverbs": ("libibverbs",),
    "libmpi.so.40": ("openmpi", "openmpi3", "openmpi/lib/openmpi3", "openmpi/lib/openmpi"),
}
"""How a library's name begins -> the folders beside it in which it looks for plugins."""

PLUGIN_FOLDERS = tuple(p.rpartition("/")[2] for places in _PLUGINS.values() for p in places)

READ = {
    "ucx": ("",),
    "libfabric": ("",),
    "openmpi": ("mca_pmix_", "mca_btl_", "mca_mtl_", "mca_pml_"),
}
"""Kind -> how the plugins begin whose needed libraries are read. Open MPI has more than a hundred
plugins, which would take 20 ms. All but these need nothing beside its own `libmca_common_*`."""

_PLAIN = tuple(
    f"mca_{name}"
    for name in ("btl_self", "btl_sm", "btl_tcp", "btl_vader", "pml_cm", "pml_mon", "pml_ob1")
)


class PluginTree(Record):
    """A folder of plugins on the host: `kind` is "ucx", "libfabric", "openmpi", ...

    `folder` is "" where the host has none, so that its library must not find the image's.
    """

    kind: str
    folder: str
    files: tuple[str, ...]


class Gathered(Record):
    """A host MPI with all that it needs.

    `mains` are its MPI libraries as abi.Library. `libraries` are these and all that they need, in
    the order found. `glibc` is the host's C library, where one of `libraries` needs a newer one
    than the image has. `trees` are its plugin folders. `dropped` are optional libraries that are
    left out, and why. `absent` are libraries that the host does not have, as (name, wanted by).
    `lacks` maps a family to the symbols that a file of the image needs and no library of the host
    has.
    """

    mpi: HostMpi
    mains: tuple[abi.Library, ...]
    libraries: tuple[Found, ...]
    trees: tuple[PluginTree, ...]
    dropped: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]
    lacks: "dict[str, tuple[str, ...]]"
    glibc: "Family | None" = None

    def roles(self, family: str) -> set[str]:
        """Return the roles of the host's libraries of a family."""
        return {lib.role for lib in self.mains if lib.family == family}


def too_new(found: Found, image: "dict[str, Any]") -> list[str]:
    """Return the symbol versions of glibc that a host library needs and the image's has not."""
    have = image["libc_versions"]
    out = []
    for name, versions in found.elf.needs.items():
        if is_glibc(name):
            out += lacking((v for v in versions if v != "GLIBC_PRIVATE"), have)
            out += [v for v in versions if v == "GLIBC_PRIVATE"]
    if not out:
        return out
    return sorted(set(out), key=lambda v: [int(w) if w.isdigit() else 0 for w in v.split(".")])


def gather(
    host: HostLibraries,
    mpi: HostMpi,
    image: "dict[str, Any]",
    families: "tuple[str, ...]",
    required: "Iterable[str]" = (),
    optional: "Iterable[str]" = (),
    exact: bool = False,
    by: "dict[str, Any] | None" = None,
    glibc: bool = False,
) -> Gathered:
    """Return what `mpi` needs in this image for these families.

    `by` is the part of the facts about files that the command loads; their libraries must be put
    in. `required` and `optional` are further libraries of a profile. With `exact` the version
    numbers that MPICH 4.1 and later don't export are searched for, which takes some ms. With
    `glibc` the host's C library is read where a library that must be put in needs a newer one.
    """
    group = _Group(host, image, glibc)
    first: list[tuple[str, str]] = []
    later: list[tuple[str, str]] = []
    asked = _roles(by or image, families)
    for name, path in mpi.files.items():
        family, role = abi.identify(name)
        if family in families:
            (first if role == "C" or (family, role) in asked else later).append((name, path))
    for path in required:
        first.append(("", path))
    group.add(_load(host, first), "")
    if not any(f.name in abi.MAIN for f in group.found):
        group.add(_load(host, later), "")
        later = []
    for one in later:
        group.add(_load(host, [one]), f"{one[0]} is left out")
    for path in optional:
        group.add(_load(host, [("", path)]), f"{path} is left out")
    for path in _extras(host, mpi, _trees(host, group.found), set(group.names)):
        group.add(_load(host, [("", path)]), f"{path} is left out")
    # Once more, since libraries that plugins need have plugins too (libibverbs its drivers).
    trees = _trees(host, group.found)
    trees += _bare(mpi, group.found, {t.kind for t in trees}, image) + _settings(
        host, mpi, group.found
    )
    mains = [f for f in group.found if abi.identify(f.name)[0] in families]
    libraries = tuple(discover.library(host, f, exact) for f in mains)
    lacks = {f: _lacks(host, mains, image, f, libraries) for f in families}
    return Gathered(
        mpi,
        libraries,
        tuple(group.found),
        tuple(trees),
        tuple(group.dropped),
        tuple(group.absent),
        {family: names for family, names in lacks.items() if names},
        group.glibc,
    )


def _roles(image: "dict[str, Any]", families: "tuple[str, ...]") -> set[tuple[str, str]]:
    """Return the (family, role) of libraries that the image's programs need by name."""
    return {
        abi.identify(name)
        for family in families
        for name in image["consumers"].get(family, {}).get("libraries", ())
    }


def _load(host: HostLibraries, files: "Iterable[tuple[str, str]]") -> list[Found]:
    """Load libraries, each real file once even where it has two names."""
    out: dict[str, Found] = {}
    for name, path in files:
        found = host.load(path, name)
        if found:
            out.setdefault(found.real, found)
    return list(out.values())


class _Group:
    """The libraries that are put in, added with all that they need."""

    def __init__(self, host: HostLibraries, image: "dict[str, Any]", may: bool) -> None:
        self.host, self.image, self.may = host, image, may
        self.glibc: Family | None = None
        self.found: list[Found] = []
        self.names: set[str] = set()
        self.absent: list[tuple[str, str]] = []
        self.dropped: list[str] = []

    def keep(self, name: str, by: Found) -> bool:
        """Tell whether a library is there already, or the image's own has what `by` needs."""
        if name in self.names:
            return True
        if is_stack(name) or abi.identify(name)[0]:
            return False
        have, wanted = self.image["provides"].get(name), by.elf.needs.get(name, ())
        if have is None or (wanted and not have):
            # One without symbol versions may be of any age, and ld.so says so to every process.
            return False
        return not lacking(wanted, have)

    def add(self, roots: list[Found], optional: str) -> None:
        """Add `roots` and all that they need; with `optional`, unless glibc is too old for one."""
        new = [r for r in roots if r.name not in self.names and r.elf.soname not in self.names]
        found, absent = self.host.closure(new, self.keep)
        if not optional and self.may and any(too_new(one, self.image) for one in found):
            from rootless_udi.mpi_inject.libraries import glibc

            self.glibc, self.may = glibc.of_host(self.host), False
        if optional:
            for one in found:
                versions = too_new(one, self.image) if self.glibc is None else []
                if versions:
                    self.dropped.append(f"{optional}: {one.name} needs {versions[-1]}")
                    return
            if absent:
                self.dropped.append(f"{optional}: the host has no {absent[0][0]}")
                return
        self.found += found
        self.absent += absent
        self.names |= {f.name for f in found} | {f.elf.soname for f in found if f.elf.soname}


def _trees(host: HostLibraries, found: list[Found]) -> list[PluginTree]:
    """Return the plugin folders beside the libraries."""
    out: dict[str, PluginTree] = {}
    for one in found:
        for start, places in _PLUGINS.items():
            if not one.name.startswith(start):
                continue
            folder = one.real.rpartition("/")[0]
            for place in places:
                files = host.listed(f"{folder}/{place}")
                kind = places[0]
                if kind == "openmpi":
                    # In Python wheels a folder of that name has libraries too.
                    files = tuple(f for f in files if f.startswith("mca_"))
                if files:
                    out.setdefault(kind, PluginTree(kind, f"{folder}/{place}", files))
    return list(out.values())


def _bare(
    mpi: HostMpi, found: list[Found], have: set[str], image: "dict[str, Any]"
) -> list[PluginTree]:
    """Return empty trees for libraries that have no plugins here, while the image has such plugins.

    So they don't find the image's. Libraries in the MPI's own tree look only there, and need none.
    """
    out = []
    for start, places in _PLUGINS.items():
        kind = places[0]
        if kind in have or kind == "libibverbs" or kind not in image.get("plugins", ()):
            continue
        own = mpi.prefix + "/" if mpi.prefix else "//"
        if any(f.name.startswith(start) and not f.real.startswith(own) for f in found):
            out.append(PluginTree(kind, "", ()))
    return out


def _settings(host: HostLibraries, mpi: HostMpi, found: list[Found]) -> list[PluginTree]:
    """Return the folders of settings and help texts that aren't in the MPI's own tree.

    A site tunes its Open MPI in openmpi-mca-params.conf. Debian's is needed in any case: it turns
    off components that don't work.
    """
    out = []
    if any(f.name == "libmpi.so.40" for f in found):
        arch = host.machine
        for kind, places in (
            ("openmpi-etc", ("/etc/openmpi", f"/etc/openmpi-{arch}")),
            ("openmpi-share", ("/usr/share/openmpi",)),
        ):
            own = f"{mpi.prefix}/{kind[8:]}"
            name = "openmpi-mca-params.conf" if kind == "openmpi-etc" else "help-mpi-runtime.txt"
            if mpi.prefix and any(_has(host, f"{own}{sub}/{name}") for sub in ("", "/openmpi")):
                continue
            out += [PluginTree(kind, p, ()) for p in places if _has(host, f"{p}/{name}")][:1]
    if any(f.name.startswith("libucs.") for f in found) and _has(host, "/etc/ucx/ucx.conf"):
        out.append(PluginTree("ucx-etc", "/etc/ucx", ()))
    return out


def _has(host: HostLibraries, path: str) -> bool:
    return os.path.exists(under(host.root, path))


def _extras(
    host: HostLibraries, mpi: HostMpi, trees: list[PluginTree], known: set[str]
) -> list[str]:
    """Return the libraries that plugins need beside the `known` ones, which are put in anyway."""
    out = []
    fabric = has_fabric(host)
    for tree in trees:
        if tree.kind != "openmpi" and not fabric:
            continue
        for name in tree.files:
            if name.startswith(READ.get(tree.kind, ())) and not name.startswith(_PLAIN):
                path = f"{tree.folder}/{name}"
                wanted = [n for n in host.needed(path) if is_stack(n) and n not in known]
                if wanted:
                    by = host.load(path)
                    out += [host.find(n, by) for n in wanted]
                    known |= set(wanted)
    for tree in trees:
        if tree.kind == "openmpi":
            folder = mpi.files["libmpi.so.40"].rpartition("/")[0]
            names = () if mpi.prefix else host.cached_names("libmca_common_")
            for name in names or host.listed(folder):
                if name.startswith("libmca_common_") and len(abi.split(name)[1]) == 1:
                    out.append(host.find(name) if names else f"{folder}/{name}")
    if mpi.prefix and host.read(f"{mpi.folder}/libfabric.so.1"):
        out.append(f"{mpi.folder}/libfabric.so.1")
    intel = f"{mpi.prefix}/opt/mpi/libfabric/lib/libfabric.so.1"
    if mpi.prefix and host.read(intel):
        out.append(intel)
    return list(dict.fromkeys(filter(None, out)))


def has_fabric(host: HostLibraries) -> bool:
    """Tell whether there is any hardware for the plugins of UCX and libfabric.

    If not, the libraries that these need are left out: they would cost 10 ms and be of no use.
    """
    for folder, starts in (("/sys/class/infiniband", ("",)), ("/dev", ("cxi", "hfi1"))):
        try:
            if any(name.startswith(starts) for name in os.listdir(under(host.root, folder))):
                return True
        except OSError:
            continue
    return False


def _lacks(
    host: HostLibraries,
    mains: list[Found],
    image: "dict[str, Any]",
    family: str,
    libraries: "tuple[abi.Library, ...]",
) -> tuple[str, ...]:
    """Return the symbols that the image's files need of `family` and the host's MPI lacks."""
    roles = {lib.role for lib in libraries if lib.family == family}
    left = sorted(wanted(image, family, roles))
    for main in mains:
        left = discover.missing(host.root, main.path, left)
    if left and family == abi.OPENMPI:
        for path in (host.find(n, m) for m in mains for n in m.elf.needed if n.startswith("libop")):
            left = discover.missing(host.root, path, left)
    return tuple(left)


def wanted(image: "dict[str, Any]", family: str, roles: "set[str]") -> "set[str]":
    """Return the symbols that the image's files need of a host's libraries of these roles."""
    one = image["consumers"].get(family, {})
    names = set(one.get("symbols", ()))
    if not roles & {"Fortran", "Fortran module", "Fortran 2008"}:
        names = {n for n in names if not n.startswith(("mpi_", "pmpi_", "mpix_"))}
    needs = [(names, one), *((set(own["symbols"]), own) for own in kept(image, family, roles))]
    names = set()
    for symbols, by in needs:
        # The facts of images that older versions pulled have no "provided".
        given = by.get("provided", {})
        names |= symbols.difference(*(given[role] for role in given if role not in roles))
    return names


def kept(image: "dict[str, Any]", family: str, roles: "set[str]") -> "list[dict[str, Any]]":
    """Return the image's MPI libraries that its programs need and no library of the host replaces.

    They call the host's C library of MPI then, which must have what they need.
    """
    needed = set(image["consumers"].get(family, {}).get("libraries", ()))
    own = [
        lib
        for lib in image["libraries"]
        if lib["family"] == family and lib["role"] in abi.INTERFACES and lib["role"] not in roles
    ]
    found: list[dict[str, Any]] = []
    while more := [lib for lib in own if lib not in found and needed & set(lib["names"])]:
        found += more
        needed |= {name for lib in more for name in lib["needed"]}
    return found
