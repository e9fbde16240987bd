"""The CDI files of a host, and the devices that are asked for among all that they define."""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.cdi.spec import HINT, Spec, parse, split
from rootless_udi.mpi_inject.libraries.placing import DIRECTORIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LARGEST = 16 << 20


class Chosen(Record):
    """Devices of one specification. `every`: all devices of the kind were asked for."""

    spec: Spec
    names: tuple[str, ...]
    every: bool


class Broken(Record):
    """A CDI file that can't be used, and its text, perhaps "", for what it might define."""

    error: UdiError
    text: str


class Registry(Record):
    """All that the CDI directories define. `devices` maps VENDOR/CLASS=NAME to its specification.

    `conflicts` maps such a name to the files of one directory that both define it, `broken` lists
    files that could not be read.
    """

    devices: dict[str, Spec] = {}  # noqa: RUF012  (a Record is frozen)
    conflicts: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    broken: tuple[Broken, ...] = ()
    directories: tuple[str, ...] = DIRECTORIES


def load(directories: "Iterable[str]" = DIRECTORIES, root: str = "/") -> Registry:
    """Read every *.json and *.yaml file of `directories` beneath `root`.

    Raises nothing: a file that can't be read is listed in `broken`, for the error if a device that
    is asked for is in no other file.
    """
    devices: dict[str, Spec] = {}
    conflicts: dict[str, tuple[str, ...]] = {}
    broken: list[Broken] = []
    seen = set()
    directories = tuple(directories)
    for directory in directories:
        place = os.path.realpath(root.rstrip("/") + directory)
        if place in seen:
            continue
        seen.add(place)
        here: dict[str, Spec] = {}
        for name in _files(place):
            path, text = f"{directory}/{name}", ""
            try:
                text = _read(f"{place}/{name}", path)
                spec = parse(text, path)
            except UdiError as error:
                broken.append(Broken(error, text))
                continue
            for device in spec.devices:
                full = f"{spec.kind}={device}"
                if full in here:
                    conflicts[full] = (*conflicts.get(full, (here[full].path,)), path)
                else:
                    conflicts.pop(full, None)
                    here[full] = spec
        devices.update(here)
    return Registry(devices, conflicts, tuple(broken), directories)


def _files(place: str) -> list[str]:
    try:
        return sorted(n for n in os.listdir(place) if n.endswith((".json", ".yaml")))
    except OSError:
        return []


def _read(place: str, path: str) -> str:
    try:
        file = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Whoever writes this file decides on mounts and variables of containers with a GPU.
            trust.check(file, path, trust.keeper(os.path.dirname(place)), "CDI file")
            size = os.fstat(file).st_size
            if size > _LARGEST:
                raise UdiError(f"reading CDI file {path} failed: larger than 16 MiB", HINT)
            data = b""
            while len(data) <= _LARGEST and (more := os.read(file, 1 << 20)):
                data += more
        finally:
            os.close(file)
        return data.decode()
    except OSError as error:
        raise UdiError(f"reading CDI file {path} failed: {error.strerror}", HINT) from None
    except UnicodeDecodeError:
        raise UdiError(f"reading CDI file {path} failed: not UTF-8", HINT) from None


def kinds(registry: Registry) -> list[str]:
    """Return the VENDOR/CLASS words that have devices."""
    return sorted({full.partition("=")[0] for full in registry.devices})


def names(registry: Registry, kind: str) -> list[str]:
    """Return the names that stand for every device of `kind`: "all" where the vendor has it."""
    found = [n.partition("=")[2] for n in registry.devices if n.partition("=")[0] == kind]
    return ["all"] if "all" in found else sorted(found)


def choose(registry: Registry, devices: "Iterable[str]") -> list[Chosen]:
    """Return the devices of these full names; "all" as NAME means all of the kind.

    Raises UdiError for a device that no file has, that two have, or that may be in a broken one.
    """
    found: dict[tuple[str, bool], Chosen] = {}
    for device in devices:
        kind, name = split(device)
        every = names(registry, kind) if name == "all" else [name]
        for one in every or [name]:
            full = f"{kind}={one}"
            if full in registry.conflicts:
                files = " and ".join(registry.conflicts[full])
                raise UdiError(f"CDI device {full}: defined by both {files}", "remove one of them")
            spec = registry.devices.get(full)
            if spec is None:
                raise _missing(registry, full)
            key = (spec.path, name == "all")
            old = found.get(key, Chosen(spec, (), name == "all"))
            found[key] = old.replace(names=tuple(dict.fromkeys((*old.names, one))))
    return list(found.values())


def _missing(registry: Registry, full: str) -> UdiError:
    for broken in registry.broken:
        if full.partition("=")[0] in broken.text or not broken.text:
            return broken.error
    if not registry.directories:
        why = "the site has switched CDI off (gpu.cdi_spec_dirs is empty)"
        return UdiError(f"CDI device {full}: {why}", "try --gpu, which finds GPUs without it")
    places = " and ".join(registry.directories)
    have = ", ".join(sorted(registry.devices)) or "none"
    unread = "".join(f"; {one.error.message}" for one in registry.broken)
    return UdiError(f"CDI device {full}: not found in {places}", f"devices there: {have}{unread}")
