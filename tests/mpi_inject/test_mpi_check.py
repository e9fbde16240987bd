"""`udi mpi check` and `udi mpi profile capture`, and the fast interfaces of a host."""

import os
import sys
import tomllib
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.mpi import check as mpicheck
from rootless_udi.mpi_inject.mpi import network, profiles
from rootless_udi.mpi_inject.mpi import planner as injection
from rootless_udi.mpi_inject.mpi.network import Interface
from tests.kit import mpi
from tests.kit import mpihosts as h


def check(host: h.Tree, image: h.Tree, tmp_path: Path, **named: object) -> tuple[str, bool]:
    root = h.write(host, tmp_path / "host")
    environ = {"PATH": "/opt/mpich/bin"}
    text, good = mpicheck.check(h.facts(image), environ, root=root, **named)  # type: ignore[arg-type]
    return text.replace(root, ""), good


@pytest.mark.needs("gcc")
def test_a_report(tmp_path: Path) -> None:
    text, good = check(h.mpich_host(), h.mpich_image(), tmp_path)
    assert good
    lines = text.splitlines()
    assert lines[:2] == ["image", "  x86_64, C library: glibc 2.36"]
    assert "  1 program of MPICH (/app/run): 2 MPI symbols, by libmpich.so.12" in lines
    assert (
        "  MPICH in /opt/mpich/lib (by mpiexec on the PATH): libmpi.so.12.2.2, needs GLIBC_2.17"
        in lines
    )
    assert "--mpi=auto --mpi-compat=major --mpi-glibc=auto" in lines
    assert any(line.startswith("  over /usr/lib/x86_64-linux-gnu/libmpich.so") for line in lines)


@pytest.mark.needs("gcc")
def test_the_hosts_c_library_as_udi_run_has_it(tmp_path: Path) -> None:
    """With each value of --mpi-glibc the answer of a launch."""
    host = {**h.mpich_host("2.38"), **h.whole_glibc("2.41")}
    image = {**h.mpich_image(glibc_version="2.36"), **h.whole_glibc("2.36")}
    text, good = check(host, image, tmp_path / "auto")
    assert good and "/libc.so.6: the host's libc.so.6: libmpi" in text
    text, good = check(host, image, tmp_path / "never", glibc="never")
    assert not good and "hint: --mpi-glibc=auto brings the host's along" in text


@pytest.mark.needs("gcc")
def test_a_refusal_and_what_the_profiles_would_do(tmp_path: Path) -> None:
    host = {
        **h.mpich_host("2.38"),
        "/old/lib/libmpi.so.12": h.library("libmpi.so.12", h.C, versions=h.needs("2.17")),
    }
    profile = profiles.from_dict("old", {"family": "mpich", "prefix": "/old"})
    text, good = check(host, h.mpich_image(), tmp_path, site=(profile,))
    assert not good
    assert "  refused: --mpi: the host's libmpi.so.12" in text
    assert "  hint: use an MPI of the host" in text
    assert "--mpi=old\n  possible, with " in text


@pytest.mark.needs("gcc")
def test_what_is_said_of_odd_images(tmp_path: Path) -> None:
    image = {
        **h.glibc(),
        "/static": b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + b"\x02\0\x3e\0"
        + bytes(60)
        + b"\0MPI_Init\0PMPI_Init\0",
        "/cut": b"\x7fELF\x02",
    }
    text, good = check(h.mpich_host(), image, tmp_path)
    assert not good
    assert "MPI linked in statically: /static" in text
    assert "not read (damaged or too large): /cut" in text
    text, good = check(h.mpich_host(), h.glibc(), tmp_path / "none")
    assert good
    assert "  no MPI program\n" in text
    assert "  note: no MPI program in the image" in text


