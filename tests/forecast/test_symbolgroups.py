"""Symbols as text: nothing is lost, and what somebody else has written does no harm."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.forecast import symbolgroups
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.symbols import Symbols


@pytest.mark.needs("mpich")
def test_symbols_are_packed_and_come_back() -> None:
    folder = Path("/usr/lib/x86_64-linux-gnu")
    plain = written = 0
    for path in sorted(folder.glob("libmpi*.so.??")):
        symbols = Symbols(path.read_bytes()).exported(abi.SYMBOLS)
        packed = symbolgroups.pack(symbols)
        assert symbolgroups.unpack(packed) == sorted(symbols), path
        plain += sum(map(len, symbols))
        written += len(json.dumps(packed))
    assert written < 0.4 * plain


def test_the_form() -> None:
    names = {f"{head}MPI_Comm_{tail}" for head in ("", "P") for tail in ("get", "get_all", "size")}
    assert symbolgroups.pack(names) == {"MPI_* PMPI_*": "Comm_{get,get_all,size}"}
    assert symbolgroups.pack({"ompi_a_b_c", "ompi_a_b_d", "ompi_a_e", "ompi_a"}) == {
        "ompi_*": "a a_{b_{c,d},e}"
    }
    # Also plain words, as captures of before have them.
    assert symbolgroups.unpack({"mpi_*_ MPI_^": "send recv"}) == [
        *("MPI_RECV", "MPI_SEND", "mpi_recv_", "mpi_send_")
    ]


def test_odd_symbols_come_back_too() -> None:
    names = {"_", "x", "MPI_", "mpi_", "mpi_a", "mpi_a_", "mpi_a__", "MPI_A", "PMPI_A", "mpi___"}
    for more in (set(), {"pmpi_a", "pmpi_a_", "pmpi_a__"}):
        assert symbolgroups.unpack(symbolgroups.pack(names | more)) == sorted(names | more)
    assert symbolgroups.unpack({"MPI_*": 7, "a": "b"}) == ["a"]
    assert symbolgroups.pack({"a{b", "a,b", "a}", "a b", "a*", "a^"}) == {}


PIECES = st.sampled_from(["MPI", "PMPI", "mpi", "pmpi", "_", "__", "a", "b", "f", "f08", "Abc"])


@given(st.sets(st.lists(PIECES, min_size=1, max_size=7).map("".join), max_size=60))
def test_any_symbols_come_back(names: set[str]) -> None:
    assert symbolgroups.unpack(symbolgroups.pack(names)) == sorted(names)


@given(st.text("ab_{},* \n^"), st.text("ab_{},* \n^"))
def test_any_text_is_read(key: str, text: str) -> None:
    symbolgroups.unpack({key: text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a_*", "{" * 500_000 + "x" + "," * 500_000),
        ("a_*", "{x," * 300_000),
        ("a_*", "x" * 1_000_000),
        ("a_*", "x" * 200 + "{" + "a,b," * 200_000 + "}"),
        ("* " * 250_000, "a b " * 100_000),
        ("*" * 500_000, "a " * 250_000),
        ("a_*", "".join(f"{n} " for n in range(140_000))),
        ("a_*", "}" * 1_000_000),
    ],
)
def test_bounds(key: str, text: str) -> None:
    found = symbolgroups.unpack({key: text})
    assert len(found) <= 20_016
    assert sum(map(len, found)) < 20_016 * 512
