"""docs/troubleshooting.md lists the messages that are raised, and finds those that users meet."""

import re
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from tests.conftest import User
from tests.kit import messages


@pytest.mark.alike
def test_the_page_is_what_the_tree_raises() -> None:
    said = "python3 -m tests.kit.messages writes it anew"
    assert messages.PAGE.read_text() == messages.page(), said


@pytest.mark.alike
@pytest.mark.needs("gateway")
def test_each_kind_of_error_is_looked_for() -> None:
    def below(kind: type[UdiError]) -> set[str]:
        return {kind.__name__}.union(*map(below, kind.__subclasses__()))

    from rootless_udi.base import trust  # noqa: F401  # defines one
    from rootless_udi.gateway import app  # noqa: F401
    from rootless_udi.launch import hooks  # noqa: F401
    from rootless_udi.mpi_inject.cdi import edits  # noqa: F401
    from rootless_udi.pull import registry, retry  # noqa: F401

    assert below(UdiError) == set(messages.KINDS)


@pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")
@pytest.mark.parametrize(
    "typed",
    [
        "udi-run /nosuch.sqfs true",
        "udi-run 'UPPER CASE' true",
        "udi-run BOX nosuchprogram",
        "udi-run --volume=/tmp:/etc BOX true",
        "udi-run --volume=tmp:/data BOX true",
        "udi-run --workdir=/nosuch BOX true",
        "udi-run --env=NAME BOX true",
        "udi-run --module=nosuch BOX true",
        "udi-run --nosuch BOX true",
        "udi rm nosuch",
        "udi inspect nosuch:1",
        "udi tag nosuch a/b:1",
    ],
)
def test_a_message_is_found_on_the_page(user: User, box: Path, typed: str) -> None:
    done = user.run("sh", "-c", typed.replace("BOX", str(box)))
    assert done.returncode != 0
    said = done.stderr.splitlines()[0].partition(": ")[2]
    for found in messages.topics().values():
        for message in found:
            words = re.split(r"[A-Z][A-Z-]+|\.\.\.", message.text)
            if re.fullmatch(".*".join(map(re.escape, words)), said):
                return
    pytest.fail(f"not on the page: {said}")
