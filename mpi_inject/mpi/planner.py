"""Plan how a host's MPI is put into an image: which one, whether it fits, and the binds for it.

A launch calls `inject`. All that is known of the image are its facts (written by image_facts.py at
the pull). Programs must find the host's library however they were built. So it is bound over the
image's own files (for programs with an RPATH, conda, Spack); and it is, with all that it needs, in
a folder that comes first in LD_LIBRARY_PATH, under each name by which programs ask for it.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.mpi_inject.libraries.search import COMPILER, Found, HostLibraries, is_stack
from rootless_udi.mpi_inject.libraries.symbols import lacking
from rootless_udi.mpi_inject.mpi import command, discover, inside, network, profiles
from rootless_udi.mpi_inject.mpi.discover import HostMpi
from rootless_udi.mpi_inject.mpi.gather import Gathered, gather, too_new
from rootless_udi.mpi_inject.mpi.refusals import (
    check_image,
    judge,
    no_family,
    no_host_mpi,
    refuse_glibc,
    refuse_version,
)
from rootless_udi.plan.steps import Directory, Env, Injection, Mount, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from rootless_udi.mpi_inject.mpi.profiles import Profile
    from rootless_udi.plan.steps import Step

FOLDER, LIB, ROOT = inside.FOLDER, inside.LIB, inside.ROOT


def inject(
    wanted: str,
    compat: str,
    image: "dict[str, Any]",
    environ: "Mapping[str, str]",
    site: "Iterable[Profile]" = (),
    root: str = "/",
    words: "Sequence[str]" = (),
    env: "Mapping[str, str] | None" = None,
    glibc: str = "auto",
) -> Injection:
    """Return the steps that put a host MPI into the image.

    `wanted` is the value of --mpi ("" as "auto"), `compat` of --mpi-compat ("" as the profile's or
    "major"), `image` the facts' "elf" part, `site` the profiles, `words` the command and `env` its
    environment, `glibc` the value of --mpi-glibc. Raises UdiError where the command can't run on
    the host's MPI, with the library, symbol or version that is in the way.
    """
    if wanted == "none":
        return Injection()
    if compat and compat not in abi.CHECKS:
        raise UdiError(
            f"--mpi-compat={compat}: there is no such check", f"one of {', '.join(abi.CHECKS)}"
        )
    known = tuple(site)
    chosen: list[Profile] = []
    if wanted not in ("", *profiles.RESERVED):
        chosen = profiles.together(known, profiles.named(known, wanted))
    check_image(image)
    files = command.loaded(image, words, env or {})
    by = command.part(image, files) if files else image
    check_image(by)
    path = (p for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p.startswith("/"))
    search = (*(folder for p in chosen for folder in p.search), *path)
    host = HostLibraries(root, search, image["machine"], image["bits"])
    mpi, families = choose(wanted or "auto", by, environ, host, chosen)
    compat = compat or next((p.compat for p in chosen if p.compat), "major")
    got = gather(
        host,
        mpi,
        image,
        families,
        [path for p in chosen for path in (*p.dependencies, *p.preload)],
        [path for p in chosen for pattern in p.optional for path in profiles.expand(root, pattern)],
        compat in ("full", "strict"),
        by,
        glibc != "never",
    )
    planned = plan(got, image, compat, families, root, files)
    steps, environment = list(planned.steps), list(planned.environment)
    environment += network.variables(network.from_sys(root), environ)
    for profile in chosen:
        steps += profiles.mounts(profile, root)
        environment += profiles.variables(profile, environ)
        for name in profile.preload:
            where = f"{LIB}/{name.rpartition('/')[2]}"
            environment.append(Env("prepend", "LD_PRELOAD", where, f"MPI profile {profile.name}"))
    return planned.replace(steps=tuple(steps), environment=tuple(environment))


def programs(image: "dict[str, Any]") -> tuple[str, ...]:
    """Return the families that an image's programs are built for.

    mpi4py's wheel does not count: it has a module for each family and loads the one that works.
    """
    return tuple(
        family
        for family, one in image["consumers"].items()
        if family in abi.FAMILIES
        and (one["count"] > len(one["files"]) or any("/mpi4py/" not in f for f in one["files"]))
    )


def wanted_families(image: "dict[str, Any]") -> tuple[str, ...]:
    """Return the families that an image can use: of its programs, its libraries, of mpi4py."""
    libraries = {lib["family"] for lib in image["libraries"] if lib["role"] == "C"}
    strong = programs(image)
    found = tuple(f for f in abi.FAMILIES if f in libraries or f in strong)
    return found or tuple(f for f in abi.FAMILIES if f in image["consumers"])


def launcher(environ: "Mapping[str, str]") -> str:
    """Return the family of the launcher that started this process, "" where it can't be told."""
    if any(name in environ for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_UNIVERSE_SIZE")):
        return abi.OPENMPI
    if "PMIX_RANK" in environ:
        return ""
    return abi.MPICH if "PMI_RANK" in environ or "PMI_FD" in environ else ""


def choose(
    wanted: str,
    image: "dict[str, Any]",
    environ: "Mapping[str, str]",
    host: HostLibraries,
    chosen: "list[Profile]",
) -> tuple[HostMpi, tuple[str, ...]]:
    """Return the host MPI to use and which of the image's families it serves."""
    families = wanted_families(image)
    profile = next((p for p in chosen if p.family), None)
    found: Iterable[HostMpi]
    if profile:
        found = [of_profile(profile, host)]
        asked: tuple[str, ...] = (profile.family,)
    else:
        found = discover.find(environ, host)
        asked = (wanted,) if wanted in abi.FAMILIES else ()
    started = launcher(environ)
    other = {abi.MPICH: abi.OPENMPI, abi.OPENMPI: abi.MPICH}.get(started, "")
    must = programs(image) or families
    if asked and not profile:
        must = asked
    seen = []
    second = None
    for mpi in found:
        if not all(family in mpi.families for family in asked):
            continue
        if not families:
            return mpi, asked or mpi.families
        both = tuple(f for f in families if f in mpi.families)
        seen.append(mpi)
        if not set(must) & set(both) or (abi.ABI in must and abi.ABI not in both):
            # It serves no program, or not those of the standard ABI, which MPICH's launcher starts
            # too.
            continue
        if abi.ABI in both and other in mpi.families:
            # It knows its own launcher alone: each rank would be a job of one.
            continue
        if started not in families or started in both:
            return mpi, both
        second = second or (mpi, both)
    if second:
        return second
    if not seen:
        raise no_host_mpi(asked[0] if asked else "", host.foreign)
    raise no_family(must, seen, image)


def of_profile(profile: "Profile", host: HostLibraries) -> HostMpi:
    """Return the MPI of a profile: by the libraries it names, else those below its prefix."""
    origin = f"profile {profile.name}"
    if not profile.libraries:
        for folder in discover.folders(profile.prefix or "/usr", host.machine):
            for mpi in discover.at(folder, origin, host):
                if profile.family in mpi.families:
                    return mpi
        raise UdiError(
            f"MPI profile {profile.name}: no {abi.NAMES[profile.family]} library below"
            f" {profile.prefix or '/usr'}",
            "name its files in the profile: libraries = [...]",
        )
    files = {}
    for path in profile.libraries:
        if not host.fits(path):
            raise UdiError(
                f"MPI profile {profile.name}: {path}: {discover.why_not(host, path)}",
                "correct the profile, or use another one (--mpi=auto finds the host's MPI)",
            )
        files[path.rpartition("/")[2]] = path
    folder = next(iter(files.values())).rpartition("/")[0]
    families = tuple(dict.fromkeys(filter(None, (abi.identify(name)[0] for name in files))))
    return HostMpi(folder, families or (profile.family,), files, profile.prefix, origin)


def plan(
    got: Gathered,
    image: "dict[str, Any]",
    compat: str,
    families: "tuple[str, ...]",
    root: str,
    files: "set[str] | None" = None,
) -> Injection:
    """Return the steps that put a gathered MPI in. Raises UdiError where it can't be. Pure.

    `files` are the MPI files that the command loads, None where that isn't known.
    """
    for library in got.mains:
        for other in _pairs(library, image) if library.role not in abi.INNER else ():
            why = abi.CHECKS[compat](library, other)
            if why:
                raise refuse_version(library, other, why, compat)
    warnings = judge(got, image, families, files, compat == "warn")
    ours = _glibc(got, image, root)
    steps: list[Step] = [Directory(LIB, reason="libraries of the host's MPI")]
    names: dict[str, str] = {}
    for found in got.libraries:
        steps += _placed(found, names, root)
    steps += _aliases(got, names, image)
    steps += inside.trees(got, root)
    if got.mpi.prefix:
        steps.append(Mount(ROOT, under(root, got.mpi.prefix), reason="the host MPI's own tree"))
    over, notes = _over(got, image, root)
    steps += over
    served = [f for f in wanted_families(image) if f not in families]
    notes += [f"{abi.NAMES[f]} stays the image's own: one host MPI at a time" for f in served]
    notes += [f"the host has no {name}, which {by} needs" for name, by in got.absent]
    if not image["consumers"]:
        notes.append(f"no MPI program in the image; {got.mpi.text()} is on the search path")
    notes += got.dropped
    return Injection(
        (*ours.steps, *steps),
        (*inside.variables(got, names), *ours.environment),
        (*ours.notes, *notes),
        warnings,
        ours.together,
    )


def _glibc(got: Gathered, image: "dict[str, Any]", root: str) -> Injection:
    """Return the steps for the host's C library, where a library that is put in needs it."""
    for found in got.libraries:
        if versions := too_new(found, image):
            break
    else:
        return Injection()
    if got.glibc is None:
        raise refuse_glibc(found, versions[-1], image)
    from rootless_udi.mpi_inject.libraries import glibc

    if why := glibc.refusal(got.glibc, image):
        raise refuse_glibc(found, versions[-1], image, why)
    what = f"{found.name} needs {versions[-1]}"
    return glibc.over(got.glibc, image, what, got.libraries, root, LIB)


def _pairs(library: abi.Library, image: "dict[str, Any]") -> "list[abi.Library]":
    """Return the image's libraries that `library` would replace."""
    return [
        abi.Library(
            one["path"],
            one["soname"] or one["path"].rpartition("/")[2],
            one["family"],
            one["role"],
            tuple(one["version"]),
            one["release"],
        )
        for one in image["libraries"]
        if (one["family"], one["role"]) == (library.family, library.role)
        and one["machine"] == image["machine"]
    ]


def _placed(found: Found, names: "dict[str, str]", root: str) -> "list[Step]":
    """Return the bind of one library into the folder, and links for its other names."""
    known = list(dict.fromkeys(n for n in (found.name, found.elf.soname) if n))
    new = [n for n in known if n not in names]
    if not new:
        return []
    why = f"host's {found.name}"
    why += f", which {found.wanted_by} needs" if found.wanted_by else ""
    steps: list[Step] = [Mount(f"{LIB}/{new[0]}", under(root, found.real), reason=why)]
    steps += [Symlink(f"{LIB}/{n}", new[0], f"SONAME of {new[0]}") for n in new[1:]]
    names |= dict.fromkeys(new, new[0])
    return steps


def _aliases(got: Gathered, names: "dict[str, str]", image: "dict[str, Any]") -> "list[Step]":
    """Return links for the names of other distributions, and for those that dlopen(3) is given."""
    steps: list[Step] = []
    split = any(one["soname"] == abi.SPLIT_OFF for one in image["libraries"])
    for library in got.mains:
        other = list(abi.aliases(library.name))
        if library.role == "C":
            other.append(library.name.partition(".so")[0] + ".so")
            if library.family != abi.ABI:
                other.append("libmpi.so")
            if library.family == abi.OPENMPI and split:
                other.append(abi.SPLIT_OFF)
        for name in other:
            if name not in names:
                names[name] = names.get(library.name, library.name)
                steps.append(
                    Symlink(f"{LIB}/{name}", names[name], f"another name of {library.name}")
                )
    return steps


def _over(got: Gathered, image: "dict[str, Any]", root: str) -> "tuple[list[Step], list[str]]":
    """Return the binds over the image's own files, and the files that are left as they are."""
    steps: list[Step] = []
    notes: list[str] = []
    mains = {(m.family, m.role): m for m in got.mains if m.role not in abi.INNER}
    for one in image["libraries"]:
        if one["machine"] != image["machine"]:
            continue
        main = mains.get((one["family"], one["role"])) if one["family"] else None
        if one["soname"] == abi.SPLIT_OFF and all(f.name != abi.SPLIT_OFF for f in got.libraries):
            main = mains.get((abi.OPENMPI, "C"))
        found = _match(got, one, main)
        if found is None:
            continue
        what = f"host {main.text() if main else found.name} over the image's {_own(one)}"
        source = under(root, found.real)
        if main:
            why = f"{what}: same major, every symbol and glibc version is there"
            steps.append(Mount(one["path"], source, reason=why, over=True))
        elif gone := lacking(one["defines"], found.elf.defines):
            notes.append(f"{one['path']} stays: the host's {found.name} has no {gone[-1]}")
        elif is_stack(found.name) or one["defines"] != list(found.elf.defines):
            why = f"{what}: the host's MPI needs it"
            steps.append(Mount(one["path"], source, reason=why, over=True))
    return steps + inside.trees_over(got, image, root, {n.partition(" ")[0] for n in notes}), notes


def _match(got: Gathered, one: "dict[str, Any]", main: "abi.Library | None") -> "Found | None":
    """Return the host's library that is bound over the image's library `one`, None for none."""
    for found in got.libraries:
        if main:
            if found.path == main.path:
                return found
        elif one["soname"] and one["soname"] == (found.elf.soname or found.name):
            return found if is_stack(found.name) or found.name.startswith(COMPILER) else None
    return None


def _own(one: "dict[str, Any]") -> str:
    numbers = ".".join(map(str, one["version"]))
    release = f" ({one['release']})" if one["release"] else ""
    return (numbers or one["soname"]) + release
