"""What an NVIDIA driver that was found without CDI puts into a container."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.gpu import nvidia
from rootless_udi.mpi_inject.gpu.checks import Context, driver_checks, finish, loadable
from rootless_udi.mpi_inject.libraries.nvidia_names import capabilities, is_card
from rootless_udi.mpi_inject.libraries.placing import BIN, OPTIONS, SHARED, denied, no_access, place
from rootless_udi.mpi_inject.libraries.rooted import exists, under
from rootless_udi.plan.steps import Injection, Mount, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def plan(context: Context) -> Injection | None:
    """Return what the driver puts in, None on a node without one; raises UdiError."""
    root = context.root
    wanted = capabilities(context.env, context.environ)
    driver = nvidia.discover(root, context.machine, wanted, nvidia.folders(context.environ))
    if driver is None:
        return None
    _usable(root, driver.nodes)
    version = driver.version or "of WSL"
    words = ", ".join(word for word in wanted if word != "compat32")
    reason = f"NVIDIA driver {version}, found without CDI ({words})"
    libc = loadable(context, driver.libraries)
    steps = place(root, driver.libraries, reason)
    for name, path in driver.programs:
        steps.append(Mount(f"{BIN}/{name}", under(root, path), options=OPTIONS, reason=reason))
    steps += _files(context, driver, reason)
    environment, notes = driver_checks(context, driver.version, True)
    nodes = ", ".join((*driver.nodes, *driver.extra))
    notes = [f"device nodes of the host: {nodes}", *driver.notes, *notes]
    if "compat32" in wanted and wanted != capabilities({}, {"NVIDIA_DRIVER_CAPABILITIES": "all"}):
        notes.append("compat32: 32-bit driver libraries are not offered")
    return finish(steps, environment, notes, libc)


def _usable(root: str, nodes: "Iterable[str]") -> None:
    """Raise UdiError unless the caller may open every control node, and one card at least."""
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
    """Return the mounts of files and sockets.

    A socket's folder is mounted: a daemon that is restarted makes a new socket in it.
    """
    steps: list[Step] = []
    for path, source in driver.files:
        options: tuple[str, ...] = OPTIONS
        if path in nvidia.SOCKETS:
            path = source = os.path.dirname(path)
            options = ("nosuid", "nodev", "noexec")
        elif path == nvidia.WSL + "/drivers":
            options = ("rec", *OPTIONS)
        steps.append(Mount(path, under(context.root, source), options=options, reason=reason))
    pipes = context.environ.get("CUDA_MPS_PIPE_DIRECTORY", "")
    shared = any(pipes.startswith(folder + "/") for folder in SHARED)
    if pipes.startswith("/") and not shared and exists(context.root, pipes):
        why = "CUDA_MPS_PIPE_DIRECTORY: the host's multi-process service"
        options = ("nosuid", "nodev", "noexec")
        steps.append(Mount(pipes, under(context.root, pipes), options=options, reason=why))
    return steps
