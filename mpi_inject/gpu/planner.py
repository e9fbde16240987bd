"""Plan what `--gpu` and `--device` put into a container: by CDI, or what is found without it.

The ranks of a node share a container, so the plan is the same for all of them; which card a rank
uses is decided later (`select`). This reads the host, and returns data.

Why LD_LIBRARY_PATH, and no new ld.so.cache as an update-ldcache hook makes: the driver's libraries
must fit the kernel module, so they must be found before a libcuda that is in the image. ld.so
searches LD_LIBRARY_PATH before the cache. It also works for images without a cache, and needs no
file, no overlay, and no look into the image. The price: programs that are started with another
LD_LIBRARY_PATH don't find the driver. docs/gpu.md says what to do then.
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.gpu.checks import Context
from rootless_udi.mpi_inject.libraries.placing import DIRECTORIES, KINDS, denied, no_access
from rootless_udi.mpi_inject.libraries.rooted import exists, unordered
from rootless_udi.plan.steps import Injection, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from rootless_udi.mpi_inject.gpu.drm import Card

VENDORS = ("nvidia", "amd", "intel")
WORDS = ("auto", *VENDORS, "cdi:NAME", "none")
VARIABLES = (
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_DISABLE_REQUIRE",
    "CUDA_MPS_PIPE_DIRECTORY",
    "LD_LIBRARY_PATH",
)
"""The caller's variables on which the plan depends; those that choose cards are not among them."""

_MARKS = {
    "nvidia": ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/nvmap"),
    "amd": ("/dev/kfd",),
    "intel": ("/dev/dri", "/dev/accel"),
}
"""Files of which a node with a vendor's GPU has one at least."""


def plan(
    request: str,
    devices: tuple[str, ...],
    facts: "Mapping[str, Any]",
    environ: "Mapping[str, str]",
    root: str = "/",
    machine: str = "",
    directories: tuple[str, ...] = DIRECTORIES,
    glibc: str = "auto",
) -> Injection:
    """Return what `--gpu=REQUEST` and the `--device` names put into a container.

    `facts` are the image's (empty for a foreign image: then its C library is not checked),
    `environ` the caller's environment, `machine` uname(2)'s word, `directories` where CDI files
    are, `glibc` the value of --mpi-glibc. An empty `request` means that there is no `--gpu`. Raises
    UdiError for what can't be done.
    """
    word, name = parse(request)
    if word == "none" and not devices:
        return Injection()
    registry = None
    if word == "cdi" or devices or _has_files(directories, root):
        from rootless_udi.mpi_inject.cdi import registry as cdi_registry

        registry = cdi_registry.load(directories, root)
    machine = machine or os.uname().machine
    context = Context(root, machine, facts, environ, registry, glibc)
    parts: list[Injection] = []
    if word == "cdi" or devices:
        from rootless_udi.mpi_inject.gpu import from_cdi

        parts.append(from_cdi.named(context, devices, name))
    if word in VENDORS:
        part = _vendor(context, word)
        if part is None:
            raise none_found((word,), directories)
        parts.append(part)
    elif word == "auto":
        parts += _auto(context, directories)
    return _merge(parts)


def _has_files(directories: "Iterable[str]", root: str) -> bool:
    """Tell whether a directory has a file that may be a CDI file."""
    names = (name for d in directories for name in unordered(root, d))
    return any(name.endswith((".json", ".yaml")) for name in names)


def parse(request: str) -> tuple[str, str]:
    """Split the value of --gpu into its word and a CDI name; raises UdiError."""
    word, colon, name = request.partition(":")
    if not request:
        return "none", ""
    if word == "cdi" and name:
        return word, name
    if colon or word not in WORDS:
        raise UdiError(f"--gpu={request}: unknown", f"write one of {', '.join(WORDS)}")
    return word, ""


