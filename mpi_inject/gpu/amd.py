"""Find AMD GPUs: /dev/kfd and the render nodes of the cards. ROCm is the image's own.

No library is put in: unlike NVIDIA's, AMD's kernel driver works with every ROCm of the last years,
and the host's libraries would be mixed with the image's.
"""

from rootless_udi.mpi_inject.gpu.drm import AMD, Card, render_nodes
from rootless_udi.mpi_inject.libraries.rooted import exists, read

_KFD = "/dev/kfd"


def looked_for() -> str:
    """Return what discovery looks at, for the error on a node without a GPU."""
    return f"AMD: {_KFD}, /sys/class/drm/renderD* of PCI vendor {AMD}"


def discover(root: str) -> list[Card]:
    """Return the cards that ROCm can compute on; none where the kernel has no /dev/kfd."""
    if not exists(root, _KFD):
        return []
    return [card.replace(nodes=(_KFD, *card.nodes)) for card in render_nodes(root, AMD)]


def version(root: str) -> str:
    """Return the version of the amdgpu module that ROCm's installer brings, "" for the kernel's."""
    return read(root, "/sys/module/amdgpu/version").strip()
