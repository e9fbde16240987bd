"""Plans for a host's MPI: golden files, which MPI is chosen, what stays the image's own.

UDI_GOLDEN=write writes the golden files anew.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.mpi import planner
from rootless_udi.plan.steps import Directory, Injection, Mount, Symlink
from tests.kit import mpihosts as h
from tests.kit import places
from tests.kit.places import TREE
from tests.mpi_inject.test_ldcache import LDCONFIG

pytestmark = pytest.mark.needs("gcc")
GOLDEN = places.GOLDEN / "mpi"
ARCH = h.ARCH


def inject(
    host: h.Files,
    image: h.Files,
    tmp_path: Path,
    wanted: str = "",
    compat: str = "",
    environ: dict[str, str] | None = None,
    site: tuple[Any, ...] = (),
    glibc: str = "auto",
) -> Injection:
    root = h.write(host, tmp_path / "host")
    environ = {"PATH": "/opt/mpich/bin:/usr/bin"} if environ is None else environ
    return planner.inject(wanted, compat, h.facts(image), environ, site, root, glibc=glibc)


def text(found: Injection, root: Path) -> str:
    """Write an injection a line a step."""
    lines = []
    for step in found.steps:
        if isinstance(step, Mount):
            lines.append(f"mount {step.source} {step.target}")
        elif isinstance(step, Symlink):
            lines.append(f"symlink {step.target} -> {step.to}")
        else:
            assert isinstance(step, Directory)
            lines.append(f"directory {step.target}")
        lines.append(f"    # {step.reason}")
    for env in found.environment:
        lines += [f"{env.op} {env.name}={env.value}", f"    # {env.reason}"]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines).replace(str(root / "host"), "") + "\n"


def golden(name: str, found: Injection, root: Path) -> None:
    path = GOLDEN / f"{name}.txt"
    got = text(found, root)
    if os.environ.get("UDI_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(got)
    assert got == path.read_text()


def targets(found: Injection) -> list[str]:
    return [step.target for step in found.steps]


def sources(found: Injection) -> dict[str, str]:
    return {s.target: s.source for s in found.steps if isinstance(s, Mount)}


def test_a_prefix_with_its_own_network_libraries_over_debians_names(tmp_path: Path) -> None:
    golden("mpich", inject(h.mpich_host(), h.mpich_image(), tmp_path), tmp_path)


def test_a_distributions_open_mpi_with_plugins(tmp_path: Path) -> None:
    image = {
        **h.glibc(),
        "/opt/spack/openmpi/lib/libmpi.so.40": h.library("libmpi.so.40", h.C, (), ()),
        "/opt/spack/openmpi/lib/libopen-pal.so.80": h.library("libopen-pal.so.80"),
        "/opt/app": h.program(("libmpi.so.40",), rpath="/opt/spack/openmpi/lib"),
    }
    golden("openmpi", inject(h.openmpi_host(), image, tmp_path), tmp_path)


def test_a_sites_settings_for_an_mpi_with_a_prefix_come_along(tmp_path: Path) -> None:
    """Fedora's Open MPI is in /usr/lib64/openmpi, its settings are in /etc."""
    host = {
        "/usr/lib64/openmpi/lib/libmpi.so.40": h.library(
            "libmpi.so.40", h.C, needed=("libucs.so.0",)
        ),
        "/usr/lib64/libucs.so.0": h.library("libucs.so.0"),
        "/etc/openmpi-x86_64/openmpi-mca-params.conf": b"",
        "/etc/ucx/ucx.conf": b"",
    }
    image: h.Tree = {**h.glibc(), "/opt/app": h.program(("libmpi.so.40",))}
    found = inject(host, image, tmp_path / "a", environ={})
    values = {e.name: e.value for e in found.environment}
    assert values["OPAL_SYSCONFDIR"] == f"{planner.LIB}/openmpi-etc"
    assert values["UCX_CONFIG_DIR"] == f"{planner.LIB}/ucx-etc"
    host["/usr/lib64/openmpi/etc/openmpi-mca-params.conf"] = b""
    found = inject(host, image, tmp_path / "b", environ={})
    assert "OPAL_SYSCONFDIR" not in {e.name for e in found.environment}


