"""udi import of an enroot image: variables, entrypoint and folder of the image it was made of.

enroot itself can't be had here; the files are as its image-format document has them.
"""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

RC = """mkdir -p "/srv" 2> /dev/null
cd "/srv" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/bin/echo' 'entry' "$@"
else
    exec '/bin/echo' 'entry' 'cmd'
fi
"""
ENVIRONMENT = "PATH=/bin\nGREETING=from the image=yes\n# no variable\nnothing\n=x\n"


def sqsh(folder: Path, rc: str | bytes | None, environment: bytes) -> Path:
    """Return an image's file as `enroot import` makes it."""
    entries = [*images.busybox_entries(), ("srv", None, {})]
    if isinstance(rc, bytes):
        entries.append(("etc/rc", rc, {"mode": 0o755}))
    elif rc is not None:
        entries.append(("etc/rc", rc, {}))
    entries.append(("etc/environment", environment, {}))
    target = folder / "app.sqsh"
    argv = ["mksquashfs", "-", str(target), "-tar", "-quiet", "-no-progress", "-comp", "gzip"]
    subprocess.run(argv, input=images.tar(entries), check=True, capture_output=True)
    return target


def test_an_image(user: User) -> None:
    path = sqsh(user.home, RC.encode(), ENVIRONMENT.encode())
    done = user.run("udi", "import", path, "my/app:1")
    assert done.returncode == 0, done.stderr
    found = user.run("udi-run", "my/app:1", "sh", "-c", 'echo "$GREETING $PATH"')
    assert found.stdout == "from the image=yes /bin\n", found.stderr
    assert user.run("udi-run", "--entrypoint", "my/app:1").stdout == "entry cmd\n"
    assert user.run("udi-run", "--entrypoint", "my/app:1", "a", "b c").stdout == "entry a b c\n"
    assert user.run("udi-run", "--workdir", "--image=my/app:1", "pwd").stdout == "/srv\n"


@pytest.mark.parametrize(
    ("rc", "environment"),
    [
        (None, b"A=1\n"),
        (b"#!/bin/sh\n# of an init system\n", b"A=1\n"),
        ("/nowhere", b"A=1\n"),
        ("rc", b"A=1\n"),
    ],
    ids=["none", "another's", "dangling", "circle"],
)
def test_what_is_no_enroot_image(user: User, rc: str | bytes | None, environment: bytes) -> None:
    path = sqsh(user.home, rc, environment)
    assert user.run("udi", "import", path, "my/app:1").returncode == 0
    done = user.run("udi-run", "my/app:1", "sh", "-c", "echo ${A-unset}")
    assert done.stdout == "unset\n", done.stderr
    done = user.run("udi-run", "--entrypoint", "--image=my/app:1")
    assert "the image has no ENTRYPOINT" in done.stderr


def test_what_is_no_text(user: User) -> None:
    """Bytes that are no UTF-8, a NUL, and more than the bound: imported, and one line for each."""
    path = sqsh(user.home, RC.encode(), b"A=\xff\nB=1\0 2\n" + b"C=" + b"x" * 200_000)
    assert user.run("udi", "import", path, "my/app:1").returncode == 0
    done = user.run("udi-run", "my/app:1", "sh", "-c", "echo $B ${#C}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 2 655")
