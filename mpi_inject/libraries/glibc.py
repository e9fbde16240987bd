"""Mount the host's C library (glibc) over an image's older one, all of its files or none.

A library of the host may need a newer glibc than the image has. Then all files of glibc must be the
host's, since those of two versions don't work together: with an older ld.so nothing starts, an
older libc ends with "stack smashing detected", an older libdl crashes. The image's own programs run
on a newer glibc, if that has all symbol versions of the old one. This is checked name by name for
each file, since distributions add versions of their own. `of_host` reads the host, all else is
pure.
"""

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.glibc_names import LDD, LOADERS, MOST, REQUIRED, names
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.mpi_inject.libraries.search import HostLibraries, default_folders, is_glibc
from rootless_udi.plan.steps import Env, Injection, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from rootless_udi.mpi_inject.libraries.search import Found

_PULL = "`udi pull --force` notes what is needed"


class Family(Record):
    """The host's glibc.

    `files` has name -> (real path, symbol versions); `folder` is where libc.so.6 is, by its real
    path.
    """

    files: "dict[str, tuple[str, tuple[str, ...]]]"
    folder: str
    machine: str


def of_host(host: HostLibraries) -> Family:
    """Read the C library of the host's own programs, whatever LD_LIBRARY_PATH says."""
    system = [f"{folder}/libc.so.6" for folder in default_folders(host.machine)]
    libc = next((p for p in (*host.cached("libc.so.6"), *system) if host.fits(p)), "")
    folder = libc.rpartition("/")[0]
    loader = LOADERS.get(host.machine, "")
    files = {}
    for name in sorted(names(host.machine)) if libc else ():
        path = loader if name == loader.rpartition("/")[2] else f"{folder}/{name}"
        real = host.real(path)
        found = host.read(real)
        if found and (found.machine, found.bits) == (host.machine, host.bits):
            files[name] = (real, found.defines)
    return Family(files, host.real(folder) if folder else "", host.machine)


def refusal(host: Family, image: "Mapping[str, Any]") -> str:
    """Return why the host's glibc can't be mounted over the image's, "" where it can. Pure."""
    own = image.get("glibc")
    if not own:
        return f"nothing was noted of the image's own when it was pulled: {_PULL}"
    loader = LOADERS.get(host.machine, "").rpartition("/")[2]
    if gone := [name for name in (*REQUIRED, loader) if name not in host.files]:
        return f"the host has no {gone[0] or 'glibc for ' + host.machine}"
    if own["broken"]:
        path, why = own["broken"][0]
        return f"the image's {path} {why}"
    have = {name for name, _path, _versions in own["files"]}
    if gone := [name for name in ("libc.so.6", loader) if name not in have]:
        return f"the image has no {gone[0]} where its programs look for it"
    if other := _other_loader(image):
        return f"the image's {other[0]} runs by a loader of its own, {other[1]}"
    for name, path, versions in own["files"]:
        defined = host.files[name][1] if name in host.files else ()
        lacks = [v for v in versions if v not in defined]
        if lacks and (name in host.files or name in REQUIRED):
            return f"the host's {name} has no {lacks[-1]}, which the image's {path} has"
    return ""


def _other_loader(image: "Mapping[str, Any]") -> "list[str]":
    """Return an MPI program, or an interpreter with MPI packages, that has another ld.so; and that.

    Such a program (of Nix, Spack, conda's sysroot) has a glibc of its own, over which nothing is
    mounted. Programs with another ld.so that don't use MPI (klibc, musl) are not affected.
    """
    others, reach = image["glibc"]["others"], image.get("reach")
    every = {row[0] for one in image["consumers"].values() for row in one.get("each", ())}
    packages = tuple(name for name in reach or () if "/" not in name)
    # There are more than the facts list, or the facts don't say what programs load.
    whole = len(others) > MOST or (bool(image["consumers"]) and not reach)
    for path, loader in others:
        named = bool(packages) and path.rpartition("/")[2].startswith(packages)
        if whole or named or path in every or path in (reach or ()):
            return [path, loader]
    return []


def over(
    host: Family,
    image: "Mapping[str, Any]",
    why: str,
    needed: "Iterable[Found]",
    root: str,
    beside: str,
) -> Injection:
    """Return the binds over each copy of the image's glibc, and notes about them. Pure.

    `why` says in these what needs it. `needed` are the host's libraries that are put in: files of
    glibc that they need and the image does not have go into the folder `beside`, where ld.so looks.
    """
    own = image["glibc"]
    steps = [
        Mount(path, under(root, host.files[name][0]), reason=f"the host's {name}: {why}", over=True)
        for name, path, _versions in own["files"]
        if name in host.files
    ]
    if path := own.get("ldd"):
        why_ldd = "the host's ldd: an older one does not know the host's ld.so"
        source = under(root, LDD[0])
        steps.append(Mount(path, source, required=False, reason=why_ldd, over=True))
    have = {name for name, _path, _versions in own["files"]}
    wanted = {name for one in needed for name in one.elf.needed if is_glibc(name)}
    for name in sorted((wanted - have) & set(host.files)):
        source = under(root, host.files[name][0])
        steps.append(Mount(f"{beside}/{name}", source, reason=f"the host's {name}: {why}"))
    notes = [f"the host's glibc is laid over the image's: {why}"]
    if stay := sorted(have - set(host.files)):
        notes.append(f"the image's {', '.join(stay)} can't be used: the host has none")
    if own["static"]:
        notes.append(
            "static programs that use NSS or iconv may crash with the host's glibc, whose modules"
            f" they load: {', '.join(own['static'])}"
        )
    if own["stack"]:
        notes.append(
            "libraries with an executable stack can't be loaded by dlopen with glibc 2.41 and later"
            f" (GLIBC_TUNABLES=glibc.rtld.execstack=2 allows it): {', '.join(own['stack'])}"
        )
    if own["others"]:
        notes.append(f"{own['others'][0][0]} keeps a C library of its own")
    # Under both names where /lib is a link to /usr/lib.
    places = [LOADERS[host.machine], *(step.target for step in steps if step.over)]
    places += [p.removeprefix("/usr") if p.startswith("/usr/") else "/usr" + p for p in places]
    together = tuple(dict.fromkeys(places))
    return Injection(tuple(steps), tuple(_layout(host, image)), tuple(notes), (), together)


def _layout(host: Family, image: "Mapping[str, Any]") -> "list[Env]":
    """Return variables that tell the host's glibc the image's folders, if its own are others.

    The folders that are searched last are compiled into ld.so, that of iconv's modules into libc.
    """
    libc = next(path for name, path, _ in image["glibc"]["files"] if name == "libc.so.6")
    folder, gconv = libc.rpartition("/")[0], image["glibc"]["gconv"]
    if folder.removeprefix("/usr") == host.folder.removeprefix("/usr"):
        return []
    found = []
    if gconv:
        why = "the image's modules of iconv, whose folder the host's glibc does not know"
        found.append(Env("append", "GCONV_PATH", gconv, why))
    if not image.get("cache"):
        why = "the image's library folders, which the host's ld.so does not know"
        found += [Env("append", "LD_LIBRARY_PATH", one, why) for one in image["search"]]
    return found