@pytest.mark.parametrize("host", ["mpich-3.4.3", "mpich-5.0.2", "openmpi-5.0.11"])
def test_a_profile_captured_from_a_real_mpi(host: str, tmp_path: Path) -> None:
    """What two ranks of a hello open is a profile, which plans what auto plans, and more."""
    environ = {**os.environ, **mpi.host_env(host), "HOME": str(tmp_path)}
    environ.pop("LD_LIBRARY_PATH", None)
    text = mpicheck.capture("caught", environ)
    table = tomllib.loads(text)
    root = str(mpi.prefix(host))
    assert table["prefix"] == root
    assert host.partition("-")[2] in table["description"]
    assert not any("/ucx/" in path or "/python" in path for path in table.get("optional", ()))
    profile = profiles.from_dict("caught", table)
    family = "openmpi" if "openmpi" in host else "mpich"
    name = "libmpi.so.40" if family == "openmpi" else "libmpi.so.12"
    image = {**h.glibc(), "/app": h.program((name,))}
    found = injection.inject("caught", "", h.facts(image), environ, (profile,))
    plain = injection.inject(family, "", h.facts(image), environ)
    assert {s.target for s in plain.steps} <= {s.target for s in found.steps}


def test_a_capture_that_fails(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="no MPI is found on this host"):
        mpicheck.capture("x", {"PATH": "/nothing"}, wanted="no-such-family")
    environ = {**os.environ, **mpi.host_env("mpich-3.4.3")}
    with pytest.raises(UdiError, match="an MPI hello failed: /no/launcher: No such file") as caught:
        mpicheck.capture("x", environ, ["/no/launcher"])
    assert "--launcher" in caught.value.hint
    with pytest.raises(UdiError, match="an MPI hello failed: exit status 3"):
        mpicheck.capture("x", environ, [sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize(
    ("name", "link", "speed", "driver", "kind"),
    [
        ("hsn0", 1, 200_000, "cxi_ss1", "Slingshot"),
        ("eth1", 1, 200_000, "cxi_ss1", "Slingshot"),
        ("ib0", 32, 0, "mlx5_core", "InfiniBand"),
        ("ibp65s0", 32, 200_000, "mlx5_core", "InfiniBand"),
        ("ib1.8001", 1, 0, "", "InfiniBand"),
        ("opa0", 32, 0, "hfi1", "Omni-Path"),
        ("eth0", 1, 100_000, "mlx5_core", "fast Ethernet"),
        ("eth0", 1, 10_000, "mlx5_core", ""),
        ("ibrary", 1, 0, "", ""),
        ("br0", 1, 100_000, "", ""),
        ("lo", 772, 0, "", ""),
    ],
)
def test_kinds_of_interfaces(name: str, link: int, speed: int, driver: str, kind: str) -> None:
    assert network.kind(name, link, speed, driver) == kind


def test_interfaces_of_sys(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/net/ib0"
    (folder / "device").mkdir(parents=True)
    (folder / "device/driver").symlink_to("../../../../bus/pci/drivers/mlx5_core")
    for name, text in (("type", "32\n"), ("operstate", "up\n"), ("speed", "-1\n")):
        (folder / name).write_text(text)
    found = network.from_sys(str(tmp_path))
    assert found == [Interface("ib0", "InfiniBand", True, 0, "mlx5_core")]
    assert network.from_sys(str(tmp_path / "nothing")) == []


def test_this_machines_interfaces() -> None:
    """pyroute2, where installed, says what /sys says, and the addresses."""
    by_name = {one.name: one for one in network.from_sys()}
    found = network.interfaces()
    assert {one.name for one in found} == set(by_name)
    for one in found:
        assert one.kind == by_name[one.name].kind


@pytest.mark.needs("pyroute2")
def test_addresses_by_pyroute2() -> None:
    (loopback,) = [one for one in network.interfaces() if one.name == "lo"]
    assert "127.0.0.1/8" in loopback.addresses


def test_the_line_for_the_doctor() -> None:
    some = [
        Interface("eth0", "", True),
        Interface("hsn0", "Slingshot", True, 200_000, addresses=("10.1.0.1/16",)),
        Interface("hsn1", "Slingshot", False),
    ]
    assert network.report(some) == (
        "hsn0 (Slingshot, 200 Gb/s, 10.1.0.1/16); hsn1 (Slingshot, down)"
    )
    assert network.report([]) == "no interface of a high-speed network (hsn*, ib*)"
    assert [e.name for e in network.variables(some, {"NCCL_SOCKET_IFNAME": "mine"})] == [
        name for name, _ in network.VARIABLES if name != "NCCL_SOCKET_IFNAME"
    ]
    assert network.variables(some[:1], {}) == []