def intel_host() -> h.Tree:
    return {
        "/opt/intel/mpi/lib/libmpi.so.12": h.library(
            "libmpi.so.12", (*h.NEWER, "I_MPI_Check_image_status"), numbers="12:0:0"
        ),
        "/opt/intel/mpi/lib/libmpi_abi.so.1": h.library(
            "libmpi_abi.so.1", (*h.NEWER, "I_MPI_Check_image_status")
        ),
        "/opt/intel/mpi/opt/mpi/libfabric/lib/libfabric.so.1": h.library("libfabric.so.1"),
        "/opt/intel/mpi/opt/mpi/libfabric/lib/prov/libtcp-fi.so": h.library("libtcp-fi.so"),
    }


def test_intel_mpi_for_a_program_of_the_standard_abi(tmp_path: Path) -> None:
    image = {**h.glibc(), "/app": h.program(("libmpi_abi.so.1",))}
    found = inject(intel_host(), image, tmp_path, environ={"I_MPI_ROOT": "/opt/intel/mpi"})
    golden("intel-abi", found, tmp_path)


def test_an_image_without_mpi_gets_the_hosts_on_the_search_path(tmp_path: Path) -> None:
    found = inject(h.mpich_host(), h.glibc(), tmp_path)
    assert found.notes[0].startswith("no MPI program in the image; MPICH in /opt/mpich/lib")
    assert f"{planner.LIB}/libmpi.so.12" in targets(found)


def test_mpi_none_is_nothing(tmp_path: Path) -> None:
    assert inject({}, {}, tmp_path, "none") == Injection()


def test_an_rpath_program_finds_the_hosts_file_under_the_images_name(tmp_path: Path) -> None:
    image = {
        **h.glibc(),
        "/opt/conda/lib/libmpi.so.12": "libmpi.so.12.1.1",
        "/opt/conda/lib/libmpi.so.12.1.1": h.library("libmpi.so.12", h.C),
        "/opt/conda/bin/app": h.program(rpath="/opt/conda/lib"),
    }
    found = sources(inject(h.mpich_host(), image, tmp_path))
    assert found["/opt/conda/lib/libmpi.so.12.1.1"].endswith("/opt/mpich/lib/libmpi.so.12")


def test_every_copy_and_hwcaps_variant_is_bound_over(tmp_path: Path) -> None:
    image = h.mpich_image()
    other = f"{ARCH}/glibc-hwcaps/x86-64-v3/libmpich.so.12.1.8"
    image[other] = image[f"{ARCH}/libmpich.so.12.1.8"]
    found = targets(inject(h.mpich_host(), image, tmp_path))
    assert {other, f"{ARCH}/libmpich.so.12.1.8"} <= set(found)


def test_a_library_that_the_image_lacks_or_has_too_old_comes_along(tmp_path: Path) -> None:
    image = h.mpich_image()
    assert f"{planner.LIB}/libz.so.1" not in targets(inject(h.mpich_host(), image, tmp_path / "a"))
    del image[f"{ARCH}/libz.so.1"]
    assert f"{planner.LIB}/libz.so.1" in targets(inject(h.mpich_host(), image, tmp_path / "b"))


