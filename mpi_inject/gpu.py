"""Plan what a container gets for `--gpu` and `--device`: CDI first, else discovery. Data out.

The container is shared by a node's ranks, so everything here is the same for all of them, and
which card a rank uses is its own affair (gpuselect). Only reads the host; binds, never copies.

Why LD_LIBRARY_PATH and no generated ld.so.cache (what an update-ldcache hook amounts to): the
driver's libraries must match the kernel module, so they have to win over a libcuda that an image
happens to hold, and ld.so searches the variable before the cache; it works for images without a
cache and costs no file, no overlay and no reading of the image. The price: a program started with
another LD_LIBRARY_PATH does not find them. docs/gpu.md says so and how to mend it.
"""

import os

from rootless_udi.errors import UdiError
from rootless_udi.mpi_inject import amd, cdi_registry, cudareq, intel, nvidia
from rootless_udi.mpi_inject.cdi_edits import SHARED, StaleError, apply
from rootless_udi.mpi_inject.drm import Card
from rootless_udi.mpi_inject.gpu_parts import (
    BIN,
    OPTIONS,
    Library,
    denied,
    exists,
    image_env,
    no_access,
    numbers,
    place,
    search_path,
)
from rootless_udi.mpi_inject.libraries import under
from rootless_udi.mpi_inject.nvidia_names import capabilities, is_card
from rootless_udi.records import Record
from rootless_udi.steps import Env, Injection, Mount, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

VENDORS = ("nvidia", "amd", "intel")
WORDS = ("auto", *VENDORS, "cdi:NAME", "none")
VARIABLES = ("NVIDIA_DRIVER_CAPABILITIES", cudareq.DISABLE, "CUDA_MPS_PIPE_DIRECTORY")
"""The caller's variables that the plan depends on; the choice of cards is not among them."""

KINDS = {
    "nvidia": ("nvidia.com/gpu",),
    "amd": ("amd.com/gpu",),
    "intel": ("intel.com/gpu", "intel.com/gaudi", "habana.ai/gaudi"),
}


class Context(Record):
    """What the planning looks at: the host below `root`, the image's facts, the caller."""

    root: str
    machine: str
    facts: "Mapping[str, Any]"
    environ: "Mapping[str, str]"
    registry: cdi_registry.Registry

    @property
    def env(self) -> dict[str, str]:
        """The image's ENV."""
        return image_env(self.facts)


def plan(
    request: str,
    devices: tuple[str, ...],
    facts: "Mapping[str, Any]",
    environ: "Mapping[str, str]",
    root: str = "/",
    machine: str = "",
    directories: tuple[str, ...] = cdi_registry.DIRECTORIES,
) -> Injection:
    """Return what `--gpu=REQUEST` and the `--device` names put into a container.

    `facts` are the image's (empty for a foreign image: then its C library is not checked),
    `environ` the caller's environment, `machine` uname(2)'s word, `directories` where CDI files
    lie. An empty `request` is that of no `--gpu`. Raises UdiError for what can't be done.
    """
    word, name = parse(request)
    if word == "none" and not devices:
        return Injection()
    registry = cdi_registry.load(directories, root)
    machine = machine or os.uname().machine
    context = Context(root, machine, facts, environ, registry)
    parts: list[Injection] = []
    named = [*devices, *(_cdi_names(registry, name) if word == "cdi" else ())]
    if named:
        parts.append(_from_cdi(context, cdi_registry.choose(registry, named)))
    if word in VENDORS:
        part = _vendor(context, word)
        if part is None:
            raise none_found((word,), directories)
        parts.append(part)
    elif word == "auto":
        parts += _auto(context, directories)
    return _merge(parts)


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
    """Return every vendor's part. What is broken is an error, behind a vendor that works a note:
    a laptop's or server's second card must not stop a run on the first."""
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
    """Return a vendor's part, by CDI where the host has a specification; None without cards."""
    kinds = [k for k in KINDS[vendor] if k in cdi_registry.kinds(context.registry)]
    if kinds:
        try:
            return _from_cdi(
                context, cdi_registry.choose(context.registry, [f"{k}=all" for k in kinds])
            )
        except StaleError as error:
            stale = f"{error.message}; found without it"
            part = _discover(context, vendor)
            if part is None:
                raise
            return part.replace(notes=(stale, *part.notes))
    for broken in context.registry.broken:
        if any(kind in broken.text for kind in KINDS[vendor]):
            raise broken.error
    return _discover(context, vendor)


def _discover(context: Context, vendor: str) -> Injection | None:
    if vendor == "nvidia":
        return _nvidia(context)
    cards = amd.discover(context.root) if vendor == "amd" else intel.discover(context.root)
    return _cards(context, vendor, cards) if cards else None


