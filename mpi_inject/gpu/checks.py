"""Checks whether programs of an image can use the host's driver: C library, machine, CUDA.

Some modules are imported within functions, since few launches need them.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.placing import (
    LIB,
    PlacedLibrary,
    image_env,
    numbers,
    search_path,
)
from rootless_udi.plan.steps import Env, Injection, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from rootless_udi.mpi_inject.cdi.registry import Registry
    from rootless_udi.mpi_inject.gpu.cuda_require import Compat


class Context(Record):
    """What a plan depends on: the host below `root`, the image's facts, the caller."""

    root: str
    machine: str
    facts: "Mapping[str, Any]"
    environ: "Mapping[str, str]"
    registry: "Registry | None"
    """The host's CDI files, None where it has none."""
    glibc: str = "auto"
    """The value of --mpi-glibc."""

    @property
    def env(self) -> dict[str, str]:
        """The image's ENV."""
        return image_env(self.facts)


def finish(
    steps: list[Step], environment: list[Env], notes: list[str], libc: Injection
) -> Injection:
    """Add the directories and search paths that `steps` need, and what `loadable` gave."""
    made, paths = search_path(steps)
    return Injection(
        (*libc.steps, *made, *steps),
        (*paths, *environment, *libc.environment),
        tuple(dict.fromkeys((*libc.notes, *notes))),
        (),
        libc.together,
    )


def driver_checks(context: Context, version: str, may_compat: bool) -> tuple[list[Env], list[str]]:
    """Check that the driver runs the image's CUDA; if not, use its compatibility libraries."""
    found = image_compat(context.facts) if may_compat else None
    if found is None and not {"NVIDIA_REQUIRE_CUDA", "CUDA_VERSION"} & set(context.env):
        return [], []
    from rootless_udi.mpi_inject.gpu import cuda_require, nvidia

    model = next((gpu.model for gpu in nvidia.gpus(context.root)), "")
    why = cuda_require.compat(context.env, found, version, model)
    newer = found.version if found and why else ""
    unfit = cuda_require.unfit(found, version)
    note = cuda_require.check(context.env, context.environ, version, model, newer, unfit)
    notes = [text for text in (note, unfit) if text]
    if not why or found is None:
        return [], notes
    return [Env("prepend", "LD_LIBRARY_PATH", found.folder, reason=why)], notes


def image_compat(facts: "Mapping[str, Any]") -> "Compat | None":
    """Return the image's newest CUDA compatibility libraries."""
    found = []
    for one in (facts.get("elf") or {}).get("libraries", ()):
        folder, _slash, name = one["path"].rpartition("/")
        version = name.removeprefix("libcuda.so.")
        if folder.endswith("/compat") and name != version and len(numbers(version)) > 1:
            found.append((numbers(version), folder, version, one.get("drivers")))
    if not found:
        return None
    from rootless_udi.mpi_inject.gpu.cuda_require import Compat

    return Compat(*max(found, key=lambda one: one[0])[1:])


def loadable(context: Context, libraries: "Iterable[PlacedLibrary]") -> Injection:
    """Return what is put in so that the image's programs can load the driver's libraries.

    That is nothing, or the host's C library. Raises UdiError where they can't.
    """
    facts = context.facts.get("elf") or {}
    libraries = tuple(libraries)
    if not libraries or not facts:
        return Injection()
    machine, libc = facts.get("machine", ""), facts.get("libc", "")
    mine = libraries[0].machine
    if machine and mine and machine != mine:
        raise UdiError(
            f"the image's programs are for {machine}, the GPU driver's libraries for {mine}",
            f"use the image's {mine} variant: udi pull --platform=linux/{mine}",
        )
    if libc == "musl":
        raise UdiError(
            "the image's C library is musl; the GPU driver's libraries need glibc",
            "use an image made of Debian, Ubuntu, Rocky, SUSE, ... in place of Alpine",
        )
    versions = [v[6:] for v in facts.get("libc_versions", ()) if v.startswith("GLIBC_")]
    have = max((numbers(v) for v in versions), default=())
    worst = max(libraries, key=lambda one: numbers(one.glibc))
    if have and numbers(worst.glibc) > have:
        return _glibc(context, facts, worst, ".".join(str(n) for n in have))
    return Injection()


def _glibc(
    context: Context, facts: "Mapping[str, Any]", worst: PlacedLibrary, have: str
) -> Injection:
    """Return the host's C library over the image's, for a library that needs a newer one."""
    from rootless_udi.mpi_inject.libraries import glibc
    from rootless_udi.mpi_inject.libraries.search import HostLibraries

    why, hint = "", "--mpi-glibc=auto brings the host's along, "
    if context.glibc != "never":
        host = glibc.of_host(HostLibraries(context.root, (), worst.machine, worst.bits))
        why, hint = glibc.refusal(host, facts), ""
        if not why:
            what = f"{worst.name} needs GLIBC_{worst.glibc}"
            return glibc.over(host, facts, what, (), context.root, LIB)
        why = f"; the host's glibc can't come along: {why}"
    raise UdiError(
        f"the GPU driver's {worst.name} needs glibc {worst.glibc}; the image has {have}{why}",
        f"{hint}use an image with a newer C library, or ask the site for an older driver",
    )