def test_a_library_of_the_image_without_versions_does_for_no_host_that_needs_one(
    tmp_path: Path,
) -> None:
    """Debian 13's libnl: ld.so would take it, with a line on standard error of each process."""
    host = h.mpich_host()
    needs = (*h.needs("2.17"), ("libnl-3.so.200", "libnl_3"))
    host["/opt/mpich/lib/libmpi.so.12"] = h.library("libmpi.so.12", h.NEWER, versions=needs)
    host["/usr/lib64/libnl-3.so.200"] = h.library("libnl-3.so.200", defines=("libnl_3",))
    image = {**h.mpich_image(), f"{ARCH}/libnl-3.so.200": h.library("libnl-3.so.200")}
    assert f"{planner.LIB}/libnl-3.so.200" in targets(inject(host, image, tmp_path / "a"))
    image[f"{ARCH}/libnl-3.so.200"] = host["/usr/lib64/libnl-3.so.200"]
    assert f"{planner.LIB}/libnl-3.so.200" not in targets(inject(host, image, tmp_path / "b"))


def test_libstdcxx_stays_unless_a_newer_one_is_needed(tmp_path: Path) -> None:
    host = h.mpich_host()
    wants = (("libstdc++.so.6", "GLIBCXX_3.4.30"),)
    host["/opt/mpich/lib/libmpi.so.12"] = h.library("libmpi.so.12", h.NEWER, versions=wants)
    host["/usr/lib64/libstdc++.so.6"] = h.library(
        "libstdc++.so.6", defines=("GLIBCXX_3.4", "GLIBCXX_3.4.31")
    )
    image = h.mpich_image()
    place = f"{ARCH}/libstdc++.so.6.0.30"
    image[f"{ARCH}/libstdc++.so.6"] = "libstdc++.so.6.0.30"
    for series, injected in (("GLIBCXX_3.4.30", False), ("GLIBCXX_3.4.28", True)):
        image[place] = h.library("libstdc++.so.6", defines=("GLIBCXX_3.4", series))
        found = targets(inject(host, image, tmp_path / series))
        assert (f"{planner.LIB}/libstdc++.so.6" in found) is injected
        assert (place in found) is injected


def test_a_newer_network_library_of_the_image_is_not_covered(tmp_path: Path) -> None:
    image = h.mpich_image()
    image[f"{ARCH}/libfabric.so.1"] = h.library(
        "libfabric.so.1", defines=("FABRIC_1.0", "FABRIC_1.9")
    )
    found = inject(h.mpich_host(), image, tmp_path)
    assert f"{ARCH}/libfabric.so.1" not in targets(found)
    assert (
        f"{ARCH}/libfabric.so.1 stays: the host's libfabric.so.1 has no FABRIC_1.9" in found.notes
    )


def test_the_images_fortran_library_stays_where_the_host_has_none(tmp_path: Path) -> None:
    image = h.mpich_image(h.program(("libmpichfort.so.12", "libmpich.so.12"), ("mpi_init_",)))
    found = inject(h.mpich_host(), image, tmp_path)
    assert f"{ARCH}/libmpichfort.so.12.1.8" not in targets(found)


def test_the_hosts_fortran_library_replaces_the_images(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/libmpifort.so.12"] = h.library(
        "libmpifort.so.12", ("mpi_init_",), needed=("libmpi.so.12", "libgfortran.so.5")
    )
    host["/usr/lib64/libgfortran.so.5"] = h.library("libgfortran.so.5")
    found = targets(inject(host, h.mpich_image(), tmp_path))
    assert f"{ARCH}/libmpichfort.so.12.1.8" in found
    assert {f"{planner.LIB}/libmpichfort.so.12", f"{planner.LIB}/libgfortran.so.5"} <= set(found)


def test_an_optional_library_that_needs_a_newer_glibc_is_left_out(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/libmpicxx.so.12"] = h.library(
        "libmpicxx.so.12", needed=("libmpi.so.12",), versions=h.needs("2.38")
    )
    found = inject(host, h.mpich_image(), tmp_path)
    assert "libmpicxx.so.12 is left out: libmpicxx.so.12 needs GLIBC_2.38" in found.notes


