"""udi verify: each damaged window is found; what copies or rewrites an image refuses damage."""

import json
import shutil
from pathlib import Path

import pytest

from rootless_udi.base.windows import WINDOW
from rootless_udi.store import windows
from tests.conftest import User
from tests.kit import fuseimages, images

pytestmark = pytest.mark.needs("userns", "busybox")


@pytest.fixture
def named(user: User, tmp_path: Path) -> Path:
    """`my/app:1` in the user's store, of several windows; its file."""
    layout = images.Layout(tmp_path / "layout")
    entries = [*images.busybox_entries(), ("noise", fuseimages.noise(3 << 20), {})]
    layout.image("1", [images.tar(entries)])
    source = f"oci:{layout.path}:1"
    done = user.run("udi", "pull", "-q", source)
    assert done.returncode == 0, done.stderr
    assert user.run("udi", "tag", source, "my/app:1").returncode == 0
    assert user.run("udi", "rm", source).returncode == 0
    return Path(user.env["UDI_STORE"], f"images/{done.stdout.strip().replace(':', '-')}.sqfs")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes((byte[0] ^ 1,)))


def used(path: Path) -> int:
    with path.open("rb") as file:
        return windows.used(file.fileno())


def test_a_pulled_image_is_right_until_a_byte_changes(user: User, named: Path) -> None:
    facts = json.loads(user.run("udi", "inspect", "my/app:1").stdout)
    with named.open("rb") as file:
        known = windows.behind(file.fileno(), used(named))
    assert known is not None and facts["windows"] == [known.digest]
    done = user.run("udi", "verify", "my/app:1")
    count = -(-used(named) // WINDOW)
    said = f"my/app:1: right, {count} windows of 1 MiB ({named})\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    flip(named, WINDOW + 5)
    done = user.run("udi", "verify", "my/app:1")
    assert (done.returncode, done.stdout) == (
        125,
        f"my/app:1: 1 of {count} windows of 1 MiB is damaged, from byte {WINDOW} ({named}): "
        "udi pull --force my/app:1\n",
    )
    done = user.run("udi", "verify", "--all", "--json")
    found = json.loads(done.stdout)[0]
    assert done.returncode == 125 and found["right"] is False and "damaged" in found["why"]
    # What is copied or written anew gets a list of its own, which must not call damage right.
    archive = ("export", "--format=oci-archive", "my/app:1", "x.tar")
    for words in (("export", "my/app:1", "x.sqfs"), archive, ("import", named, "other")):
        done = user.run("udi", *words)
        assert done.returncode == 125 and "windows of 1 MiB is damaged" in done.stderr, words
    flip(named, WINDOW + 5)
    profile = user.run("udi", "profile", "-o", "p", "my/app:1", "--", "/bin/ls", "/")
    assert profile.returncode == 0, profile.stderr
    flip(named, WINDOW + 5)
    done = user.run("udi", "optimize", "my/app:1", "p")
    assert done.returncode == 125 and "optimizing failed on" in done.stderr
    assert "1 MiB is damaged, from byte" in done.stderr
    assert [p.name for p in named.parent.iterdir() if p.name.startswith(".")] == []


def test_what_optimize_wrote_is_checked_too(user: User, named: Path) -> None:
    assert user.run("udi", "profile", "-o", "p", "my/app:1", "--", "/bin/ls").returncode == 0
    done = user.run("udi", "optimize", "my/app:1", "p")
    assert done.returncode == 0, done.stderr
    optimized = Path(done.stdout.strip())
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 0 and done.stdout.count(": right, ") == 2
    flip(optimized, 2 * WINDOW)
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and done.stdout.count(": right, ") == 1
    # A pull brings all three anew.
    assert len(json.loads(user.run("udi", "inspect", "my/app:1").stdout)["windows"]) == 2


def test_the_list_itself(user: User, named: Path) -> None:
    at = used(named) + -used(named) % 4096
    flip(named, at + 24)
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and "its list of windows is damaged" in done.stdout
    done = user.run("udi", "export", "my/app:1", "x.sqfs")
    assert done.returncode == 125 and "its list of windows is damaged" in done.stderr
    flip(named, at + 24)
    flip(named, at)
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and "its list of windows is gone" in done.stdout
    flip(named, at)
    flip(named, 0)
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and "its first bytes are damaged" in done.stdout
    flip(named, 0)
    # Another list, right in itself: the facts know better.
    with named.open("r+b", buffering=0) as file:
        file.seek(100)
        file.write(b"changed on purpose")
        windows.append(file.fileno())
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and "another than the one that its facts name" in done.stdout


def test_files_with_and_without_a_list(user: User, named: Path, tmp_path: Path) -> None:
    path = user.home / "app.sqfs"
    assert user.run("udi", "export", "my/app:1", path).returncode == 0
    done = user.run("udi", "verify", path)
    assert done.returncode == 0 and done.stdout.startswith(f"{path}: right, "), done.stderr
    bare = user.home / "bare.sqfs"
    shutil.copy(path, bare)
    with bare.open("r+b") as file:
        file.truncate(used(path) + -used(path) % 4096)
    done = user.run("udi", "verify", bare, path)
    assert done.returncode == 125
    assert f"{bare}: it has no list of windows ({bare}): `udi import`" in done.stdout
    # It is the same image with its list and without.
    one, other = (user.run("udi", "import", x, "x") for x in (bare, path))
    assert one.returncode == 0 and one.stdout == other.stdout
    assert user.run("udi", "verify", "x").returncode == 0


def test_an_image_of_an_earlier_version(user: User, named: Path) -> None:
    facts = named.with_suffix(".json")
    known = json.loads(facts.read_text())
    del known["windows"]
    facts.write_text(json.dumps(known))
    with named.open("r+b") as file:
        file.truncate(used(named) + -used(named) % 4096)
    done = user.run("udi", "verify", "my/app:1")
    assert done.returncode == 125 and "it has no list of windows" in done.stdout
    assert "udi pull --force my/app:1 makes one" in done.stdout
    done = user.run("udi", "verify", "--all")
    assert done.returncode == 0 and "it has no list of windows" in done.stdout
    done = user.run("udi", "verify")
    assert done.returncode == 125 and "udi verify: which images?" in done.stderr


def test_removed_with_the_image(user: User, named: Path) -> None:
    assert user.run("udi", "rm", "my/app:1").returncode == 0
    assert list(named.parent.iterdir()) == []