def _auto(context: Context, directories: tuple[str, ...]) -> list[Injection]:
    """Return what each vendor's GPUs put in.

    A vendor's error is a note if another vendor's GPU works: a second card must not keep a run from
    the first.
    """
    parts: list[Injection] = []
    for vendor in VENDORS:
        try:
            part = _vendor(context, vendor)
        except UdiError as error:
            if not parts:
                raise
            part = Injection(notes=(f"{vendor} is left out: {error.message}",))
        if part is not None:
            parts.append(part)
    if not parts:
        raise none_found(VENDORS, directories)
    return parts


def _vendor(context: Context, vendor: str) -> Injection | None:
    """Return what a vendor's GPUs put in, by CDI where a specification is; None for no GPU."""
    stale = ""
    if context.registry is not None:
        from rootless_udi.mpi_inject.gpu import from_cdi

        part, stale = from_cdi.vendor(context, vendor)
        if part is not None:
            return part
    part = _discover(context, vendor)
    if not stale:
        return part
    if part is None:
        raise UdiError(stale, "ask the site to write it anew: nvidia-ctk cdi generate")
    return part.replace(notes=(f"{stale}; found without it", *part.notes))


def _discover(context: Context, vendor: str) -> Injection | None:
    """Look for a vendor's cards without CDI; import its module only where there may be some."""
    if not any(unordered(context.root, m) or exists(context.root, m) for m in _MARKS[vendor]):
        return None
    if vendor == "nvidia":
        from rootless_udi.mpi_inject.gpu import from_nvidia

        return from_nvidia.plan(context)
    if vendor == "amd":
        from rootless_udi.mpi_inject.gpu import amd as module
    else:
        from rootless_udi.mpi_inject.gpu import intel as module  # type: ignore[no-redef]
    cards = module.discover(context.root)
    return _cards(context, vendor, cards) if cards else None


def _cards(context: Context, vendor: str, cards: "list[Card]") -> Injection:
    """Check the nodes of AMD's and Intel's cards. Nothing is mounted, since /dev is the host's."""
    notes, refused, open_cards = [], [], 0
    for card in cards:
        bad = [(node, why) for node in card.nodes if (why := denied(context.root, node))]
        refused += bad
        open_cards += not bad
        state = "; ".join(f"{node}: {why}" for node, why in bad)
        notes.append(f"{vendor} {card.name}: {state or ' '.join(card.nodes)}")
    if not open_cards:
        raise no_access(context.root, *refused[0])
    notes.append(f"{vendor}: the libraries are the image's own, the host adds none")
    return Injection(notes=tuple(notes))


def none_found(vendors: "Iterable[str]", directories: "Iterable[str]") -> UdiError:
    """Return the error for a node without a GPU; it names all that was looked for.

    `directories` are those of CDI, empty where CDI was not used.
    """
    from rootless_udi.mpi_inject.gpu import amd, intel, nvidia

    looked = {"nvidia": nvidia.looked_for, "amd": amd.looked_for, "intel": intel.looked_for}
    kinds = ", ".join(kind for vendor in vendors for kind in KINDS[vendor])
    places = [looked[vendor]() for vendor in vendors]
    if directories:
        places.insert(0, f"CDI devices ({kinds}) in {', '.join(directories)}")
    return UdiError(
        f"no GPU found on {os.uname().nodename}: looked for {'; '.join(places)}",
        "start on a node with a GPU (srun --gpus=1 ...), or leave --gpu out",
    )


def _merge(parts: list[Injection]) -> Injection:
    """Join the parts. Of steps with the same target the first is kept, of equal operations too."""
    steps: dict[str, Step] = {}
    for part in parts:
        for step in part.steps:
            steps.setdefault(step.target, step)
    every = [operation for part in parts for operation in part.environment]
    return Injection(
        tuple(steps.values()),
        tuple(dict.fromkeys(every)),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        (),
        tuple(dict.fromkeys(target for part in parts for target in part.together)),
    )