def test_what_the_host_itself_lacks_is_said(tmp_path: Path) -> None:
    host = h.mpich_host()
    del host["/opt/mpich/lib/mpich/libfabric.so.1"]
    found = inject(host, h.mpich_image(), tmp_path)
    assert "the host has no libfabric.so.1, which libmpi.so.12 needs" in found.notes


def test_verbs_drivers_of_the_host_are_named(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/mpich/libucp.so.0"] = h.library("libucp.so.0", needed=("libibverbs.so.1",))
    host["/usr/lib64/libibverbs.so.1"] = h.library("libibverbs.so.1")
    host["/usr/lib64/libibverbs/libmlx5-rdmav34.so"] = h.library()
    found = inject(host, h.mpich_image(), tmp_path)
    drivers = [e.value for e in found.environment if e.name == "RDMAV_DRIVERS"]
    assert drivers == [f"{planner.LIB}/libibverbs/libmlx5"]


def test_plugins_bring_their_libraries_where_there_is_a_fabric(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/mpich/ucx/libuct_ib.so.0"] = h.library(
        "libuct_ib.so.0", needed=("libmlx5.so.1",)
    )
    host["/usr/lib64/libmlx5.so.1"] = h.library("libmlx5.so.1")
    where = f"{planner.LIB}/libmlx5.so.1"
    assert where not in targets(inject(host, h.mpich_image(), tmp_path / "without"))
    host["/sys/class/infiniband/mlx5_0/node_type"] = b"1: CA\n"
    assert where in targets(inject(host, h.mpich_image(), tmp_path / "with"))


def test_fast_interfaces_are_named_for_mpi_and_nccl(tmp_path: Path) -> None:
    host = h.mpich_host()
    for name in ("hsn0", "hsn1", "eth0"):
        host[f"/sys/class/net/{name}/type"] = b"1\n"
        host[f"/sys/class/net/{name}/operstate"] = b"up\n"
    environ = {"PATH": "/opt/mpich/bin", "FI_TCP_IFACE": "eth0"}
    found = inject(host, h.mpich_image(), tmp_path, environ=environ)
    values = {e.name: e.value for e in found.environment}
    assert values["NCCL_SOCKET_IFNAME"] == "hsn0,hsn1"
    assert values["MPIR_CVAR_NETWORK_IFACE"] == "hsn0"
    assert "FI_TCP_IFACE" not in values


def two_kinds() -> h.Tree:
    """Debian's way: MPICH and Open MPI in one folder."""
    host = h.openmpi_host()
    host[f"{ARCH}/libmpich.so.12"] = h.library("libmpich.so.12", h.C, numbers="14:2:2")
    host["/usr/bin/mpiexec.hydra"] = b"#!/bin/sh\n"
    return host


def both_kinds() -> h.Tree:
    image = h.mpich_image()
    image["/opt/ompi/lib/libmpi.so.40"] = h.library("libmpi.so.40", h.C)
    image["/app/other"] = h.program(("libmpi.so.40",))
    return image


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, "openmpi"),
        ({"PMI_RANK": "0"}, "mpich"),
        ({"PMI_FD": "5"}, "mpich"),
        ({"PMIX_RANK": "0"}, "openmpi"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "openmpi"),
    ],
)
def test_an_image_of_two_families_gets_that_of_the_launcher(
    environ: dict[str, str], chosen: str, tmp_path: Path
) -> None:
    """Without a launcher, the family of the mpiexec on the PATH (an alternative's real name)."""
    found = inject(two_kinds(), both_kinds(), tmp_path, environ={"PATH": "/usr/bin", **environ})
    over = [t for t in targets(found) if not t.startswith(planner.FOLDER)]
    name = {"mpich": f"{ARCH}/libmpich.so.12.1.8", "openmpi": "/opt/ompi/lib/libmpi.so.40"}[chosen]
    assert name in over
    other = {"mpich": "Open MPI", "openmpi": "MPICH"}[chosen]
    assert f"{other} stays the image's own: one host MPI at a time" in found.notes