def _cards(context: Context, vendor: str, cards: list[Card]) -> Injection:
    """Check the nodes of AMD and Intel cards; /dev is the host's, so there is nothing to mount."""
    notes, refused, open_cards = [], [], 0
    for card in cards:
        bad = [(node, why) for node in card.nodes if (why := denied(context.root, node))]
        refused += bad
        open_cards += not bad
        state = "; ".join(f"{node}: {why}" for node, why in bad)
        notes.append(f"{vendor} {card.driver} {card.device}: {state or ' '.join(card.nodes)}")
    if not open_cards:
        raise no_access(context.root, *refused[0])
    notes.append(f"{vendor}: the libraries are the image's own, the host adds none")
    return Injection(notes=tuple(notes))


def _nvidia(context: Context) -> Injection | None:
    """Return the part of an NVIDIA driver found without CDI."""
    root = context.root
    wanted = capabilities(context.env, context.environ)
    driver = nvidia.discover(root, context.machine, wanted)
    if driver is None:
        return None
    _usable(root, driver.nodes)
    version = driver.version or "of WSL"
    reason = f"NVIDIA driver {version}, found without CDI ({', '.join(wanted)})"
    _loadable(context, driver.libraries)
    steps = place(root, driver.libraries, reason)
    for name, path in driver.programs:
        steps.append(Mount(f"{BIN}/{name}", under(root, path), options=OPTIONS, reason=reason))
    steps += _files(context, driver, reason)
    environment, notes = _driver_checks(context, driver.version, True)
    nodes = ", ".join((*driver.nodes, *driver.extra))
    notes = [f"device nodes of the host: {nodes}", *driver.notes, *notes]
    if "compat32" in wanted and wanted != capabilities({}, {"NVIDIA_DRIVER_CAPABILITIES": "all"}):
        notes.append("compat32: 32-bit driver libraries are not offered")
    return _finish(steps, environment, notes)


def _usable(root: str, nodes: "Iterable[str]") -> None:
    """Raise UdiError unless every control node and one card may be used."""
    closed, opened = "", False
    for node in nodes:
        why = denied(root, node)
        if is_card(node.removeprefix("/dev/")):
            opened = opened or not why
            closed = closed or (node if why else "")
        elif why:
            error = no_access(root, node, why)
            if node == "/dev/nvidia-uvm" and why == "does not exist":
                advice = "load nvidia_uvm on the node: `nvidia-modprobe -u -c 0`, or reboot it"
                error = UdiError(error.message, advice)
            raise error
    if closed and not opened:
        raise no_access(root, closed, denied(root, closed))


def _files(context: Context, driver: nvidia.Driver, reason: str) -> list[Step]:
    """Mount sockets by their folder (a restarted daemon makes a new socket), files as they are."""
    steps: list[Step] = []
    for path in driver.files:
        options: tuple[str, ...] = OPTIONS
        if path in nvidia.SOCKETS:
            path, options = os.path.dirname(path), ("nosuid", "nodev", "noexec")
        elif path == nvidia.WSL + "/drivers":
            options = ("rec", *OPTIONS)
        steps.append(Mount(path, under(context.root, path), options=options, reason=reason))
    pipes = context.environ.get("CUDA_MPS_PIPE_DIRECTORY", "")
    shared = any(pipes.startswith(folder + "/") for folder in SHARED)
    if pipes.startswith("/") and not shared and exists(context.root, pipes):
        why = "CUDA_MPS_PIPE_DIRECTORY: the host's multi-process service"
        options = ("nosuid", "nodev", "noexec")
        steps.append(Mount(pipes, under(context.root, pipes), options=options, reason=why))
    return steps


def _from_cdi(context: Context, chosen: "list[cdi_registry.Chosen]") -> Injection:
    """Return the part of CDI devices, with the checks that NVIDIA's ask for."""
    wanted = capabilities(context.env, context.environ)
    edits = apply(chosen, context.root, wanted)
    _loadable(context, edits.libraries)
    environment, notes = list(edits.environment), list(edits.notes)
    for one in chosen:
        notes.insert(0, f"CDI: {one.spec.kind}={','.join(one.names)} of {one.spec.path}")
    if any(one.spec.kind.startswith("nvidia.com/") for one in chosen):
        version = _version_in(edits.steps)
        checked, more = _driver_checks(context, version, edits.compat)
        environment += checked
        notes += more
        environment += _chosen_cards(context, chosen)
    return _finish(list(edits.steps), environment, notes)


def _version_in(steps: "Iterable[Step]") -> str:
    """Return the driver's version from the name of a mounted libcuda, or ""."""
    for step in steps:
        name = step.target.rpartition("/libcuda.so.")[2]
        if name != step.target and len(numbers(name)) > 1:
            return name
    return ""


