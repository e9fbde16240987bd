"""What the GPU planners share: libraries to bind, device nodes. Paths are as in `rooted`."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.rooted import resolve, under
from rootless_udi.plan.site import Site
from rootless_udi.plan.steps import Directory, Env, Mount, Step, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LIB = "/opt/udiImage/gpu/lib"
BIN = "/opt/udiImage/gpu/bin"
OPTIONS = ("ro", "nosuid", "nodev")

DIRECTORIES = Site.cdi_spec_dirs
"""Where CDI specifications lie unless the site says otherwise."""

KINDS = {
    "nvidia": ("nvidia.com/gpu",),
    "amd": ("amd.com/gpu",),
    "intel": ("intel.com/gpu", "intel.com/gaudi", "habana.ai/gaudi"),
}
"""The CDI kinds that are a vendor's GPUs."""

SHARED = ("/dev", "/tmp", "/var/tmp")
"""Folders that are the host's own in every container."""


class PlacedLibrary(Record):
    """A host library to bind: `path` is a regular file, `links` are the names that lead to it."""

    path: str
    name: str
    links: tuple[str, ...] = ()
    glibc: str = ""
    """The newest GLIBC_x.y that it needs, without the prefix."""
    machine: str = ""
    bits: int = 64


def is_library(name: str) -> bool:
    """Tell whether a file's name is lib*.so or lib*.so.*: what ldconfig(8) looks at."""
    return name.startswith("lib") and (name.endswith(".so") or ".so." in name)


def library(root: str, path: str, name: str) -> PlacedLibrary:
    """Describe the library that `path`, maybe a symbolic link, leads to; raises UdiError."""
    return unless_link(root, path, name) or describe(root, resolve(root, path) or path, name)


def unless_link(
    root: str, path: str, name: str, links: "Iterable[str]" = ()
) -> PlacedLibrary | None:
    """Return what `describe` does, None for a symbolic link or a file that can't be opened.

    Most libraries are no links: so they cost one open(2), without a readlink(2) before it.
    """
    try:
        return _described(root, path, name, links, os.O_NOFOLLOW)
    except OSError:
        return None


def describe(root: str, path: str, name: str, links: "Iterable[str]" = ()) -> PlacedLibrary:
    """Read the SONAME and glibc need of the library at the real `path`, to be bound as `name`.

    Raises UdiError where it is no ELF file.
    """
    try:
        return _described(root, path, name, links)
    except OSError as error:
        raise _unread(path, str(error.strerror)) from None


def _described(
    root: str, path: str, name: str, links: "Iterable[str]", flags: int = 0
) -> PlacedLibrary:
    try:
        soname, needs, machine, bits = elf.look(under(root, path), _facts, flags)
    except elf.ElfError as error:
        raise _unread(path, str(error)) from None
    own = (soname,) if soname and "/" not in soname else ()
    every = dict.fromkeys((*own, *links))
    every.pop(name, None)
    return PlacedLibrary(path, name, tuple(every), _newest_glibc(needs), machine, bits)


def _facts(found: elf.ElfReader) -> "tuple[str, dict[str, tuple[str, ...]], str, int]":
    """Return soname, symbol versions, machine and bits: all of elf.Elf takes thrice the time."""
    return found.soname(), found.needs(), found.machine, found.bits


def _unread(path: str, why: str) -> UdiError:
    message = f"reading driver library {path} failed: {why}"
    return UdiError(message, "reinstall the driver on the node")


def elf_machine(machine: str) -> str:
    """Return uname(2)'s machine in the words of elf.MACHINES."""
    return "ppc64" if machine == "ppc64le" else machine


def fits(machine: str, bits: int, host: str) -> bool:
    """Tell whether a library of `machine` and `bits` is one for 64-bit programs of `host`."""
    return machine == elf_machine(host) and bits == 64