@pytest.mark.parametrize("family", ["mpich", "openmpi"])
def test_a_family_may_be_asked_for(family: str, tmp_path: Path) -> None:
    found = inject(two_kinds(), both_kinds(), tmp_path, family, environ={})
    name = {"mpich": "libmpich.so.12", "openmpi": "libmpi.so.40"}[family]
    assert f"{planner.LIB}/{name}" in targets(found)


@pytest.mark.parametrize(
    ("environ", "whose"),
    [({}, "openmpi"), ({"PMI_RANK": "0"}, ""), ({"OMPI_COMM_WORLD_SIZE": "2"}, "openmpi")],
)
def test_open_mpis_standard_abi_serves_ranks_of_its_own_launcher(
    environ: dict[str, str], whose: str, tmp_path: Path
) -> None:
    """Of MPICH's it would know nothing, and each rank be a job of one."""
    host = two_kinds()
    host[f"{ARCH}/libopen_mpi.so.40"] = h.library("libopen_mpi.so.40")
    standard = h.library("libmpi_abi.so.1", h.NEWER, needed=("libopen_mpi.so.40",))
    host[f"{ARCH}/libmpi_abi.so.1"] = standard
    image = {**h.glibc(), "/app": h.program(("libmpi_abi.so.1",))}
    # The image's own, part of its own MPI, would not do.
    image[f"{ARCH}/libopen_mpi.so.40"] = h.library("libopen_mpi.so.40")
    environ = {"PATH": "/usr/bin", **environ}
    if whose:
        found = inject(host, image, tmp_path, environ=environ)
        assert f"{planner.LIB}/libopen_mpi.so.40" in targets(found)
    else:
        with pytest.raises(UdiError, match="the image needs the MPI standard ABI"):
            inject(host, image, tmp_path, environ=environ)


def test_mpi4pys_two_modules_say_nothing_of_the_family(tmp_path: Path) -> None:
    image = {
        **h.glibc(),
        "/py/mpi4py/MPI.mpich.so": h.program(("libmpi.so.12",)),
        "/py/mpi4py/MPI.openmpi.so": h.program(("libmpi.so.40",)),
    }
    found = inject(h.openmpi_host(), image, tmp_path, environ={"PATH": "/usr/bin"})
    env = {e.name: e.value for e in found.environment}
    assert env["MPI4PY_LIBMPI"] == f"{planner.LIB}/libmpi.so.40"


LIB = h.library("libmpi.so.12", h.C)


@pytest.mark.parametrize(
    ("place", "environ", "extra"),
    [
        ("/m/lib", {"MPI_HOME": "/m"}, {}),
        ("/m/lib64", {"EBROOTMPICH": "/m"}, {}),
        ("/m/lib-abi-mpich", {"CRAY_MPICH_DIR": "/m"}, {"/m/lib/libother.so": LIB}),
        ("/m/lib/release", {"I_MPI_ROOT": "/m"}, {}),
        ("/m/lib", {"PATH": "/m/bin:/usr/bin"}, {"/m/bin/mpirun": b"x"}),
        ("/m/lib", {"PATH": "/bin"}, {"/bin/mpichversion": "../m/bin/mv", "/m/bin/mv": b"x"}),
        ("/odd/place", {"LD_LIBRARY_PATH": "/nothing:/odd/place"}, {}),
        ("/usr/lib64/mpich/lib", {}, {}),
        (ARCH, {}, {}),
        ("/opt/cray/pe/mpich/default/ofi/gnu/9.1/lib-abi-mpich", {}, {}),
    ],
)
def test_where_a_hosts_mpi_is_found(
    place: str, environ: dict[str, str], extra: h.Tree, tmp_path: Path
) -> None:
    host = {f"{place}/libmpi.so.12": LIB, **extra}
    found = inject(host, h.mpich_image(), tmp_path, environ=environ)
    assert sources(found)[f"{planner.LIB}/libmpi.so.12"].endswith(f"{place}/libmpi.so.12")


