"""The checks of MPI: put in, refused, the image's own through the site's launcher."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.forecast import capturempi, mpi, pmi
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.mpi.profiles import Profile
from rootless_udi.plan.options import parse
from tests.conftest import User
from tests.forecast.test_hosttree import HOSTS, IMAGES, PATH
from tests.kit import mpi as kit
from tests.kit import mpihosts as h
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("gcc")
SLURM = {"name": "slurm", "version": "23.11", "pmi": ["pmi1", "pmi2", "pmix_v4"]}
HYDRA = {"name": "hydra", "version": "4.1", "pmi": ["pmi1", "pmi2"]}
MPIRUN = {"name": "openmpi", "version": "4.1.4", "pmi": ["pmix"]}


def site(host: str, tmp_path: Path, launchers: tuple[Any, ...] = (SLURM,), **more: Any) -> Capture:
    root = h.write(HOSTS[host], tmp_path / "host")
    data = {
        "system": {"machine": "x86_64"},
        "mpi": capturempi.capture(PATH, "x86_64", root),
        "libc": capturempi.glibc("x86_64", root),
        "launchers": list(launchers),
        **more,
    }
    return Capture("lab", data)


def look(where: Capture, elf: Any, *words: str) -> CheckFinding:
    (found,) = mpi.look(where, {"elf": elf}, Asked("i", "/", parse([*words], {}), {}))
    return found


def test_with_mpi_where_it_fits(tmp_path: Path) -> None:
    where = site("mpich", tmp_path)
    one = look(where, h.facts(IMAGES["mpich"]), "i")
    assert (one.verdict, one.options) == (WITH, ("--mpi",))
    assert "built for MPICH" in one.image.fact and one.image.file == "/app/run"
    assert one.site.file == "/opt/mpich/lib/libmpi.so.12"
    one = look(where, h.facts(IMAGES["mpich"]), "--mpi", "i")
    assert one.verdict == RUNS


def test_refused_with_the_reason_and_the_remedy(tmp_path: Path) -> None:
    elf = h.facts(IMAGES["newer mpich"])
    where = site("older mpich", tmp_path)
    one = look(where, elf, "--mpi=auto", "i")
    assert one.verdict == FAILS and "lacks MPI_Session_init" in one.what
    assert "rebuild the image" in one.remedy and "in /opt/mpich/lib" in one.site.fact
    assert look(where, elf, "--mpi=auto", "--mpi-compat=warn", "i").verdict == RUNS
    # Not asked for, the image's own MPI is left, which srun starts.
    one = look(where, elf, "i")
    assert (one.check, one.verdict) == ("mpi launcher", RUNS)
    assert "can't be put in" in one.what and "srun --mpi=pmi2" in one.what


def test_the_host_c_library_comes_along_or_not(tmp_path: Path) -> None:
    where, elf = site("new glibc", tmp_path), h.facts(IMAGES["old glibc"])
    one = look(where, elf, "--mpi=auto", "i")
    assert one.verdict == RUNS and "glibc is laid over" in one.what
    one = look(where, elf, "--mpi=auto", "--mpi-glibc=never", "i")
    assert one.verdict == FAILS and "GLIBC_2.41" in one.what


def test_per_program(tmp_path: Path) -> None:
    """Of an image with programs of both families the one that the command loads counts."""
    elf = h.facts(IMAGES["both"])
    where = site("mpich", tmp_path)
    one = look(where, elf, "--mpi=auto", "i", "/app/other")
    assert one.verdict == FAILS and "needs Open MPI" in one.what
    assert look(where, elf, "--mpi=auto", "i", "/app/run").verdict == RUNS
    assert look(where, elf, "i", "cat", "/app/run").what.startswith("the command, or the image")


def test_a_module_asks_for_it(tmp_path: Path) -> None:
    elf = h.facts(IMAGES["newer mpich"])
    where = site("older mpich", tmp_path, config={"default_modules": ["mpi"]})
    assert look(where, elf, "i").verdict == FAILS
    assert look(where, elf, "--module=none", "i").check == "mpi launcher"
    assert look(where, elf, "--mpi=none", "i").check == "mpi launcher"


def test_what_is_not_known(tmp_path: Path) -> None:
    elf = h.facts(IMAGES["mpich"])
    bare = Capture("x", {"system": {"machine": "x86_64"}})
    assert look(bare, elf, "i").verdict == UNKNOWN
    odd = Capture("x", {"system": {"machine": "s390x"}, "mpi": {"found": []}})
    assert look(odd, elf, "i").verdict == UNKNOWN
    for strange in (None, {}, 5, {**elf, "consumers": []}):
        assert look(bare, strange, "i").verdict == UNLOOKED
        assert look(bare, strange, "--mpi=auto", "i").verdict == FAILS
    assert look(bare, h.facts(h.glibc()), "i").verdict == RUNS


def test_a_profile_of_the_site(tmp_path: Path) -> None:
    """Its MPI lies where nothing else would find it, and is captured by it."""
    tree = {f"/site{path}": data for path, data in HOSTS["mpich"].items() if path[:5] == "/opt/"}
    root = h.write({**tree, **HOSTS["nothing"]}, tmp_path / "host")
    table = {"family": "mpich", "prefix": "/site/opt/mpich"}
    profile = Profile("cray", family=table["family"], prefix=table["prefix"])
    gone = Profile("gone", family="openmpi", prefix="/nothing")
    section = capturempi.capture({}, "x86_64", root, (gone, profile))
    assert [one["folder"] for one in section["found"]] == ["/site/opt/mpich/lib"]
    where = Capture(
        "x",
        {
            "system": {"machine": "x86_64"},
            "mpi": section,
            "config": {"mpi": {"cray": table, "bad": {"family": 7}, "odd": 7}},
        },
    )
    elf = h.facts(IMAGES["mpich"])
    assert look(where, elf, "--mpi=cray", "i").verdict == FAILS  # by the bad profile beside it
    del where.data["config"]["mpi"]["bad"]
    assert look(where, elf, "--mpi=cray", "i").verdict == RUNS
    assert "no such MPI profile" in look(where, elf, "--mpi=other", "i").what


def own(family: str, release: str = "", needed: tuple[str, ...] = ()) -> dict[str, Any]:
    library = {"role": "C", "family": family, "release": release, "needed": list(needed)}
    return {"libraries": [library], "consumers": {family: {}}, "static": []}


@pytest.mark.parametrize(
    ("elf", "launchers", "verdict", "words"),
    [
        (own("mpich"), (SLURM,), RUNS, "srun --mpi=pmi2"),
        (own("mpich"), (HYDRA,), RUNS, "by hydra"),
        (own("mpich"), (MPIRUN,), FAILS, "each rank would be a job of one"),
        (own("mpich", needed=("libpmix.so.2",)), (HYDRA,), FAILS, "job of one"),
        (own("mpich", needed=("libpmix.so.2",)), (SLURM,), RUNS, "srun --mpi=pmix_v4"),
        (own("mpich", needed=("libpmi2.so.0",)), (SLURM,), RUNS, "srun --mpi=pmi2"),
        (own("openmpi", "5.0.3"), (SLURM,), RUNS, "srun --mpi=pmix_v4"),
        (own("openmpi", "5.0.3"), (HYDRA,), FAILS, "job of one"),
        (own("openmpi", "5.0.3"), (MPIRUN,), UNKNOWN, "may not find each other"),
        (own("openmpi", "4.0.1"), (MPIRUN,), RUNS, "by openmpi"),
        (own("abi", needed=("libopen_mpi.so.40",)), (HYDRA,), FAILS, "job of one"),
        (own("mpich"), ({"name": "cray", "pmi": ["cray_shasta"]},), FAILS, "job of one"),
        (own("mpich"), (), UNKNOWN, "is not known"),
        (own("mpich"), ({"name": "odd", "pmi": 7}, {"pmi": [7]}), FAILS, "job of one"),
        ({"libraries": [], "consumers": {}, "static": ["/a"]}, (SLURM,), UNKNOWN, "linked in"),
        ({"libraries": [], "consumers": {"mpich": {}}}, (SLURM,), FAILS, "no MPI of its own"),
    ],
)
def test_the_images_own_mpi_and_the_launcher(
    elf: dict[str, Any], launchers: tuple[Any, ...], verdict: str, words: str
) -> None:
    where = Capture("x", {"launchers": list(launchers)})
    (one,) = pmi.look(where, elf, Evidence("/app/run", ""), "")
    assert (one.verdict, words in one.what) == (verdict, True), one


@pytest.mark.needs("userns", "fuse", "mmdebstrap", "mksquashfs", "mpich", "openmpi")
def test_a_command_that_needs_the_site_s_mpi_is_run_with_this_machine_s(user: User) -> None:
    """mpi4py's wheel does not find Debian's MPICH, whose library has another name; it does find
    the host's. Where a site has none that goes in, it fails as it fails here."""
    capture = [sys.executable, "-m", "rootless_udi", "site", "capture", "--name=here"]
    here = user.run(*capture, env={"PYTHONPATH": str(TREE)})
    document = json.loads(here.stdout)
    (user.home / "with.json").write_text(here.stdout)
    (user.home / "without.json").write_text(json.dumps(document | {"mpi": {"found": []}}))
    argv = [sys.executable, "-m", "rootless_udi", "check", kit.pulled("bullseye-mpich"), "--json"]
    argv += ["--no-cwd", f"--site={user.home}/with.json", f"--site={user.home}/without.json"]
    env = {"UDI_STORE": str(kit.store()), "PYTHONPATH": str(TREE)}
    done = user.run(*argv, "--", "python3", "-c", "from mpi4py import MPI", env=env, timeout=300)
    with_mpi, without = json.loads(done.stdout)["sites"]
    assert (with_mpi["verdict"], with_mpi["options"]) == (WITH, ["--mpi"]), done.stdout
    said = [
        one["what"] for one in with_mpi["findings"] if one["check"] in ("instructions", "image")
    ]
    assert len(said) == 2 and all("this machine's MPI" in one for one in said)
    assert without["verdict"] != RUNS and "this machine's MPI" not in str(without)
