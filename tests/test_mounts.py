"""Mounts inside: what is writable below what, and images whose standard places are links or files.

On each rung: our server, squashfuse_ll, a directory extracted from the store.
"""

import pytest

from tests import images
from tests.conftest import User

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")

RUNGS = ("udi", "squashfuse_ll", "directory")


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An OCI layout of busybox, as a reference."""
    folder = tmp_path_factory.mktemp("layout")
    images.busybox_layout(folder / "box")
    return f"oci:{folder}/box:latest"


def folders(user: User, *names: str) -> None:
    for name in names:
        (user.home / name).mkdir(parents=True, exist_ok=True)


# Read-only and writable


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("more", [(), ("--writable",)], ids=["ro-root", "writable"])
def test_what_is_mounted_below_run_is_as_it_was_asked(
    user: User, layout: str, rung: str, more: tuple[str, ...]
) -> None:
    folders(user, "a", "b", "c", "d")
    volumes = [
        f"--volume={user.home}/a:/run/data",
        f"--volume={user.home}/b:/run/user/1/deep:rw",
        f"--volume={user.home}/c:/run/closed:ro",
        f"--volume={user.home}/d:/run/cache:perNodeCache=size=1M",
    ]
    script = (
        "for d in data user/1/deep cache closed .; do touch /run/$d/x 2>/dev/null && echo $d; done"
    )
    argv = ["udi-run", f"--fuse={rung}", *more, *volumes, layout, "/bin/sh", "-c", script]
    done = user.run(*argv)
    assert done.stdout.split() == ["data", "user/1/deep", "cache"], done.stderr
    assert (user.home / "a/x").exists() and (user.home / "b/x").exists()


@pytest.mark.parametrize("rung", RUNGS)
def test_a_volume_in_the_place_of_run_stays_writable(user: User, layout: str, rung: str) -> None:
    folders(user, "a")
    argv = ["udi-run", f"--fuse={rung}", f"--volume={user.home}/a:/run", layout]
    assert user.run(*argv, "/bin/touch", "/run/x").returncode == 0
    assert (user.home / "a/x").exists()


def test_a_modules_writable_bind_below_its_folder(user: User, layout: str) -> None:
    folders(user, "a", "b", "site/modules.d")
    (user.home / "site/modules.d/m.toml").write_text(
        f'[[bind]]\nsource = "{user.home}/a"\ndestination = "/opt/udiImage/modules/m/rw"\n'
        f'options = ["rw"]\n[[bind]]\nsource = "{user.home}/b"\n'
        'destination = "/opt/udiImage/modules/m/ro"\noptions = ["ro"]\n'
    )
    script = "cd /opt/udiImage/modules/m; touch rw/x && echo rw; touch ro/x ./x ../x"
    env = {"UDI_SITE_DIR": str(user.home / "site")}
    done = user.run("udi-run", "--module=m", layout, "/bin/sh", "-c", script, env=env)
    assert done.stdout == "rw\n" and done.stderr.count("Read-only file system") == 3, done.stderr


@pytest.mark.parametrize("rung", RUNGS)
def test_a_writable_volume_inside_a_read_only_one(user: User, layout: str, rung: str) -> None:
    folders(user, "outer/in/deep", "inner", "lowest")
    volumes = [
        f"--volume={user.home}/outer:/w:ro",
        f"--volume={user.home}/inner:/w/in",
        f"--volume={user.home}/lowest:/w/in/deep:ro",
    ]
    folders(user, "inner/deep")
    script = "for d in /w /w/in /w/in/deep; do touch $d/x 2>/dev/null && echo $d; done; true"
    argv = ["udi-run", f"--fuse={rung}", *volumes, layout, "/bin/sh", "-c", script]
    assert user.run(*argv).stdout == "/w/in\n"
