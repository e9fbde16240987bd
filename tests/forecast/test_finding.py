"""The verdict of several findings, and their form as data."""

import pytest

from rootless_udi.forecast import finding
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)

pytestmark = pytest.mark.alike


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ((), UNKNOWN),
        ((UNLOOKED,), UNKNOWN),
        ((RUNS, UNLOOKED), RUNS),
        ((RUNS, WITH), WITH),
        ((WITH, UNKNOWN, RUNS), UNKNOWN),
        ((UNKNOWN, FAILS, WITH), FAILS),
    ],
)
def test_the_worst_counts_and_nothing_seen_is_no_promise(
    verdicts: tuple[str, ...], whole: str
) -> None:
    assert finding.worst(CheckFinding("x", verdict, "") for verdict in verdicts) == whole


def test_options_once_each() -> None:
    found = [
        CheckFinding("mpi", WITH, "", options=("--mpi",)),
        CheckFinding("gpu", WITH, "", options=("--gpu", "--mpi")),
        CheckFinding("other", FAILS, "", options=("--never",)),
    ]
    assert finding.options(found) == ("--mpi", "--gpu")


def test_as_data() -> None:
    one = CheckFinding("kernel", FAILS, "too old", Evidence("/bin/sh", "5.4"), remedy="rebuild")
    assert finding.as_data(one) == {
        "check": "kernel",
        "verdict": "fails",
        "what": "too old",
        "image": {"file": "/bin/sh", "fact": "5.4"},
        "site": {"file": "", "fact": ""},
        "remedy": "rebuild",
        "options": [],
    }
