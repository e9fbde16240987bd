"""Which of a node's GPUs one rank uses. The container is shared, so this is each rank's own.

CUDA reads CUDA_VISIBLE_DEVICES alone; NVIDIA_VISIBLE_DEVICES is what container engines read.
Here every card of the node is in the container, so the second becomes the first. Kept apart from
the planning, because a rank that joins a running container needs this and nothing else.
"""

from rootless_udi.steps import Env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_CHOICE = ("", "all", "void")


def select(caller: "Mapping[str, str]", inside: "Mapping[str, str]") -> tuple[Env, ...]:
    """Return what to add to a rank's environment.

    `caller` is the environment that the rank brings, `inside` the one that the container's
    operations made of it. In this order: CUDA_VISIBLE_DEVICES as it is (Slurm, PBS and users set
    it), what `--device` asked for (the plan has put it into NVIDIA_VISIBLE_DEVICES), the caller's
    NVIDIA_VISIBLE_DEVICES (indices, GPU-UUID, MIG-UUID, "none"). AMD's ROCR_VISIBLE_DEVICES and
    HIP_VISIBLE_DEVICES, Intel's ZE_AFFINITY_MASK and HABANA_VISIBLE_DEVICES pass as they are, as
    does SLURM_STEP_GPUS: Slurm has put it into CUDA_VISIBLE_DEVICES already, counted from the
    first card that the step's cgroup shows.
    """
    if "CUDA_VISIBLE_DEVICES" in inside:
        return ()
    name = "NVIDIA_VISIBLE_DEVICES"
    for where, environ in (("--device", inside), ("the caller", caller)):
        chosen = environ.get(name, "").strip()
        if chosen in _NO_CHOICE or "=" in chosen:
            continue
        words = [] if chosen == "none" else [w.strip() for w in chosen.split(",")]
        reason = f"{name}={chosen} of {where}"
        order = Env("set", "CUDA_DEVICE_ORDER", "PCI_BUS_ID", reason="as nvidia-smi counts")
        counted = any(w.isdigit() for w in words) and "CUDA_DEVICE_ORDER" not in inside
        more = (order,) if counted else ()
        return (Env("set", "CUDA_VISIBLE_DEVICES", ",".join(words), reason=reason), *more)
    return ()
