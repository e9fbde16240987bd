"""Find Intel GPUs (render nodes) and Gaudi accelerators (/dev/accel); oneAPI is the image's."""

from rootless_udi.mpi_inject.gpu.drm import HABANA, INTEL, Card, accelerators, render_nodes


def looked_for() -> str:
    """Return what discovery looks at, for the error on a node without a GPU."""
    return (
        f"Intel: /sys/class/drm/renderD* of PCI vendor {INTEL},"
        f" /sys/class/accel/accel* of PCI vendor {HABANA} (Gaudi)"
    )


def discover(root: str) -> list[Card]:
    """Return the node's Intel GPUs, then its Gaudi cards."""
    return render_nodes(root, INTEL) + accelerators(root, HABANA)