def _newest_glibc(needs: "Mapping[str, tuple[str, ...]]") -> str:
    """Return the newest x.y of the GLIBC_x.y versions in an Elf's `needs`, or ""."""
    newest: tuple[int, ...] = ()
    for versions in needs.values():
        known = _NEWEST.get(versions)
        if known is None:
            glibc = [numbers(v[6:]) for v in versions if v.startswith("GLIBC_")]
            known = _NEWEST[versions] = max(glibc, default=())
        if known > newest:
            newest = known
    return ".".join(map(str, newest))


def numbers(version: str) -> tuple[int, ...]:
    """Return "550.54.14" as (550, 54, 14), () where it is no such thing."""
    known = _NUMBERS.get(version)
    if known is None:
        parts = version.split(".")
        good = all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts)
        known = _NUMBERS[version] = tuple(map(int, parts)) if good else ()
    return known


_NUMBERS: dict[str, tuple[int, ...]] = {}
"""Kept results of `numbers`: thirty libraries need the same dozen versions of glibc."""
_NEWEST: dict[tuple[str, ...], tuple[int, ...]] = {}
"""Kept results for whole lists of versions, which are mostly equal too."""


def place(
    root: str, libraries: "Iterable[PlacedLibrary]", reason: str, options: tuple[str, ...] = OPTIONS
) -> list[Step]:
    """Return the steps that put `libraries` and their links into LIB."""
    steps: list[Step] = []
    taken = set()
    for one in libraries:
        target = f"{LIB}/{one.name}"
        if target in taken:
            continue
        taken.add(target)
        steps.append(Mount(target, under(root, one.path), options=options, reason=reason))
        for link in one.links:
            if f"{LIB}/{link}" not in taken:
                taken.add(f"{LIB}/{link}")
                why = f"the loader looks for {link}"
                steps.append(Symlink(f"{LIB}/{link}", one.name, why))
    return steps


def search_path(steps: "Iterable[Step]") -> tuple[list[Step], list[Env]]:
    """Return the directories and variables that `steps` into LIB and BIN need."""
    targets = [step.target for step in steps]
    made: list[Step] = []
    environment: list[Env] = []
    if any(t.startswith(LIB + "/") for t in targets):
        why = "driver libraries, behind every directory that the image names"
        made.append(Directory(LIB, reason="the host's driver libraries"))
        environment.append(Env("append", "LD_LIBRARY_PATH", LIB, reason=why))
    if any(t.startswith(BIN + "/") for t in targets):
        made.append(Directory(BIN, reason="the host's driver tools"))
        environment.append(Env("append", "PATH", BIN, reason="driver tools of the host"))
    return made, environment


def denied(root: str, path: str, how: int = os.R_OK | os.W_OK) -> str:
    """Return why the caller may not open the device node `path`, "" where he may.

    It asks access(2) and does not open the node: the first open of an NVIDIA node can take seconds,
    while the card wakes up, and a card that the job's cgroup does not allow can't be opened.
    """
    try:
        if os.access(under(root, path), how):
            return ""
        info = os.stat(under(root, path))
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return str(error.strerror)
    return f"no permission (mode {info.st_mode & 0o7777:04o}, group {_group_name(info.st_gid)})"


def _group_name(gid: int) -> str:
    """Return a group's name, the number where it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def no_access(root: str, path: str, why: str) -> UdiError:
    """Return the error for a device node that the caller may not use, with its remedy."""
    if why == "does not exist":
        advice = "load the driver's kernel modules on the node, or ask for another device"
    else:
        try:
            group = _group_name(os.stat(under(root, path)).st_gid)
            advice = f"ask the site to put you into the group {group}: usermod -aG {group} USER"
        except OSError:
            advice = "ask the site for access to the node's GPUs"
    return UdiError(f"GPU device {path}: {why}", advice)


def image_env(facts: "Mapping[str, Any]") -> dict[str, str]:
    """Return the image's ENV as a dict."""
    found = {}
    for item in facts.get("env") or ():
        name, equals, value = item.partition("=")
        if equals:
            found[name] = value
    return found
