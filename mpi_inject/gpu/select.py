"""Choose which of a node's GPUs one rank uses; the container, which ranks share, has all of them.

CUDA reads CUDA_VISIBLE_DEVICES alone. NVIDIA_VISIBLE_DEVICES tells container engines which cards to
put in; so its value is copied to CUDA_VISIBLE_DEVICES. A module of its own, since a rank that joins
a running container needs nothing else of this room.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_CHOICE = ("", "all", "void")


def select(
    caller: "Mapping[str, str]", inside: "Mapping[str, str]"
) -> "list[tuple[str, str, str]]":
    """Return the operations ("set", NAME, VALUE) that a rank's environment still needs.

    `caller` is the environment that the rank brings, `inside` the one that the container's
    operations made of it. In this order: CUDA_VISIBLE_DEVICES as it is (Slurm, PBS and users set
    it), what `--device` asked for (the plan has put it into NVIDIA_VISIBLE_DEVICES), the caller's
    NVIDIA_VISIBLE_DEVICES (indices, GPU-UUID, MIG-UUID, "none"). AMD's ROCR_VISIBLE_DEVICES and
    HIP_VISIBLE_DEVICES, Intel's ZE_AFFINITY_MASK and HABANA_VISIBLE_DEVICES pass as they are, as
    does SLURM_STEP_GPUS: Slurm has put it into CUDA_VISIBLE_DEVICES already, counted from the
    first card that the step's cgroup shows.
    """
    if "CUDA_VISIBLE_DEVICES" in inside:
        return []
    for environ in (inside, caller):
        chosen = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
        if chosen in _NO_CHOICE or "=" in chosen:
            continue
        words = [] if chosen == "none" else [w.strip() for w in chosen.split(",")]
        found = [("set", "CUDA_VISIBLE_DEVICES", ",".join(words))]
        if any(w.isdigit() for w in words) and "CUDA_DEVICE_ORDER" not in inside:
            # nvidia-smi and NVIDIA_VISIBLE_DEVICES number cards by their bus, CUDA by speed.
            found.append(("set", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"))
        return found
    return []
