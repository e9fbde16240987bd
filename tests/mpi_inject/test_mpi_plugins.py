"""The image's plugins are never loaded into the host's libraries: each kind, by each way."""

from pathlib import Path

import pytest

from rootless_udi.mpi_inject.mpi import planner
from rootless_udi.plan.steps import Directory, Injection, Mount
from tests.kit import mpihosts as h
from tests.mpi_inject.test_mpi_plan import inject

pytestmark = pytest.mark.needs("gcc")
ARCH = h.ARCH
ENVIRON = {"MPI_HOME": "/m", "LD_LIBRARY_PATH": "/m/lib"}
KINDS = {
    # kind: library, folder beside it on the host, a plugin, variables
    "ucx": ("libucs.so.0", "ucx", "libuct_ib.so.0", ("UCX_MODULE_DIR",)),
    "ucc": ("libucc.so.1", "ucc", "libucc_tl_ucp.so", ("UCC_COMPONENT_PATH",)),
    "libfabric": ("libfabric.so.1", "libfabric", "libefa-fi.so", ("FI_PROVIDER_PATH",)),
    "pmix": (
        "libpmix.so.2",
        "pmix2/lib/pmix",
        "pmix_mca_psec_munge.so",
        ("PMIX_PKGLIBDIR", "PMIX_MCA_mca_base_component_path"),
    ),
    "hwloc": ("libhwloc.so.15", "hwloc", "hwloc_opencl.so", ("HWLOC_PLUGINS_PATH",)),
    "libibverbs": ("libibverbs.so.1", "libibverbs", "libmlx5-rdmav34.so", ("RDMAV_DRIVERS",)),
    "openmpi": (
        "libmpi.so.40",
        "openmpi/lib/openmpi3",
        "mca_btl_sm.so",
        ("OMPI_MCA_mca_base_component_path",),
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def host(kind: str, plugins: bool = True) -> h.Tree:
    """An Open MPI that needs one library more, which has plugins or none."""
    library, folder, plugin, _names = KINDS[kind]
    tree: h.Tree = {
        "/m/lib/libmpi.so.40": h.library("libmpi.so.40", h.C, needed=(library,)),
        f"{ARCH}/{library}": h.library(library),
    }
    place = "/m/lib" if kind == "openmpi" else ARCH
    return {**tree, f"{place}/{folder}/{plugin}": h.library(plugin)} if plugins else tree


def image(kind: str, own: str = ARCH) -> h.Tree:
    """An image with the library and a plugin in `own`: Debian's way, or conda's by an RPATH."""
    library, folder, plugin, _names = KINDS[kind]
    return {
        **h.glibc(),
        f"{own}/libmpi.so.40": h.library("libmpi.so.40", h.C),
        f"{own}/{library}": h.library(library, h.C, defines=()),
        f"{own}/{folder}/{plugin}": h.library(plugin, ("other",)),
        "/app/run": h.program(("libmpi.so.40",)),
    }


def values(found: Injection) -> dict[str, str]:
    return {env.name: env.value for env in found.environment}


def over(found: Injection) -> dict[str, str]:
    steps = [s for s in found.steps if isinstance(s, Mount) and s.over]
    return {step.target: step.source for step in steps}


@kinds
@pytest.mark.parametrize("own", [ARCH, "/opt/conda/lib"])
def test_the_hosts_plugins_lie_over_the_images(kind: str, own: str, tmp_path: Path) -> None:
    found = inject(host(kind), image(kind, own), tmp_path, environ=ENVIRON)
    folder = KINDS[kind][1]
    assert over(found)[f"{own}/{folder}"].endswith(f"/{folder}")
    for name in KINDS[kind][3]:
        assert values(found)[name].startswith(f"{planner.LIB}/{kind}")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("libibverbs", "openmpi")])
def test_a_library_without_plugins_gets_an_empty_folder(kind: str, tmp_path: Path) -> None:
    """Debian's libhwloc has its plugins in a package of their own: the image may have it."""
    found = inject(host(kind, plugins=False), image(kind), tmp_path, environ=ENVIRON)
    assert f"{planner.LIB}/{kind}" in [s.target for s in found.steps if isinstance(s, Directory)]
    for name in KINDS[kind][3]:
        assert values(found)[name] == f"{planner.LIB}/{kind}"
    bare = {path: data for path, data in image(kind).items() if KINDS[kind][2] not in path}
    found = inject(host(kind, plugins=False), bare, tmp_path / "bare", environ=ENVIRON)
    assert not set(KINDS[kind][3]) & set(values(found))


def test_plugins_beside_a_library_that_stays_the_images_stay(tmp_path: Path) -> None:
    tree = image("ucx", "/opt/conda/lib")
    tree["/opt/conda/lib/libucs.so.0"] = h.library("libucs.so.0", defines=("UCX_2",))
    old = host("ucx")
    old[f"{ARCH}/libucs.so.0"] = h.library("libucs.so.0", defines=("UCX_1",))
    found = inject(old, tree, tmp_path, environ=ENVIRON)
    assert not {"/opt/conda/lib/libucs.so.0", "/opt/conda/lib/ucx"} & set(over(found))
    assert found.notes == ("/opt/conda/lib/libucs.so.0 stays: the host's libucs.so.0 has no UCX_2",)


@kinds
def test_a_folder_that_has_more_than_plugins_is_left_alone(kind: str, tmp_path: Path) -> None:
    """Intel MPI's wheel has libfabric's beside its libraries: the host's are named by variables."""
    folder, plugin = KINDS[kind][1:3]
    moved = {
        p.replace(f"/{folder}/", "/"): data for p, data in image(kind, "/usr/local/lib").items()
    }
    assert f"/usr/local/lib/{plugin}" in moved
    assert "/usr/local/lib" not in over(inject(host(kind), moved, tmp_path, environ=ENVIRON))
