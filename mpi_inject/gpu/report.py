"""`udi gpu` and `udi gpu cdi`: what a node has, what would be injected, a CDI file of it."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.cdi import registry as cdi_registry
from rootless_udi.mpi_inject.cdi import spec
from rootless_udi.mpi_inject.gpu import amd, intel, nvidia, planner
from rootless_udi.mpi_inject.gpu.cuda_require import cuda_of
from rootless_udi.mpi_inject.gpu.drm import Card
from rootless_udi.mpi_inject.libraries.nvidia_names import WORDS, is_card
from rootless_udi.mpi_inject.libraries.placing import DIRECTORIES, denied
from rootless_udi.mpi_inject.libraries.rooted import exists
from rootless_udi.plan.steps import Env, Mount, Step, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

HOOK = "/usr/bin/nvidia-cdi-hook"
_BIND = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
_SOCKET = ["nosuid", "nodev", "noexec", "rbind", "rprivate"]


def report(
    request: str,
    devices: tuple[str, ...],
    environ: "Mapping[str, str]",
    root: str = "/",
    machine: str = "",
    directories: tuple[str, ...] = DIRECTORIES,
) -> list[str]:
    """Return the lines of `udi gpu`: the node's GPUs and CDI devices, then what would be put in.

    Raises UdiError as planner.plan does, and where there is no GPU.
    """
    machine = machine or os.uname().machine
    lines = _hardware(root, machine, environ) + _registry(cdi_registry.load(directories, root))
    planned = planner.plan(request, devices, {}, environ, root, machine, directories)
    nothing = " nothing but /dev, which every container has"
    added = planned.steps or planned.environment
    lines += ["", f"would be put into a container:{'' if added else nothing}"]
    lines += [f"  {_step(step)}  ({step.reason})" for step in planned.steps]
    lines += [f"  {_env(op)}  ({op.reason})" for op in planned.environment]
    return lines + [f"  note: {note}" for note in planned.notes]


def _hardware(root: str, machine: str, environ: "Mapping[str, str]") -> list[str]:
    lines = []
    driver = nvidia.discover(root, machine, search=nvidia.folders(environ))
    if driver:
        cuda, sure = cuda_of(driver.version)
        newest = f", CUDA {cuda}{'' if sure else ' or newer'}" if cuda else ""
        lines.append(f"NVIDIA driver {driver.version or 'of WSL'}{newest}")
        for card in nvidia.gpus(root):
            node = f"/dev/nvidia{card.minor}" if card.minor else ""
            known = filter(None, (node, card.model, card.uuid, card.bus))
            lines.append("  " + "  ".join(known))
        lines += [f"  {n}: {w}" for n in driver.nodes if (w := denied(root, n))]
    version = amd.version(root)
    lines += _cards(root, f"AMD {version}".rstrip(), amd.discover(root))
    return lines + _cards(root, "Intel", intel.discover(root))


def _cards(root: str, vendor: str, cards: list[Card]) -> list[str]:
    lines = []
    for card in cards:
        lines.append(f"{vendor} {card.name}  {' '.join(card.nodes)}  {card.bus}")
        lines += [f"  {n}: {w}" for n in card.nodes if (w := denied(root, n))]
    return lines


def _registry(registry: cdi_registry.Registry) -> list[str]:
    lines = [f"CDI device {n} of {s.path}" for n, s in sorted(registry.devices.items())]
    for name, files in sorted(registry.conflicts.items()):
        lines.append(f"CDI device {name} can't be used: in {' and '.join(files)}")
    return lines + [f"CDI: {broken.error.message}" for broken in registry.broken]


def _step(step: Step) -> str:
    if isinstance(step, Mount):
        return f"{step.target} <- {step.source}"
    if isinstance(step, Symlink):
        return f"{step.target} -> {step.to}"
    return f"{step.target}/"


def _env(operation: Env) -> str:
    words = {"append": "+=", "prepend": "=+", "set": "="}
    return f"{operation.name} {words[operation.op]} {operation.value}"


def specifications(
    root: str = "/", machine: str = "", environ: "Mapping[str, str] | None" = None
) -> "dict[str, str]":
    """Return the CDI files of what discovery finds: file name -> JSON text.

    Each is valid by the CDI JSON schema. So that other container engines find the libraries, it has
    hooks of nvidia-container-toolkit, if that is on the node; else each library is mounted under
    all of its names. Raises UdiError on a node without a GPU.
    """
    machine = machine or os.uname().machine
    documents: list[tuple[str, dict[str, Any]]] = []
    driver = nvidia.discover(root, machine, WORDS, nvidia.folders(environ or {}))
    if driver:
        documents.append(("nvidia", _nvidia(root, driver)))
    found = {"amd": amd.discover(root), "intel": intel.discover(root)}
    gaudi = [c for c in found["intel"] if c.nodes[0].startswith("/dev/accel")]
    for name, kind, cards in (
        ("amd", "amd.com/gpu", found["amd"]),
        ("intel", "intel.com/gpu", [c for c in found["intel"] if c not in gaudi]),
        ("intel-gaudi", "intel.com/gaudi", gaudi),
    ):
        if cards:
            documents.append(
                (name, _document(kind, [(str(i), c.nodes) for i, c in enumerate(cards)]))
            )
    if not documents:
        raise planner.none_found(planner.VENDORS, ())
    return {f"{name}.json": spec.dump(document, f"{name}.json") for name, document in documents}


def _document(kind: str, cards: "list[tuple[str, tuple[str, ...]]]") -> "dict[str, Any]":
    """Return a specification of these (name, nodes), and "all" of them."""
    every = tuple(dict.fromkeys(node for _name, nodes in cards for node in nodes))
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": n} for n in nodes]}}
        for name, nodes in (*cards, ("all", every))
    ]
    document = {"cdiVersion": "0.3.0", "kind": kind, "devices": devices}
    return document | {"cdiVersion": spec.least_version(document)}


def _nvidia(root: str, driver: nvidia.Driver) -> "dict[str, Any]":
    cards: list[tuple[str, tuple[str, ...]]] = []
    if driver.wsl:
        cards = [("0", driver.nodes)]
    uuids = {card.minor: card.uuid for card in nvidia.gpus(root) if card.uuid}
    for node in driver.nodes:
        number = node.removeprefix("/dev/nvidia")
        if is_card(node.removeprefix("/dev/")) and exists(root, node):
            names = [number, uuids[number]] if number in uuids else [number]
            cards += [(name, (node,)) for name in names]
    if not cards:
        raise UdiError("no /dev/nvidia* card on this node", "load the driver: nvidia-smi")
    document = _document("nvidia.com/gpu", cards)
    control = [] if driver.wsl else [n for n in driver.nodes if not is_card(n[5:])]
    nodes = [n for n in (*control, *driver.extra) if exists(root, n)]
    hook = exists(root, HOOK)
    edits: dict[str, Any] = {"mounts": _mounts(root, driver, hook)}
    if nodes:
        edits["deviceNodes"] = [{"path": node} for node in nodes]
    if hook:
        edits["hooks"] = _hooks(driver)
    return document | {"containerEdits": edits}


def _mounts(root: str, driver: nvidia.Driver, hook: bool) -> "list[dict[str, Any]]":
    pairs = []
    for one in driver.libraries:
        folder = one.path.rpartition("/")[0]
        for name in (one.name, *(() if hook else one.links)):
            pairs.append((one.path, f"{folder}/{name}", _BIND))
    pairs += [(path, f"/usr/bin/{name}", _BIND) for name, path in driver.programs]
    for path, source in driver.files:
        pairs.append((source, path, _SOCKET if path in nvidia.SOCKETS else _BIND))
    return [{"hostPath": s, "containerPath": t, "options": list(o)} for s, t, o in pairs]


def _hooks(driver: nvidia.Driver) -> "list[dict[str, Any]]":
    links, folders = [], []
    for one in driver.libraries:
        folder = one.path.rpartition("/")[0]
        folders.append(folder)
        for link in one.links:
            links += ["--link", f"{one.name}::{folder}/{link}"]
    update = [word for folder in dict.fromkeys(folders) for word in ("--folder", folder)]
    both = (["create-symlinks", *links], ["update-ldcache", *update])
    return [
        {"hookName": "createContainer", "path": HOOK, "args": ["nvidia-cdi-hook", *args]}
        for args in both
    ]