def test_a_modules_mpi_wins_over_the_path_and_the_system(tmp_path: Path) -> None:
    host = {**h.mpich_host(), "/m/lib/libmpi.so.12": LIB, f"{ARCH}/libmpi.so.12": LIB}
    environ = {"MPICH_DIR": "/m", "PATH": "/opt/mpich/bin"}
    found = sources(inject(host, h.mpich_image(), tmp_path, environ=environ))
    assert found[f"{planner.LIB}/libmpi.so.12"].endswith("/host/m/lib/libmpi.so.12")


def test_crays_soname_is_another_than_the_files_name(tmp_path: Path) -> None:
    host: h.Tree = {
        "/c/lib-abi-mpich/libmpi.so.12": "libmpi_gnu_91.so.12.0.0",
        "/c/lib-abi-mpich/libmpi_gnu_91.so.12.0.0": h.library("libmpi_gnu_91.so.12", h.C),
    }
    found = inject(host, h.mpich_image(), tmp_path, environ={"CRAY_MPICH_DIR": "/c"})
    links = {s.target: s.to for s in found.steps if isinstance(s, Symlink)}
    assert links[f"{planner.LIB}/libmpi_gnu_91.so.12"] == "libmpi.so.12"
    assert links[f"{planner.LIB}/libmpich.so.12"] == "libmpi.so.12"


@pytest.mark.parametrize("newer", [False, True])
def test_what_open_mpi_6_has_in_a_library_of_its_own(newer: bool, tmp_path: Path) -> None:
    """An older host's libmpi stands for it too: the image's would bring a second Open MPI along."""
    own = "libopen_mpi.so.40"
    image: h.Tree = {
        **h.glibc(),
        f"{ARCH}/libmpi.so.40": h.library("libmpi.so.40", h.C, needed=(own,)),
        f"{ARCH}/{own}": h.library(own, ()),
        "/app/run": h.program(("libmpi.so.40", own)),
    }
    host = h.openmpi_host()
    if newer:
        host = {
            **host,
            f"{ARCH}/libmpi.so.40": h.library("libmpi.so.40", h.C, needed=(own,)),
            f"{ARCH}/{own}": h.library(own, ()),
        }
    found = inject(host, image, tmp_path)
    links = {s.target: s.to for s in found.steps if isinstance(s, Symlink)}
    end = sources(found)[f"{ARCH}/{own}"].rpartition("/")[2]
    if newer:
        assert end == own and f"{planner.LIB}/{own}" not in links
    else:
        assert end.startswith("libmpi.so.40") and links[f"{planner.LIB}/{own}"] == "libmpi.so.40"


def test_planning_imports_nothing_dear() -> None:
    """In the start path's interpreter; the same modules are allowed to a launch."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import rootless_udi.mpi_inject.mpi.planner;"
        "print(*sorted(m for m in sys.modules if not m.startswith(('rootless_udi', '_'))))"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(TREE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    dear = {"re", "json", "dataclasses", "typing", "pathlib", "subprocess", "collections", "enum"}
    assert not dear & set(done.stdout.split()), done.stdout


def test_libraries_of_open_mpis_plugins_by_ld_so_cache(tmp_path: Path) -> None:
    """Where the MPI is the system's: its folder of thousands is not listed."""
    root = h.write({**h.openmpi_host(), "/etc/ld.so.conf": f"{ARCH}\n".encode()}, tmp_path / "host")
    subprocess.run([LDCONFIG, "-r", root, "-X"], check=True, capture_output=True)
    image = {**h.glibc(), "/app/run": h.program(("libmpi.so.40",))}
    found = planner.inject("auto", "", h.facts(image), {"PATH": "/usr/bin"}, (), root)
    assert f"{planner.LIB}/libmca_common_sm.so.40" in targets(found)
