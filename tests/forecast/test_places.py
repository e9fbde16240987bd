"""Where captures lie, and the examples that come with the package."""

import json
import shutil
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import hosttree, mpi, places, symbolgroups
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, WITH
from rootless_udi.plan.options import Request, parse
from tests.kit import mpihosts as h

EXAMPLES = ("ethernet-el8", "mi250-node", "perlmutter-like")


def test_the_users_own_come_first(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "UDI_SITE_DIR": str(tmp_path / "etc")}
    assert {one.name for one in places.known(environ)} == set(EXAMPLES)
    for folder in (tmp_path / ".config/rootless_udi/sites", tmp_path / "etc/sites"):
        folder.mkdir(parents=True)
        document = {
            "format": "rootless_udi site",
            "version": 1,
            "name": "x",
            "memory": len(str(folder)),
        }
        (folder / "mi250-node.json").write_text(json.dumps(document))
        (folder / ".hidden.json").write_text("")
        (folder / "note.txt").write_text("")
    found = {one.name: one.kind for one in places.known(environ)}
    assert found == {"ethernet-el8": "example", "mi250-node": "own", "perlmutter-like": "example"}
    one = places.find("mi250-node", environ)
    assert one.name == "mi250-node" and one.number("memory") == len(
        str(folder.parent.parent / ".config/rootless_udi/sites")
    )
    shutil.rmtree(tmp_path / ".config")
    assert {one.kind for one in places.known(environ)} == {"site", "example"}
    assert {one.kind for one in places.known({"UDI_SITE_DIR": "/nothing"})} == {"example"}
    with pytest.raises(UdiError, match="HOME is not set"):
        places.own_folder({})
    with pytest.raises(UdiError, match="there is no site 'nothing'") as caught:
        places.find("nothing", {"UDI_SITE_DIR": "/nothing"})
    assert "known are ethernet-el8, mi250-node" in caught.value.hint


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_say_what_they_were_made_of(name: str) -> None:
    one = places.find(name, {})
    assert any(text.startswith("https://") for text in one.data["source"])
    assert any("not taken on the machine" in text for text in one.data["source"])
    assert one.machine == "x86_64" and one.number("memory") and one.knows("gpus")
    assert Path(places._EXAMPLES, f"{name}.json").stat().st_size < 100_000


def image(family: str, symbols: tuple[str, ...]) -> dict[str, object]:
    name = {"mpich": "libmpi.so.12", "openmpi": "libmpi.so.40"}[family]
    return h.facts({**h.whole_glibc("2.36"), "/app/run": h.program((name,), symbols)})


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("name", "family", "symbols", "verdict"),
    [
        ("perlmutter-like", "mpich", ("MPI_Init", "MPI_Ibcast"), RUNS),
        ("perlmutter-like", "mpich", ("MPI_Init", "MPI_Session_init"), FAILS),
        ("perlmutter-like", "openmpi", ("MPI_Init", "ompi_mpi_comm_world"), FAILS),
        ("mi250-node", "mpich", ("MPI_Init", "MPI_Ibcast"), RUNS),
        ("ethernet-el8", "openmpi", ("MPI_Init", "ompi_mpi_comm_world"), RUNS),
        ("ethernet-el8", "mpich", ("MPI_Init",), FAILS),
    ],
)
def test_their_mpis_go_into_images(
    name: str, family: str, symbols: tuple[str, ...], verdict: str
) -> None:
    asked = Asked("i", "/", parse(["--mpi=auto", "i"], {}), {})
    (found,) = mpi.look(places.find(name, {}), {"elf": image(family, symbols)}, asked)
    assert found.verdict == verdict, found
    asked = asked.replace(request=Request(image="i"))
    (found,) = mpi.look(places.find(name, {}), {"elf": image(family, symbols)}, asked)
    assert (found.verdict == WITH) == (verdict == RUNS)


def test_fortran_is_in_them() -> None:
    for name in EXAMPLES:
        rows = places.find(name, {}).table("mpi")["libraries"]
        symbols = {s for row in rows for s in symbolgroups.unpack(row.get("exports", {}))}
        assert {"MPI_Send", "PMPI_Send", "mpi_send_", "MPI_Ibcast"} <= symbols
        with hosttree.made(places.find(name, {})) as tree:
            assert tree is not None
