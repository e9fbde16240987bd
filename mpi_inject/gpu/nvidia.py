"""Find the host's NVIDIA driver without CDI: libraries by version, tools, sockets, device nodes.

Nothing is loaded or run. A driver consists of a kernel module and of libraries, which must have the
same version; so the module's version tells which libraries are the right ones.
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import elf, ldcache
from rootless_udi.mpi_inject.libraries.nvidia_names import (
    DEFAULT,
    beginning,
    belongs,
    is_card,
    likely,
)
from rootless_udi.mpi_inject.libraries.placing import (
    PlacedLibrary,
    describe,
    elf_machine,
    fits,
    numbers,
    unless_link,
)
from rootless_udi.mpi_inject.libraries.rooted import Links, exists, listing, names, read, under

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PROGRAMS = {
    "nvidia-smi": "utility",
    "nvidia-debugdump": "utility",
    "nvidia-persistenced": "utility",
    "nvidia-cuda-mps-control": "compute",
    "nvidia-cuda-mps-server": "compute",
    "nvidia-imex-ctl": "compute",
}
_ROOTS = ("/run/nvidia/driver/usr", "/usr/local/nvidia", "/home/kubernetes/bin/nvidia")
"""Used like /usr where a container installed the driver: NVIDIA's GPU operator, clouds, GKE."""
_PROGRAM_FOLDERS = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/lib/wsl/lib",
    *(root + "/bin" for root in _ROOTS),
)
_MULTIARCH = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "ppc64le": "powerpc64le-linux-gnu",
}
WSL = "/usr/lib/wsl"
_TEGRA = ("/etc/nv_tegra_release", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/nvmap")
"""Files of NVIDIA's boards whose GPU is part of the processor (Jetson; L4T, JetPack)."""
_TEGRA_VERSION = "1.1"
"""The version in the name of L4T's libcuda.so.1.1, in every release."""
_CONFIGS = (
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xcb.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xlib.json",
    "/usr/share/nvidia/nvoptix.bin",
    "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.aarch64.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
    "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "/etc/OpenCL/vendors/nvidia.icd",
)
_LANDMARKS = (
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libnvidia-ptxjitcompiler.so.1",
    "libGLX_nvidia.so.0",
)
"""SONAMEs in ld.so.cache whose folders are searched. To read all of its entries takes 5 ms."""

SOCKETS = ("/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket")


class Gpu(Record):
    """One card, as /proc/driver/nvidia/gpus/*/information tells it; "" where it does not."""

    minor: str
    uuid: str
    model: str
    bus: str = ""


class Driver(Record):
    """The parts of the driver that are for the wanted capabilities.

    `programs` are (name, path), `files` (path inside, path). The caller must be able to open
    `nodes`, and need not be able to open the `extra` nodes.
    """

    version: str
    libraries: tuple[PlacedLibrary, ...]
    programs: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    nodes: tuple[str, ...]
    extra: tuple[str, ...]
    notes: tuple[str, ...] = ()
    wsl: bool = False


def looked_for() -> str:
    """Return what discovery looks at first, for the error on a node without a GPU."""
    return (
        "NVIDIA: /proc/driver/nvidia/version, /dev/nvidiactl, /dev/dxg (WSL), /dev/nvmap (Jetson)"
    )


def discover(
    root: str, machine: str, wanted: "Iterable[str]" = DEFAULT, search: "Iterable[str]" = ()
) -> Driver | None:
    """Return the driver's parts for `wanted` capabilities; None on a node that has none.

    `machine` is uname(2)'s, `search` are folders that come last. Raises UdiError for a driver that
    is there and broken, and for one of a Jetson.
    """
    wanted = tuple(wanted)
    version = kernel_version(read(root, "/proc/driver/nvidia/version"))
    wsl = exists(root, "/dev/dxg") and exists(root, WSL + "/lib")
    if not version and not wsl and not exists(root, "/dev/nvidiactl"):
        if tegra := _tegra(root):
            raise _jetson(tegra)
        return None
    notes: list[str] = []
    cached, note = _cached(root, machine)
    notes += [note] if note else []
    links = Links(root)
    usual = [f for d in (*_folders(machine), *search) if (f := links.resolve(d))]
    path, found = _libcuda(links, machine, version, cached, usual, notes)
    version = version or found
    folders = [os.path.dirname(path)]
    folders += [os.path.dirname(real) for e in cached if (real := links.resolve(e.path))]
    folders += usual
    libraries = _libraries(links, machine, version, list(dict.fromkeys(folders)), wanted, notes)
    devices = listing(root, "/dev")
    return Driver(
        version="" if wsl else version,
        libraries=tuple(libraries),
        programs=tuple(_programs(links, wanted)),
        files=tuple(_files(root, devices, wanted, wsl)),
        nodes=_needed_nodes(devices, wanted, wsl),
        extra=_other_nodes(root, devices),
        notes=tuple(notes),
        wsl=wsl,
    )


def folders(environ: "Mapping[str, str]") -> list[str]:
    """Return the caller's LD_LIBRARY_PATH, without CUDA's own folders of a libcuda.

    A stub does not work at all; compatibility libraries are the image's or the program's affair.
    """
    every = environ.get("LD_LIBRARY_PATH", "").split(":")
    return [f for f in every if f.startswith("/") and not {"stubs", "compat"} & set(f.split("/"))]


def kernel_version(text: str) -> str:
    """Return the version in /proc/driver/nvidia/version, "" where there is none.

    The line is "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu ...", with "Open"
    and "for x86_64" in it for the open module.
    """
    for line in text.splitlines():
        if line.startswith("NVRM version:"):
            for word in line.split():
                if len(numbers(word)) >= 2:
                    return word
    return ""


def gpus(root: str) -> "Iterator[Gpu]":
    """Yield the cards that the kernel module knows, in bus order; each is a file to read."""
    for bus in listing(root, "/proc/driver/nvidia/gpus"):
        facts = {}
        for line in read(root, f"/proc/driver/nvidia/gpus/{bus}/information").splitlines():
            key, _colon, value = line.partition(":")
            facts[key.strip()] = value.strip()
        uuid = facts.get("GPU UUID", "")
        good = uuid if "?" not in uuid else ""
        yield Gpu(facts.get("Device Minor", ""), good, facts.get("Model", ""), bus)


def _folders(machine: str) -> list[str]:
    """Return the usual places of driver libraries: distributions, WSL, containers, GKE, NixOS."""
    multiarch = _MULTIARCH.get(machine, f"{machine}-linux-gnu")
    return [
        f"/usr/lib/{multiarch}",
        f"/usr/lib/{multiarch}/nvidia/current",
        "/usr/lib64",
        "/usr/lib64/nvidia",
        WSL + "/lib",
        f"{_ROOTS[0]}/lib/{multiarch}",
        *(f"{root}/{name}" for root in _ROOTS for name in ("lib64", "lib")),
        "/run/opengl-driver/lib",
        "/usr/lib",
    ]


def _cached(root: str, machine: str) -> tuple[list[ldcache.Entry], str]:
    """Return the entries of ld.so.cache that tell where the driver is, and a note or ""."""
    try:
        with open(under(root, ldcache.PATH), "rb", buffering=0) as file:
            data = file.read()
        # parse() takes beginnings of names: with the NUL that ends it, it is the whole name.
        entries = ldcache.parse(data, tuple(name + "\0" for name in _LANDMARKS))
    except ldcache.LdCacheError as error:
        return [], f"{ldcache.PATH} of the host is passed over: {error}"
    except OSError:
        return [], ""
    return [e for e in entries if e.machine == elf_machine(machine) and not e.hwcaps], ""


def _libcuda(
    links: Links,
    machine: str,
    version: str,
    cached: "list[ldcache.Entry]",
    folders: list[str],
    notes: list[str],
) -> tuple[str, str]:
    """Return the real path of the right libcuda and the version in its name.

    It is that of the kernel module's version, if that is known; else ld.so's first one.
    """
    tried = [e.path for e in cached if e.name == "libcuda.so.1"]
    tried += [f"{d}/libcuda.so.1" for d in folders]
    if version:
        tried += [f"{os.path.dirname(p)}/libcuda.so.{version}" for p in tuple(tried)]
    found: dict[str, str] = {}
    dangling = []
    for path in dict.fromkeys(tried):
        real = links.resolve(path)
        if not real:
            if os.path.islink(under(links.root, path)):
                dangling.append(path)
        elif real not in found and _fits(links.root, real, machine):
            found[real] = real.rpartition("libcuda.so.")[2]
    notes += [f"{path} of the host leads nowhere" for path in dangling]
    for real, have in found.items():
        if not version or have == version or len(numbers(have)) < 2:
            if not version and len(set(found.values())) > 1:
                others = ", ".join(found)
                notes.append(f"several libcuda ({others}): the loader's first is taken, {real}")
            return real, have
    for real, have in found.items():
        if have == _TEGRA_VERSION:
            raise _jetson(_tegra(links.root) or real)
    raise _no_libcuda(version, sorted(set(found.values())), dangling, _folders(machine))


def _tegra(root: str) -> str:
    """Return a file by which the node is a Jetson or another board of NVIDIA's, or ""."""
    return next((path for path in _TEGRA if exists(root, path)), "")


def _jetson(mark: str) -> UdiError:
    """Return the error for a board's GPU.

    Its driver can't be told by a version in its files' names: it is dozens of libraries and nodes
    of L4T, which only NVIDIA's own lists name.
    """
    return UdiError(
        f"this node is an NVIDIA Jetson (Tegra; {mark}): the driver of its GPU can't be found"
        " without a CDI file",
        "have one written on the node: nvidia-ctk cdi generate --mode=csv"
        " --output=/etc/cdi/nvidia.yaml",
    )


def _no_libcuda(version: str, have: list[str], dangling: list[str], folders: list[str]) -> UdiError:
    """Return the error for a kernel module without libraries of its version."""
    loaded = f"NVIDIA kernel module {version}" if version else "NVIDIA device nodes"
    if have:
        return UdiError(
            f"{loaded} and libcuda {' and '.join(have)} do not match",
            "the driver was updated without a reboot: ask the site to reboot the node",
        )
    where = f"ld.so.cache, {', '.join(folders)}"
    if dangling:
        where = f"{dangling[0]} leads nowhere; {where}"
    return UdiError(
        f"{loaded} but no libcuda.so.1 of this machine was found: looked in {where}",
        "install the driver's libraries (nvidia-driver-cuda, libnvidia-compute) on the node; if"
        " they lie elsewhere, name their folder in ld.so.conf or LD_LIBRARY_PATH, or have a CDI"
        " file written: nvidia-ctk cdi generate",
    )


def _fits(root: str, path: str, machine: str) -> bool:
    """Tell whether `path` is a library that programs of `machine` can load."""
    try:
        have, bits = elf.look(under(root, path), lambda found: (found.machine, found.bits))
    except (elf.ElfError, OSError):
        return False
    return fits(have, bits, machine)


def _libraries(
    links: Links,
    machine: str,
    version: str,
    folders: list[str],
    wanted: tuple[str, ...],
    notes: list[str],
) -> list[PlacedLibrary]:
    """Return the driver's libraries in `folders`, of the wanted capabilities, each name once."""
    found: dict[str, PlacedLibrary] = {}
    root = links.root
    for folder in folders:
        every = names(root, folder)
        wsl = folder == WSL + "/lib"
        some = beginning(every, ("",)) if wsl else likely(every, version)
        some = [n for n in some if n not in found and belongs(n, version, wanted, wsl)]
        # A library and its links begin with the same five letters, and few others do.
        there = set(beginning(every, {name[:5] for name in some}))
        for name in some:
            path = real = f"{folder}/{name}"
            more = _links(name, there)
            one = unless_link(root, path, name, more)
            if one is None and os.path.islink(under(root, path)):
                real = links.resolve(path)
                if not real:
                    notes.append(f"{path} of the host leads nowhere")
                if wsl or real.rpartition("/")[2] != name:
                    # A link with another name than its file. (Debian's alternatives have the same.)
                    continue
            one = one or describe(root, real, name, more)
            if fits(one.machine, one.bits, machine):
                found[name] = one
    return list(found.values())


def _links(name: str, there: set[str]) -> list[str]:
    """Return further names of a library: programs may ask dlopen(3) for "libcuda.so"."""
    base = name.partition(".so")[0] + ".so"
    always = ("libcuda.so", "libnvidia-opticalflow.so")
    more = [n for n in (f"{base}.1", base) if n != name and n in there]
    return more if base in there or base not in always else [*more, base]


def _programs(links: Links, wanted: tuple[str, ...]) -> "Iterable[tuple[str, str]]":
    folders = [folder for d in _PROGRAM_FOLDERS if (folder := links.resolve(d))]
    for name, word in _PROGRAMS.items():
        if word not in wanted:
            continue
        for folder in folders:
            real = links.resolve(f"{folder}/{name}")
            if real:
                yield name, real
                break


def _files(
    root: str, devices: list[str], wanted: tuple[str, ...], wsl: bool
) -> "Iterator[tuple[str, str]]":
    """Yield sockets, configuration files, and WSL's driver store, as (path inside, path)."""
    own = list(SOCKETS)
    if any(n.startswith("nvidia-fs") for n in devices):
        own += ("/etc/cufile.json", "/run/udev")
    if wsl:
        own.append(WSL + "/drivers")
    yield from ((path, path) for path in own if exists(root, path))
    if "graphics" in wanted or "display" in wanted:
        for path in _CONFIGS:
            other = path.removeprefix("/usr")
            for one in (path, *(place + other for place in _ROOTS if other != path)):
                if exists(root, one):
                    yield path, one
                    break


def _needed_nodes(devices: list[str], wanted: tuple[str, ...], wsl: bool) -> tuple[str, ...]:
    if wsl:
        return ("/dev/dxg",)
    cards = [f"/dev/{n}" for n in devices if is_card(n)]
    memory = ["/dev/nvidia-uvm"] if "compute" in wanted else []
    return ("/dev/nvidiactl", *memory, *(cards or ["/dev/nvidia0"]))


def _other_nodes(root: str, devices: list[str]) -> tuple[str, ...]:
    known = ("nvidia-uvm-tools", "nvidia-modeset", "gdrdrv", "nvidia-nvswitchctl")
    found = []
    for name in devices:
        if name in known or name.startswith("nvidia-fs"):
            found.append(f"/dev/{name}")
        elif name in ("nvidia-caps", "nvidia-caps-imex-channels"):
            found += [f"/dev/{name}/{inner}" for inner in listing(root, f"/dev/{name}")]
    return tuple(found)
