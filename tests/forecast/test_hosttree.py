"""What the planner of --mpi says of a captured host is what it says of the host itself."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import capturempi, elfwriter, hosttree
from rootless_udi.forecast.elfwriter import WrittenLibrary
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.symbols import Symbols, newest
from rootless_udi.mpi_inject.mpi import planner
from rootless_udi.plan.steps import Injection
from tests.kit import mpihosts as h

pytestmark = pytest.mark.needs("gcc")
PATH = {"PATH": "/opt/mpich/bin:/usr/bin"}

HOSTS = {
    "mpich": h.mpich_host(),
    "older mpich": h.mpich_host(exports=h.C),
    "new glibc": {**h.mpich_host("2.41"), **h.whole_glibc("2.41")},
    "openmpi": h.openmpi_host(),
    "both": {**h.openmpi_host(), **h.mpich_host()},
    "fabric": {**h.mpich_host(), "/sys/class/infiniband/mlx5_0/node_type": b"1\n"},
    "nothing": h.whole_glibc("2.36"),
}
OPENMPI = h.program(("libmpi.so.40",), ("MPI_Init", "ompi_mpi_comm_world"))
IMAGES = {
    "mpich": h.mpich_image(),
    "newer mpich": h.mpich_image(h.program(("libmpich.so.12",), h.NEWER)),
    "old glibc": {**h.mpich_image(glibc_version="2.31"), **h.whole_glibc("2.31")},
    "openmpi": {**h.glibc(), "/app/run": OPENMPI},
    "fortran": {
        **h.glibc(),
        "/app/run": h.program(("libmpi_mpifh.so.40", "libmpi.so.40"), ("mpi_init_", "mpi_x_")),
    },
    "both": {**h.mpich_image(), "/app/other": OPENMPI},
}


def planned(root: str, environ: dict[str, str], image: dict[str, Any], compat: str) -> Any:
    """Return the plan without the root in it, or the refusal."""
    try:
        found = planner.inject("auto", compat, image, environ, (), root)
    except UdiError as error:
        return error.message, error.hint
    assert isinstance(found, Injection)
    return repr(found).replace(root, "ROOT")


def captured(root: str, environ: dict[str, str]) -> Capture:
    data = {
        "system": {"machine": "x86_64"},
        "mpi": capturempi.capture(environ, "x86_64", root),
        "libc": capturempi.glibc("x86_64", root),
    }
    return Capture("lab", data)


@pytest.mark.parametrize("host", HOSTS)
def test_the_planner_answers_the_same(host: str, tmp_path: Path) -> None:
    root = h.write(HOSTS[host], tmp_path / "host")
    one = captured(root, PATH)
    with hosttree.made(one) as tree:
        assert tree is not None
        for image in IMAGES.values():
            facts = h.facts(image)
            for compat in ("", "full", "strict", "warn"):
                there = planned(root, PATH, facts, compat)
                if not one.table("mpi")["found"]:
                    assert planned(tree.root, tree.environ, facts, compat) == there
                    continue
                assert planned(tree.root, tree.environ, facts, compat) == there
    assert not os.path.exists(tree.root)


@pytest.mark.needs("mpich", "openmpi")
@pytest.mark.parametrize("image", IMAGES)
def test_the_same_for_this_machine(image: str) -> None:
    environ = {"PATH": "/usr/bin:/bin"}
    facts = h.facts(IMAGES[image])
    with hosttree.made(captured("/", environ)) as tree:
        assert tree is not None
        here = planned("/", environ, facts, "")
        there = planned(tree.root, tree.environ, facts, "")
        if isinstance(here, tuple):
            assert there == here
        else:
            assert isinstance(there, str)
            # The order of plugins and the names of what was found twice are a machine's own.
            assert there.replace("ROOT", "").count("over=True") == here.count("over=True")


def test_a_written_library_reads_as_the_compiled_one() -> None:
    for tree in HOSTS.values():
        for data in tree.values():
            if not isinstance(data, bytes) or data[:4] != b"\x7fELF":
                continue
            one = elf.parse(data)
            exports = Symbols(data).exported()
            texts = {"MPII_Version_ABI": Symbols(data).constant("MPII_Version_ABI")}
            written = elfwriter.write(
                WrittenLibrary(
                    one.machine,
                    one.soname,
                    one.needed,
                    one.rpath,
                    one.runpath,
                    one.needs,
                    one.defines,
                    tuple(sorted(exports - set(texts))),
                    {name: text for name, text in texts.items() if text},
                )
            )
            again, symbols = elf.parse(written), Symbols(written)
            assert again.replace(interp="") == one.replace(interp="")
            assert symbols.exported() | set(texts) == exports | set(texts)
            assert symbols.constant("MPII_Version_ABI") == texts["MPII_Version_ABI"]
            assert symbols.missing(["MPI_Init", "no"])[-1:] == ["no"]


WORDS = st.lists(
    st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1), max_size=3
)


@given(WORDS, WORDS, st.dictionaries(st.sampled_from("abc"), WORDS.filter(bool)))
def test_any_names_are_written(
    names: list[str], more: list[str], needs: dict[str, list[str]]
) -> None:
    one = WrittenLibrary(
        "aarch64", "x", tuple(names), needs=needs, defines=tuple(more), exports=tuple(set(more))
    )
    found = elf.parse(elfwriter.write(one))
    assert (found.needed, found.defines) == (tuple(names), tuple(more))
    assert found.needs == {file: tuple(versions) for file, versions in needs.items()}
    assert Symbols(elfwriter.write(one)).exported() == set(more)
    assert newest(found.defines) == newest(more)


@pytest.mark.parametrize(
    "path",
    ["", "x", "../../x", "/", "//", "/a\0b", "/" + "a" * 300, "/" + "a/" * 600, 7, None, []],
)
def test_a_path_that_is_none(path: object) -> None:
    assert hosttree.normal(path) in ("", "/x")


def test_a_hostile_capture_stays_in_its_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    up = "/../" * 30
    library = {"soname": "libmpi.so.12", "exports": {"*": "MPI_Init"}, "cached": ["libmpi.so.12"]}
    data = {
        "system": {"machine": "x86_64"},
        "libc": {"files": {"libc.so.6": [f"{up}{outside}/libc.so.6", ["GLIBC_2.2.5"]], "x": 7}},
        "mpi": {
            "found": 7,
            "environ": {"PATH": "/usr/bin", "LD_LIBRARY_PATH": str(outside), "MPI_HOME": 7},
            "links": [["/link", str(outside)], ["/usr/bin/mpiexec", f"{up}etc"], ["/a"], 7],
            "libraries": [
                {**library, "path": "/link/libmpi.so.12"},
                {**library, "path": f"{outside}/libmpi.so.12", "real": f"{outside}/x/../real.so"},
                {**library, "path": "/link"},
                {**library, "path": "/link/libmpi.so.12/below"},
                {"path": 7},
                {**library, "path": "/l", "needs": 7, "needed": 7, "exports": 7, "numbers": 7},
                7,
            ],
            "trees": [["ucx", "/link/ucx", ["../../../../x", "libuct.so"]], ["x", 7, 7], 7],
            "plugins": {"/link/ucx/libuct.so": 7},
            "fabric": True,
        },
    }
    with hosttree.made(Capture("x", data)) as tree:
        assert tree is not None
        assert list(outside.iterdir()) == []
        root = Path(tree.root)
        for path in root.rglob("*"):
            # realpath(3) would leave the room through /proc/PID/root.
            if path.is_symlink():
                target = path.readlink()
                leads = Path(os.path.normpath(path.parent / target))
                assert not target.is_absolute() and leads.is_relative_to(root), path
        planned(tree.root, tree.environ, h.facts(h.mpich_image()), "")


def test_a_machine_whose_files_are_not_written() -> None:
    for machine in ("s390x", "i386", "", "unknown"):
        with hosttree.made(Capture("x", {"system": {"machine": machine}})) as tree:
            assert tree is None
