"""The site's examiner: what it sees, what it refuses, and what happens where it gives no answer."""

from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.gateway import SYSTEM, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")


def program(folder: Path, text: str) -> str:
    path = folder / "examiner"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"--examiner={path}"


def test_it_sees_facts_and_file_before_anybody_may(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    text = f'cat >{tmp_path}/facts; stat -c "%a $UDI_IMAGE $UDI_DIGEST $UDI_PLATFORM" "$1" '
    text += f">{tmp_path}/seen; env >{tmp_path}/env"
    option = program(tmp_path, text)
    with gateway(user, tmp_path / "site", option, SECRET="not for it") as one:
        ready = one.pulled(f"{registry.host}/site/box:1")
        assert ready["status"] == "READY"
        words = (tmp_path / "seen").read_text().split()
        assert words[:3] == ["600", f"{registry.host}/site/box:1", f"sha256:{ready['id']}"]
        assert '"env": ["PATH=/bin", "A=1"]' in (tmp_path / "facts").read_text()
        assert "SECRET" not in (tmp_path / "env").read_text()


def test_what_it_refuses_is_nowhere(user: User, tmp_path: Path, registry: Registry) -> None:
    """Not by its name, not by its digest, not in the store, not after a new start."""
    text = 'echo one; [ "${UDI_IMAGE%same:2}" != "$UDI_IMAGE" ] && exit 0; '
    text += "printf 'it has \\033[1mcurl\\n'; exit 1"
    tag = f"{registry.host}/site/box:1"
    with gateway(user, tmp_path / "site", program(tmp_path, text)) as one:
        failed = one.pulled(tag)
        assert failed["status"] == "FAILURE"
        assert failed["status_message"].startswith("the site's examiner refuses it: it has ")
        assert "\033" not in failed["status_message"]
        assert not list((one.store / "images").glob("*.sqfs"))
        assert one.get(f"/api/list/{SYSTEM}/").body == {"list": []}
        # The same image by a name that it accepts; refusing the other leaves this one.
        ready = one.pulled(f"{registry.host}/site/same:2")
        assert ready["status"] == "READY"
        one.stop()
        one.start()
        assert one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 404
        assert one.pulled(tag)["status"] in ("FAILURE", "READY")
        listed = one.get(f"/api/list/{SYSTEM}/").body["list"]
        assert [row["tag"] for row in listed] == [[f"{registry.host}/site/same:2"]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sleep 600 & sleep 600", "the examiner gave no answer in 1 seconds"),
        ("echo my bug; exit 3", "the examiner failed with status 3: my bug"),
        ("kill -9 $$", "the examiner failed with status -9"),
    ],
)
def test_no_answer_is_no_yes(
    user: User, tmp_path: Path, registry: Registry, text: str, why: str
) -> None:
    options = (program(tmp_path, text), "--examiner-seconds=1")
    tag = f"{registry.host}/site/box:1"
    with gateway(user, tmp_path / "site", *options) as one:
        waiting = one.pulled(tag, "PENDING", "FAILURE", "READY")
        while not waiting["status_message"]:
            waiting = one.pulled(tag, "PENDING", "FAILURE", "READY")
        assert f"attempt 1 of 5 failed: {why}" in waiting["status_message"]
        assert one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 404
        # It is examined again at the next attempt, which a new gateway begins at once.
        (tmp_path / "examiner").write_text("#!/bin/sh\nexit 0\n")
        one.stop()
        one.start()
        assert one.pulled(tag)["status"] == "READY"


def test_a_flood_from_it_is_bounded_and_its_children_end(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    text = f"sleep 600 & echo $! >{tmp_path}/child; head -c 50000000 /dev/zero | tr '\\0' x; echo"
    text += "; echo $(head -c 5000 /dev/zero | tr '\\0' y); exit 1"
    with gateway(user, tmp_path / "site", program(tmp_path, text)) as one:
        failed = one.pulled(f"{registry.host}/site/box:1")
        assert failed["status"] == "FAILURE" and len(failed["status_message"]) < 400
        child = int((tmp_path / "child").read_text())
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("path", ["relative", "/none", "/etc/passwd", "/etc"])
def test_a_program_that_cannot_be_run_is_refused(user: User, tmp_path: Path, path: str) -> None:
    words = [f"--store={tmp_path}/site", f"--examiner={path}"]
    done = user.run("udi", "gateway", "serve", *words)
    assert done.returncode == 125
    assert f"--examiner={path}: is no program that this account can run" in done.stderr
