"""The units in contrib/gateway: systemd itself reads them, and knows every line."""

from pathlib import Path

import pytest

from rootless_udi.commands.udi import parser
from tests.conftest import User
from tests.kit.places import TREE


@pytest.mark.alike
@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize(
    ("name", "options"), [("udi-gateway", ()), ("udi-gateway-user", ("--user",))]
)
def test_systemd_verifies_the_unit(
    user: User, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    text = (TREE / f"contrib/gateway/{name}.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    # The program must be there: systemd looks. Its arguments are those that udi takes.
    program, *words = line.partition("=")[2].split()
    assert program.endswith("/bin/udi")
    parser().parse_args(words)
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace(program, f"{TREE}/bin/udi"))
    # Units of the system name sockets there: a longer path is too long for one (unix(7)).
    done = user.run("systemd-analyze", *options, "verify", unit, env={"XDG_RUNTIME_DIR": "/run"})
    assert done.returncode == 0 and not done.stderr, done.stderr
