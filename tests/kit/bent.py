"""Root directories with links or files in the place of standard directories, and checks of them."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from rootless_udi.plan.mountpoints import DIRECTORIES, FILES, FOLLOWED
from tests.conftest import User
from tests.kit import images

POINTS = (*DIRECTORIES, *FILES, "/etc/mtab")

WAYS = (
    "relative",
    "absolute",
    "chain",
    "dangling",
    "circle",
    "escape",
    "tmp",
    "var-tmp",
    "root",
    "proc",
    "other",
    "missing",
)
"""What is in the place of a mount point. The first ten are links: inside the image by a relative or
an absolute path, through another link, to nothing, to itself, above the root directory, to /tmp, to
/var/tmp, to the root directory, into /proc. `other` is a file for a directory and the other way
round, `missing` is nothing."""


def tree(path: Path, bends: "dict[str, str]") -> Path:
    """Make a root directory of busybox at `path` with each of `bends` (point -> way)."""
    for name in ("bin", "usr", "real", "deep/er"):
        (path / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", path / "bin/busybox")
    for name in ("sh", "cat", "ls", "touch", "stat", "grep", "readlink", "id", "head"):
        (path / "bin" / name).symlink_to("busybox")
    for point in POINTS:
        _bend(path, point, bends.get(point, ""))
    return path


def _bend(path: Path, point: str, way: str) -> None:
    place = path / point[1:]
    if way == "missing" or place.parent.is_symlink() or not place.parent.is_dir():
        return
    name = point.rpartition("/")[2]
    is_directory = point in DIRECTORIES
    if way in ("", "other"):
        if is_directory is (way == ""):
            place.mkdir(exist_ok=True)
            if way == "other":
                (place / "inside").mkdir()
        else:
            place.touch()
        return
    real = path / "real" / name
    real.mkdir(exist_ok=True) if is_directory else real.touch()
    if point in FOLLOWED:
        (real / "mine").touch()
    up = "../" * (point.count("/") - 1)
    if way == "chain":
        (path / f"deep/er/{name}").symlink_to(f"../../real/{name}")
    place.symlink_to(
        {
            "relative": f"{up}real/{name}",
            "absolute": f"/real/{name}",
            "chain": f"/deep/er/{name}",
            "dangling": f"{up}nothing/at/all",
            "circle": name,
            "escape": "../../../../../../../etc" if is_directory else "../../../../etc/shadow",
            "tmp": "/tmp" if is_directory else "/tmp/udi-bent",
            "var-tmp": f"{up}var/tmp",
            "root": "/",
            "proc": "/proc/1/root",
        }[way]
    )


SCRIPT = """
PATH=/bin
for d in /dev /etc /opt /opt/udiImage /proc /run /sys /tmp /var /var/tmp; do
    [ -d $d ] || echo "$d is no directory"
done
[ -c /dev/null ] || echo "/dev is not the host's"
[ -d /proc/self ] || echo "/proc is not the host's"
[ -d /sys/kernel ] || echo "/sys is not the host's"
[ -e /tmp/$1 ] || echo "/tmp is not the host's"
[ -e /var/tmp/$2 ] || echo "/var/tmp is not the host's"
[ -z "$(ls -A /run)" ] || echo "/run is not fresh"
touch /run/x 2>/dev/null && echo "/run is writable"
[ "$(id -un)" = $3 ] || echo "no accounts"
[ "$(readlink /etc/mtab)" = /proc/mounts ] || echo "/etc/mtab is $(readlink /etc/mtab)"
for f in passwd group hosts nsswitch.conf host.conf shadow; do
    [ -f /etc/$f ] || echo "/etc/$f is no file"
done
for d in $4; do [ -e $d/mine ] || echo "what the image has in $d is not there"; done
"""


def faults(user: User, marks: "tuple[Path, Path]", kept: Iterable[str], *argv: object) -> list[str]:
    """Run an image and return what is wrong inside; `marks` are files in /tmp and /var/tmp."""
    words = (marks[0].name, marks[1].name, user.name, " ".join(kept))
    places = [f"{mark.parent}/{name}" for mark in marks for name in ("udi-bent", "tmp", "udiImage")]
    free = [path for path in places if not os.path.lexists(path)]
    done = user.run("udi-run", *argv, "/bin/sh", "-c", SCRIPT, "sh", *words)
    made = [path for path in free if os.path.lexists(path)]
    said = [done.stderr] if done.returncode or done.stderr else []
    return done.stdout.splitlines() + made + said


def packed(user: User, folder: Path) -> Path:
    """Return `folder` as a squashfs file that is not of `udi pull`."""
    image = folder.with_suffix(".sqfs")
    argv = ["mksquashfs", str(folder), str(image), "-quiet", "-no-progress", "-all-root"]
    subprocess.run(argv, check=True, capture_output=True)
    return image


def layout(path: Path, folder: Path) -> str:
    """Write `folder` as an OCI image layout of one layer at `path`; return its reference."""
    data = subprocess.run(["tar", "-C", folder, "-cf", "-", "."], check=True, capture_output=True)
    images.Layout(path).image("latest", [data.stdout], {"Env": ["PATH=/bin"]})
    return f"oci:{path}:latest"
