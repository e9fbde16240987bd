"""Large files of a store on Lustre. There is no Lustre here: a stand-in for its program `lfs`."""

from pathlib import Path

import pytest

from tests.conftest import User

GOOD = """
[ "$1" = getstripe ] && printf 'lcm_layout\\n stripe_count:  1\\n stripe_count:  %s\\n' "$COUNT"
exit 0
"""


@pytest.fixture
def lfs(user: User, tmp_path: Path) -> Path:
    """The stand-in's folder, which is first in PATH; `log` has how it was called."""
    folder = tmp_path / "lustre"
    folder.mkdir()
    program = folder / "lfs"
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/log\n{GOOD}')
    program.chmod(0o755)
    user.env["PATH"] = f"{folder}:{user.env['PATH']}"
    user.env["UDI_STORE"] = str(user.home / "new")
    return folder


def test_a_new_store_is_striped_and_doctor_says_so(user: User, lfs: Path) -> None:
    store = user.env["UDI_STORE"]
    user.run("udi", "pull", "oci:/nowhere:1")
    words = "setstripe -E 64M -c 1 -E -1 -c 8"
    log = lfs / "log"
    assert log.read_text() == f"{words} {store}/images\n{words} {store}/blobs\n"
    # Not once more: its owner may have chosen another layout.
    user.run("udi", "pull", "oci:/nowhere:1")
    assert len(log.read_text().splitlines()) == 2
    done = user.run("udi", "doctor", env={"COUNT": "8"})
    assert f"{store} on " in done.stdout and "large files in 8 stripes" in done.stdout
    done = user.run("udi", "doctor", env={"COUNT": "1"})
    assert "each file is on one server of Lustre" in done.stdout
    assert f"lfs setstripe -E 64M -c 1 -E -1 -c 8 {store}/images" in done.stdout


def test_what_the_site_chooses(user: User, lfs: Path) -> None:
    config = user.home / "c.toml"
    config.write_text("[store]\nstripes = 0\n")
    user.run("udi", "pull", "oci:/nowhere:1", env={"UDI_CONFIG": str(config)})
    assert not (lfs / "log").exists()
    config.write_text("[store]\nstripes = -1\n")
    user.run("udi", "pull", "oci:/nowhere:1", env={"UDI_CONFIG": str(config)})
    assert (
        (lfs / "log").read_text().splitlines()[0].startswith("setstripe -E 64M -c 1 -E -1 -c -1 ")
    )
    config.write_text("[store]\nstripes = 5000\n")
    done = user.run("udi", "config", "check", env={"UDI_CONFIG": str(config)})
    assert done.returncode and "5000 is out of bounds" in done.stdout + done.stderr


def test_another_file_system(user: User, lfs: Path) -> None:
    """`lfs` refuses there, and nothing is said of it."""
    (lfs / "lfs").write_text("#!/bin/sh\necho 'Inappropriate ioctl for device' >&2\nexit 25\n")
    done = user.run("udi", "pull", "oci:/nowhere:1")
    assert "ioctl" not in done.stderr
    assert "stripe" not in user.run("udi", "doctor").stdout
