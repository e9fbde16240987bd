"""Profiles: the TOML's words, what they add to a plan, the examples of contrib/mpi."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.mpi import planner, profiles
from rootless_udi.plan.steps import Env, Mount
from tests.kit import mpihosts as h
from tests.kit.places import TREE
from tests.mpi_inject.test_mpi_plan import inject, sources, targets

EXAMPLES = TREE / "contrib/mpi"


def example(name: str) -> profiles.Profile:
    return profiles.from_dict(name, tomllib.loads((EXAMPLES / f"{name}.toml").read_text()))


def every_example() -> tuple[profiles.Profile, ...]:
    return tuple(example(path.stem) for path in sorted(EXAMPLES.glob("*.toml")))


def test_a_profile() -> None:
    found = profiles.from_dict(
        "site-mpi",
        {
            "family": "mpich",
            "prefix": "/opt/m/",
            "libraries": ["lib/libmpi.so.12", "/x/libmpifort.so.12"],
            "with": ["ib"],
            "set": {"A": "1"},
            "default": {"B": "2"},
        },
    )
    assert found.libraries == ("/opt/m/lib/libmpi.so.12", "/x/libmpifort.so.12")
    assert found.needs == ("ib",)
    assert [env.op for env in found.environment] == ["set", "default"]
    assert profiles.variables(found, {"B": "mine"}) == [
        Env("set", "A", "1", "MPI profile site-mpi")
    ]
    assert [e.name for e in profiles.variables(found, {})] == ["A", "B"]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("auto", {}, "MPI profile auto (f.toml): not a name for a profile"),
        ("a b", {}, "MPI profile a b (f.toml): not a name for a profile"),
        ("a", {"famly": "mpich"}, "MPI profile a (f.toml): unknown key famly"),
        ("a", {"family": "lam"}, "MPI profile a (f.toml): unknown family lam"),
        ("a", {"compat": "some"}, "MPI profile a (f.toml): unknown compat some"),
        ("a", {"prefix": 3}, "MPI profile a (f.toml): prefix must be text"),
        ("a", {"prefix": "opt"}, "MPI profile a (f.toml): prefix must be an absolute path: opt"),
        ("a", {"devices": "/dev/x"}, "MPI profile a (f.toml): devices must be a list of texts"),
        ("a", {"set": {"A": 1}}, "MPI profile a (f.toml): set must be a table"),
        (
            "a",
            {"libraries": ["l/x"]},
            "MPI profile a (f.toml): libraries has a relative path and there is no prefix: l/x",
        ),
        (
            "a",
            {"binds": ["/a:b"]},
            "MPI profile a (f.toml): binds must have absolute paths: /a:b",
        ),
    ],
)
def test_what_a_profile_may_not_say(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(UdiError) as caught:
        profiles.from_dict(name, table, "f.toml")
    assert caught.value.message == message


def test_one_that_comes_with_another_that_is_not_there() -> None:
    one = profiles.from_dict("one", {"with": ["two"]})
    with pytest.raises(UdiError, match="--mpi=two: there is no such MPI profile"):
        profiles.together((one,), one)


def test_circles_of_profiles_end() -> None:
    both = tuple(profiles.from_dict(a, {"with": [b]}) for a, b in (("one", "two"), ("two", "one")))
    assert [p.name for p in profiles.together(both, both[0])] == ["one", "two"]


def test_patterns(tmp_path: Path) -> None:
    for name in ("dev/cxi0", "dev/cxi1", "dev/null", "dev/.cxi"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    root = str(tmp_path)
    assert profiles.expand(root, "/dev/cxi*") == ["/dev/cxi0", "/dev/cxi1"]
    assert profiles.expand(root, "/dev/*l") == ["/dev/null"]
    assert profiles.expand(root, "/dev/cxi0") == ["/dev/cxi0"]
    assert profiles.expand(root, "/dev/none") == profiles.expand(root, "/none/*") == []


@pytest.mark.needs("gcc")
def test_binds_and_devices_that_the_host_has(tmp_path: Path) -> None:
    profile = profiles.from_dict(
        "ib",
        {
            "binds": ["/etc/libibverbs.d", "/opt/etc:/etc/site", "/opt/*:/srv/", "/not/there"],
            "devices": ["/dev/infiniband/uverbs*"],
        },
    )
    host = {
        **h.mpich_host(),
        "/etc/libibverbs.d/mlx5.driver": b"driver mlx5\n",
        "/opt/etc/x": b"",
        "/dev/infiniband/uverbs0": b"",
    }
    found = targets(inject(host, h.mpich_image(), tmp_path, "ib", site=(profile,)))
    for target in ("/etc/libibverbs.d", "/etc/site", "/srv/etc", "/dev/infiniband/uverbs0"):
        assert target in found
    assert "/not/there" not in found
    assert f"{planner.LIB}/libmpi.so.12" in found, "the MPI beside a fabric is found as by auto"


@pytest.mark.needs("gcc")
def test_a_profile_of_a_prefix_and_its_check(tmp_path: Path) -> None:
    profile = profiles.from_dict(
        "mine", {"family": "mpich", "prefix": "/opt/mpich", "compat": "strict"}
    )
    with pytest.raises(UdiError, match=r"\(--mpi-compat=strict\)"):
        inject(h.mpich_host(), h.mpich_image(), tmp_path, "mine", environ={}, site=(profile,))
    found = inject(
        h.mpich_host(), h.mpich_image(), tmp_path / "b", "mine", "full", {}, site=(profile,)
    )
    assert sources(found)[f"{planner.LIB}/libmpi.so.12"].endswith("/opt/mpich/lib/libmpi.so.12")


def cray_host() -> h.Tree:
    """What the examples for Cray expect, in small."""
    base = "/opt/cray/pe/mpich/8.1.28"
    build = f"{base}/ofi/gnu/9.1/lib-abi-mpich"
    return {
        f"{build}/libmpi.so.12": "libmpi_gnu_91.so.12",
        f"{build}/libmpi_gnu_91.so.12": h.library(
            "libmpi_gnu_91.so.12", h.C, needed=("libfabric.so.1", "libpmi.so.0", "libpmi2.so.0")
        ),
        f"{build}/libmpifort.so.12": h.library("libmpifort_gnu_91.so.12", ("mpi_init_",)),
        "/opt/cray/libfabric/1.15.2.0/lib64/libfabric.so.1": h.library(
            "libfabric.so.1", needed=("libcxi.so.1",)
        ),
        "/opt/cray/pe/pmi/6.1.13/lib/libpmi.so.0": h.library(
            "libpmi.so.0", needed=("libpals.so.0",)
        ),
        "/opt/cray/pe/pmi/6.1.13/lib/libpmi2.so.0": h.library("libpmi2.so.0"),
        "/opt/cray/pe/lib64/libpals.so.0": h.library("libpals.so.0"),
        f"{base}/gtl/lib/libmpi_gtl_cuda.so.0": h.library("libmpi_gtl_cuda.so.0"),
        f"{base}/gtl/lib/libmpi_gtl_hsa.so.0": h.library("libmpi_gtl_hsa.so.0"),
        "/usr/lib64/libcxi.so.1": h.library("libcxi.so.1"),
        "/usr/lib64/libjson-c.so.3": h.library("libjson-c.so.3"),
        "/usr/lib64/libxpmem.so.0": h.library("libxpmem.so.0"),
        "/dev/cxi0": b"",
        "/dev/cxi1": b"",
        "/dev/xpmem": b"",
        "/var/spool/slurmd/x": b"",
    }


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ["cray-mpich", "gtl-cuda", "gtl-hsa"])
def test_the_examples_for_slingshot(name: str, tmp_path: Path) -> None:
    found = inject(cray_host(), h.mpich_image(), tmp_path, name, environ={}, site=every_example())
    libraries = ["libmpi.so.12", "libmpi_gnu_91.so.12", "libmpich.so.12", "libfabric.so.1"]
    libraries += ["libcxi.so.1", "libpmi.so.0", "libpals.so.0", "libxpmem.so.0", "libjson-c.so.3"]
    assert {f"{planner.LIB}/{n}" for n in libraries} <= set(targets(found))
    assert {"/dev/cxi0", "/dev/cxi1", "/dev/xpmem"} <= set(targets(found))
    values = {e.name: e.value for e in found.environment}
    assert values["FI_PROVIDER"] == "cxi"
    if name.startswith("gtl"):
        library = f"{planner.LIB}/libmpi_gtl_{name[4:]}.so.0"
        assert values["LD_PRELOAD"] == library
        assert library in targets(found)
        assert values["MPICH_GPU_SUPPORT_ENABLED"] == "1"


def ib_host() -> h.Tree:
    """An InfiniBand node with the system's UCX."""
    host = {**h.mpich_host(), "/etc/libibverbs.d/mlx5.driver": b"driver mlx5\n"}
    needed = {
        "libibverbs.so.1": ("libnl-3.so.200",),
        "librdmacm.so.1": ("libibverbs.so.1",),
        "libmlx5.so.1": ("libibverbs.so.1",),
        "libnl-3.so.200": (),
        "libucp.so.0": ("libuct.so.0",),
        "libuct.so.0": ("libucs.so.0",),
        "libucs.so.0": ("libucm.so.0",),
        "libucm.so.0": (),
    }
    for name, names in needed.items():
        host[f"/usr/lib64/{name}"] = h.library(name, needed=names)
    host["/usr/lib64/libibverbs/libmlx5-rdmav57.so"] = h.library()
    host["/usr/lib64/ucx/libuct_ib.so.0"] = h.library("libuct_ib.so.0", needed=("libmlx5.so.1",))
    for name in ("infiniband/uverbs0", "infiniband/uverbs1", "infiniband/rdma_cm", "xpmem"):
        host[f"/dev/{name}"] = b""
    return host


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ["verbs", "ucx", "xpmem"])
def test_the_examples_for_infiniband(name: str, tmp_path: Path) -> None:
    found = inject(ib_host(), h.mpich_image(), tmp_path, name, site=every_example())
    got = set(targets(found))
    if name == "xpmem":
        assert "/dev/xpmem" in got
        return
    assert {"/dev/infiniband/uverbs1", "/dev/infiniband/rdma_cm", "/etc/libibverbs.d"} <= got
    names = ("libibverbs.so.1", "librdmacm.so.1", "libmlx5.so.1", "libnl-3.so.200")
    assert {f"{planner.LIB}/{n}" for n in names} <= got
    drivers = [e.value for e in found.environment if e.name == "RDMAV_DRIVERS"]
    assert drivers == [f"{planner.LIB}/libibverbs/libmlx5"]
    if name == "ucx":
        assert {f"{planner.LIB}/libuct_ib.so.0", f"{planner.LIB}/libucp.so.0"} <= got


