"""Find DRM and accelerator nodes of a PCI vendor in sysfs; for AMD and Intel."""

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.rooted import exists, listing, read, resolve

AMD, INTEL, HABANA = "0x1002", "0x8086", "0x1da3"


class Card(Record):
    """A card. The caller must be able to open `nodes`; `driver` is the kernel's ("amdgpu")."""

    nodes: tuple[str, ...]
    driver: str
    device: str = ""
    """PCI device id, as 0x740c."""
    bus: str = ""

    @property
    def name(self) -> str:
        """The driver, where one is bound, and the device id."""
        return f"{self.driver} {self.device}".strip()


def render_nodes(root: str, vendor: str) -> list[Card]:
    """Return the cards of a PCI vendor that have a render node, in the nodes' order."""
    found = []
    for name in listing(root, "/sys/class/drm"):
        if name.startswith("renderD") and _vendor(root, "drm", name) == vendor:
            found.append(_card(root, "drm", name, (f"/dev/dri/{name}",)))
    return sorted(found, key=lambda c: (len(c.nodes[0]), c.nodes[0]))


def accelerators(root: str, vendor: str) -> list[Card]:
    """Return a PCI vendor's cards under /dev/accel (Gaudi: accelN and accel_controlDN)."""
    found = []
    for name in listing(root, "/sys/class/accel"):
        number = name.removeprefix("accel")
        if number.isdigit() and _vendor(root, "accel", name) == vendor:
            control = f"/dev/accel/accel_controlD{number}"
            more = (control,) if exists(root, control) else ()
            found.append(_card(root, "accel", name, (f"/dev/accel/{name}", *more)))
    return sorted(found, key=lambda c: (len(c.nodes[0]), c.nodes[0]))


def _vendor(root: str, kind: str, name: str) -> str:
    return read(root, f"/sys/class/{kind}/{name}/device/vendor").strip()


def _card(root: str, kind: str, name: str, nodes: tuple[str, ...]) -> Card:
    place = f"/sys/class/{kind}/{name}/device"
    driver = resolve(root, f"{place}/driver").rpartition("/")[2]
    bus = resolve(root, place).rpartition("/")[2]
    return Card(nodes, driver, read(root, f"{place}/device").strip(), bus)