def _chosen_cards(context: Context, chosen: "list[cdi_registry.Chosen]") -> list[Env]:
    """Name single NVIDIA cards in NVIDIA_VISIBLE_DEVICES: gpuselect makes it each rank's choice.

    By UUID where the kernel module tells it, as CDI's index and CUDA's may differ.
    """
    uuids = {gpu.minor: gpu.uuid for gpu in nvidia.gpus(context.root) if gpu.uuid}
    words: list[str] = []
    for one in chosen:
        if one.every or "all" in one.names or one.spec.kind not in KINDS["nvidia"]:
            continue
        for name in one.names:
            if name.startswith(("GPU-", "MIG-")):
                words.append(name)
                continue
            nodes = one.spec.devices[name].get("deviceNodes", ())
            paths = [node.get("hostPath") or node["path"] for node in nodes]
            minors = [p[11:] for p in paths if is_card(p.removeprefix("/dev/"))]
            words += [uuids.get(minor, minor) for minor in minors]
    if not words:
        return []
    value = ",".join(dict.fromkeys(words))
    return [Env("set", "NVIDIA_VISIBLE_DEVICES", value, reason="the cards of --device")]


def _driver_checks(context: Context, version: str, may_compat: bool) -> tuple[list[Env], list[str]]:
    """Check the image's CUDA against the driver; prefer its compat libraries where it is newer."""
    gpus = nvidia.gpus(context.root)
    model = gpus[0].model if gpus else ""
    found = image_compat(context.facts) if may_compat else None
    why = cudareq.compat(context.env, found, version, model)
    newer = found.driver if found and why else ""
    note = cudareq.check(context.env, context.environ, version, model, newer)
    notes = [note] if note else []
    if not why or found is None:
        return [], notes
    return [Env("prepend", "LD_LIBRARY_PATH", found.directory, reason=why)], notes


def image_compat(facts: "Mapping[str, Any]") -> cudareq.Compat | None:
    """Return the image's CUDA compatibility libraries (/usr/local/cuda-*/compat), newest first."""
    found = []
    for one in (facts.get("elf") or {}).get("libraries", ()):
        folder, _slash, name = one["path"].rpartition("/")
        version = name.removeprefix("libcuda.so.")
        if folder.endswith("/compat") and name != version and len(numbers(version)) > 1:
            found.append((numbers(version), cudareq.Compat(folder, version)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _loadable(context: Context, libraries: "Iterable[Library]") -> None:
    """Raise UdiError where programs of the image can't load the driver's libraries."""
    facts = context.facts.get("elf") or {}
    libraries = tuple(libraries)
    if not libraries or not facts:
        return
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
        text = ".".join(str(n) for n in have)
        raise UdiError(
            f"the GPU driver's {worst.name} needs glibc {worst.glibc}; the image has {text}",
            "use an image with a newer C library, or ask the site for an older driver",
        )


def none_found(vendors: "Iterable[str]", directories: "Iterable[str]") -> UdiError:
    """Return the error for a node without a GPU: it names all that was looked for."""
    looked = {"nvidia": nvidia.looked_for, "amd": amd.looked_for, "intel": intel.looked_for}
    kinds = ", ".join(kind for vendor in vendors for kind in KINDS[vendor])
    places = "; ".join(looked[vendor]() for vendor in vendors)
    return UdiError(
        f"no GPU found on {os.uname().nodename}: looked for CDI devices ({kinds}) in"
        f" {', '.join(directories)}; {places}",
        "start on a node with a GPU (srun --gpus=1 ...), or leave --gpu out",
    )


def _cdi_names(registry: cdi_registry.Registry, name: str) -> list[str]:
    """Return the full names of `--gpu=cdi:NAME`: KIND=NAME, KIND (all of it), or a bare NAME."""
    if "=" in name:
        return [name]
    if "/" in name:
        return [f"{name}=all"]
    every = cdi_registry.kinds(registry)
    kinds = [k for k in every if f"{k}={name}" in registry.devices or name == "all"]
    if len(kinds) > 1:
        have = ", ".join(f"cdi:{k}={name}" for k in kinds)
        raise UdiError(f"--gpu=cdi:{name}: more than one CDI kind has it", f"write one of {have}")
    if not kinds:
        kinds = every[:1] or ["nvidia.com/gpu"]
    return [f"{kinds[0]}={name}"]


def _finish(steps: list[Step], environment: list[Env], notes: list[str]) -> Injection:
    made, paths = search_path(steps)
    return Injection((*made, *steps), (*paths, *environment), tuple(dict.fromkeys(notes)))


def _merge(parts: list[Injection]) -> Injection:
    """Join the parts; the first step of a target wins, as does the first of equal operations."""
    steps: dict[str, Step] = {}
    for part in parts:
        for step in part.steps:
            steps.setdefault(step.target, step)
    every = [operation for part in parts for operation in part.environment]
    return Injection(
        tuple(steps.values()),
        tuple(dict.fromkeys(every)),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
