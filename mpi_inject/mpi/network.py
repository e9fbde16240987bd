"""The host's network interfaces, and which of them are of a high-speed network.

`interfaces` asks the kernel with pyroute2 (extra `[net]`), for `udi doctor` and profiles. Without
it, and at a launch, /sys/class/net is read, which has all but the addresses. High-speed networks
are told by names and link types: Slingshot's `hsn0`, InfiniBand's `ib0` (ARPHRD_INFINIBAND),
Omni-Path's, and Ethernet of at least 100 Gb/s.
"""

import os

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.rooted import read, under
from rootless_udi.plan.steps import Env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_INFINIBAND = 32
_FAST = 100_000
_NAMES = (("hsn", "Slingshot"), ("ib", "InfiniBand"), ("opa", "Omni-Path"), ("ipogif", "Aries"))

VARIABLES = (
    ("NCCL_SOCKET_IFNAME", ","),
    ("GLOO_SOCKET_IFNAME", ","),
    ("OMPI_MCA_btl_tcp_if_include", ","),
    ("FI_TCP_IFACE", ""),
    ("MPIR_CVAR_NETWORK_IFACE", ""),
)
"""(variable that names interfaces, what is between several); "" where only one may be named."""


class Interface(Record):
    """A network interface: `speed` in Mb/s (0: not known), `kind` "" for an ordinary one."""

    name: str
    kind: str
    up: bool
    speed: int = 0
    driver: str = ""
    addresses: tuple[str, ...] = ()


def from_sys(root: str = "/") -> list[Interface]:
    """Return the interfaces as /sys/class/net has them, sorted by name; no addresses."""
    try:
        names = sorted(os.listdir(under(root, "/sys/class/net")))
    except OSError:
        return []
    return [_one(root, name) for name in names]


def _one(root: str, name: str) -> Interface:
    folder = f"/sys/class/net/{name}"
    if name == "lo":
        return Interface(name, "", False)
    link = _number(read(root, f"{folder}/type").strip())
    speed = max(0, _number(read(root, f"{folder}/speed").strip()))
    try:
        driver = os.readlink(under(root, f"{folder}/device/driver")).rpartition("/")[2]
    except OSError:
        driver = ""
    up = read(root, f"{folder}/operstate").strip() == "up"
    return Interface(name, kind(name, link, speed, driver), up, speed, driver)


def kind(name: str, link: int, speed: int, driver: str = "") -> str:
    """Return the high-speed network of an interface by its name, ARPHRD type, Mb/s and driver."""
    if link == _INFINIBAND:
        return "Omni-Path" if driver.startswith("hfi1") else "InfiniBand"
    for start, what in _NAMES:
        if name.startswith(start) and name[len(start) :].partition(".")[0].isdigit():
            return what
    if driver.startswith("cxi"):
        return "Slingshot"
    virtual = name.startswith(("lo", "veth", "docker", "br", "bond", "tun", "tap", "dummy"))
    return "fast Ethernet" if speed >= _FAST and not virtual else ""


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() and text.isascii() else 0


def interfaces() -> list[Interface]:
    """Return this host's interfaces with their addresses, by pyroute2 where it is installed."""
    found = from_sys()
    try:
        from pyroute2 import IPRoute
    except ImportError:
        return found
    with IPRoute() as route:
        links = {link["index"]: link for link in route.get_links()}
        addresses: dict[int, list[str]] = {}
        for row in route.get_addr():
            text = _attribute(row, "IFA_ADDRESS")
            if text:
                addresses.setdefault(row["index"], []).append(f"{text}/{row['prefixlen']}")
    known = {one.name: one for one in found}
    out = []
    for index, link in links.items():
        name = str(_attribute(link, "IFLA_IFNAME"))
        old = known.get(name, Interface(name, "", False))
        what = kind(name, int(link["ifi_type"]), old.speed, old.driver)
        up = _attribute(link, "IFLA_OPERSTATE") == "UP" or old.up
        out.append(old.replace(kind=what, up=up, addresses=tuple(addresses.get(index, ()))))
    return sorted(out, key=lambda one: one.name)


def _attribute(message: "Any", name: str) -> "Any":
    """Return an attribute of a netlink message, whatever pyroute2's release calls the method."""
    return dict(message["attrs"]).get(name)


def fast(found: "Iterable[Interface]") -> list[Interface]:
    """Return the interfaces of a high-speed network that are up."""
    return [one for one in found if one.kind and one.up]


def variables(found: "Iterable[Interface]", environ: "Mapping[str, str]") -> list[Env]:
    """Return variables that name the fast interfaces, but for those that the caller has set."""
    names = [one.name for one in fast(found)]
    if not names:
        return []
    why = f"interfaces of the high-speed network: {', '.join(names)}"
    return [
        Env("set", name, joint.join(names) if joint else names[0], why)
        for name, joint in VARIABLES
        if name not in environ
    ]


def report(found: "Iterable[Interface]") -> str:
    """Return a line for `udi doctor`."""
    parts = []
    for one in found:
        if one.kind:
            state = "" if one.up else ", down"
            speed = f", {one.speed // 1000} Gb/s" if one.speed else ""
            where = f", {one.addresses[0]}" if one.addresses else ""
            parts.append(f"{one.name} ({one.kind}{speed}{where}{state})")
    return "; ".join(parts) or "no interface of a high-speed network (hsn*, ib*)"
