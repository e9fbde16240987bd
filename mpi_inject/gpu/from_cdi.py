"""What CDI devices put into a container: by name (`--device`, `--gpu=cdi:NAME`) or a whole kind."""

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.cdi import registry as cdi_registry
from rootless_udi.mpi_inject.cdi.edits import StaleError, apply
from rootless_udi.mpi_inject.gpu.checks import Context, driver_checks, finish, loadable
from rootless_udi.mpi_inject.libraries.nvidia_names import capabilities, is_card
from rootless_udi.mpi_inject.libraries.placing import KINDS, numbers
from rootless_udi.plan.steps import Env, Injection, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def named(context: Context, devices: "Iterable[str]", name: str = "") -> Injection:
    """Return what `devices` (full names) and `--gpu=cdi:NAME` put in; raises UdiError."""
    registry = context.registry or cdi_registry.Registry()
    every = [*devices, *(_names(registry, name) if name else ())]
    return _plan(context, cdi_registry.choose(registry, every))


def vendor(context: Context, word: str) -> tuple[Injection | None, str]:
    """Return what all devices of a vendor put in, None where no specification has any; and a note.

    The note says that a specification is out of date and can't be used: the devices may be found
    without CDI then. Raises UdiError for any other fault.
    """
    registry = context.registry or cdi_registry.Registry()
    kinds = [k for k in KINDS[word] if k in cdi_registry.kinds(registry)]
    if kinds:
        try:
            chosen = cdi_registry.choose(registry, [f"{k}=all" for k in kinds])
            return _plan(context, chosen), ""
        except StaleError as error:
            return None, error.message
    for broken in registry.broken:
        if any(kind in broken.text for kind in KINDS[word]):
            raise broken.error
    return None, ""


def _names(registry: cdi_registry.Registry, name: str) -> list[str]:
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


def _plan(context: Context, chosen: "list[cdi_registry.Chosen]") -> Injection:
    """Return what the chosen devices put in, checked as NVIDIA's devices require."""
    wanted = capabilities(context.env, context.environ)
    edits = apply(chosen, context.root, wanted)
    libc = loadable(context, edits.libraries)
    environment, notes = list(edits.environment), list(edits.notes)
    for one in chosen:
        notes.insert(0, f"CDI: {one.spec.kind}={','.join(one.names)} of {one.spec.path}")
    if any(one.spec.kind.startswith("nvidia.com/") for one in chosen):
        version = _version_in(edits.steps)
        checked, more = driver_checks(context, version, edits.compat)
        environment += checked
        notes += more
        environment += _chosen_cards(context, chosen)
    return finish(list(edits.steps), environment, notes, libc)


def _version_in(steps: "Iterable[Step]") -> str:
    """Return the driver's version from the name of a mounted libcuda, or ""."""
    for step in steps:
        name = step.target.rpartition("/libcuda.so.")[2]
        if name != step.target and len(numbers(name)) > 1:
            return name
    return ""


def _chosen_cards(context: Context, chosen: "list[cdi_registry.Chosen]") -> list[Env]:
    """Name single NVIDIA cards in NVIDIA_VISIBLE_DEVICES, by which `select` chooses for each rank.

    By UUID where the kernel module tells it: CDI's numbers of cards may not be CUDA's.
    """
    words: list[str] = []
    single = [c for c in chosen if not c.every and "all" not in c.names]
    for one in single:
        if one.spec.kind not in KINDS["nvidia"]:
            continue
        from rootless_udi.mpi_inject.gpu.nvidia import gpus

        uuids = {gpu.minor: gpu.uuid for gpu in gpus(context.root) if gpu.uuid}
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