@pytest.mark.needs("gcc")
def test_the_example_for_open_mpi(tmp_path: Path) -> None:
    host = {
        **ib_host(),
        "/opt/apps/openmpi/5.0.6/lib/libmpi.so.40": h.library(
            "libmpi.so.40", h.C, needed=("libpmix.so.2",)
        ),
        "/usr/lib64/libpmix.so.2": h.library("libpmix.so.2", needed=("libmunge.so.2",)),
        "/usr/lib64/libmunge.so.2": h.library("libmunge.so.2"),
        "/run/munge/munge.socket.2": b"",
    }
    image = {**h.glibc(), "/app": h.program(("libmpi.so.40",))}
    found = inject(host, image, tmp_path, "openmpi-site", site=(*every_example(), _renamed()))
    assert {"/run/munge", f"{planner.LIB}/libmunge.so.2", f"{planner.LIB}/libpmix.so.2"} <= set(
        targets(found)
    )
    values = {e.name: e.value for e in found.environment}
    assert values["OPAL_PREFIX"] == planner.ROOT
    assert values["UCX_TLS"] == "self,sm,rc"
    assert [s for s in found.steps if isinstance(s, Mount) and s.target == planner.ROOT]


def _renamed() -> profiles.Profile:
    return example("openmpi-5").replace(name="openmpi-site")


def test_every_example_is_a_profile_with_a_description() -> None:
    assert len(every_example()) >= 7
    for profile in every_example():
        assert profile.description
        profiles.together(every_example(), profile)
