"""The product on other kernels, in a virtual machine: what runs, and what is refused."""

import shutil
from pathlib import Path

import pytest

from tests.kit import vm
from tests.kit.vm import Done, step

IMAGE = "/srv/box.sqfs"
OLD = ("bullseye",)
"""Linux 5.10: no overlay for users. It stands for Red Hat 8's 4.18 too, which Debian never had."""
NEWER = ("bookworm", "trixie", "sid")

EIGHT = """
    udi-run --share=b $1 sh -c 'echo up >/tmp/up; until [ -e /tmp/go ]; do sleep 0.1; done' &
    until [ -e /tmp/up ]; do sleep 0.1; done
    for rank in 1 2 3 4 5 6 7 8; do
        udi-run --share=b $1 readlink /proc/self/ns/user >/tmp/rank$rank &
        ranks="$ranks $!"
    done
    wait $ranks
    touch /tmp/go
    wait
    cat /tmp/rank?
    rm /tmp/rank? /tmp/up /tmp/go
"""
"""Eight ranks that join a container, while it lives, and say which user namespace they are in."""


def steps() -> list[vm.Step]:
    """Return what is run on every kernel; `box` is an image of udi pull."""
    touch = ("touch", "/made", "/etc/made", "/bin/made")
    nested = "grep ' /bin/o ' /proc/self/mountinfo | cut -d ' ' -f 6 | cut -d , -f 1-3"
    cache = "--volume=/home/u:/c:perNodeCache=size=1M"
    return [
        step("uname", "uname", "-r"),
        step("doctor", "udi", "doctor"),
        step("start", "udi-run", IMAGE, "id", "-u"),
        step("volume", "udi-run", "--volume=/opt:/tmp/o", IMAGE, "ls", "/tmp/o"),
        step("ranks", "sh", "-c", EIGHT, "sh", IMAGE),
        step("ps", "udi", "ps"),
        step("writable", "udi-run", "--writable", IMAGE, "sh", "-c", "echo made >/new; cat /new"),
        step("mount point", "udi-run", "--volume=/opt:/not/there", IMAGE, "ls", "/not/there"),
        step("bare", "mksquashfs", "/srv/tree", "/home/u/bare.sqfs", "-quiet", "-no-progress"),
        step("foreign", "udi-run", "/home/u/bare.sqfs", "id", "-u"),
        step("explain", "udi-run", "--explain", "/home/u/bare.sqfs"),
        step("sealed", "udi-run", "--volume=/opt:/bin/x/y", "/home/u/bare.sqfs", *touch),
        step(
            "nested", "udi-run", "--volume=/opt:/bin/o:ro", "/home/u/bare.sqfs", "sh", "-c", nested
        ),
        step("cache", "udi-run", cache, "/home/u/bare.sqfs", "sh", "-c", "echo 1 >/c/f; cat /c/f"),
        step("without", "chmod", "0", "/usr/bin/fuse-overlayfs", user=False),
        step("refused", "udi-run", "--writable", "--layer=underlay", IMAGE, "true"),
        step("hide", "mount", "-o", "remount,hidepid=2", "/proc", user=False),
        step("hidden ranks", "sh", "-c", EIGHT, "sh", IMAGE),
        # What is outside a container ends soon after it.
        step("left", "sh", "-c", "while pgrep -l ^udi-; do sleep 0.5; done", user=False),
    ]


@pytest.fixture(scope="module")
def guest(
    request: pytest.FixtureRequest, box: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Done]:
    """Everything that the steps did on the kernel of the suite in `request.param`."""
    work = tmp_path_factory.mktemp("vm")
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    for name in ("sh", "id", "touch", "grep", "cut", "cat", "ls"):
        (tree / "bin" / name).symlink_to("busybox")
    files = {IMAGE: box, "/srv/box.json": box.with_suffix(".json"), "/srv/tree": tree}
    return vm.boot(request.param, steps(), work / "boot", files)


pytestmark = [
    pytest.mark.alike,
    pytest.mark.needs("qemu", "busybox", "mksquashfs"),
    # 48 s on two free cores; a boot has its own limit.
    pytest.mark.timeout(1500),
]
slow = [pytest.param(suite, marks=pytest.mark.slow) for suite in NEWER]


@pytest.mark.parametrize("guest", [*OLD, *slow], indirect=True)
def test_what_runs_on_every_kernel(guest: dict[str, Done]) -> None:
    assert guest["start"] == Done(0, "1500\n", "")
    assert guest["volume"] == Done(0, "udi\n", "")
    for name in ("ranks", "hidden ranks"):
        assert guest[name].stderr == ""
        assert len(guest[name].stdout.split()) == 8
        assert len(set(guest[name].stdout.split())) == 1
    assert guest["left"].status == 0, guest["left"]
    assert guest["doctor"].status == 0, guest["doctor"].stdout


@pytest.mark.parametrize("guest", OLD, indirect=True)
def test_what_an_old_kernel_does_without_overlay(guest: dict[str, Done]) -> None:
    """What an image lacks is made in covers; --writable is another program's, or refused."""
    assert guest["uname"].stdout.startswith("5.10.")
    assert "overlay in a user namespace" in guest["doctor"].stdout
    assert "this kernel lets no ordinary user mount an overlay" in guest["explain"].stdout
    assert guest["refused"].status == 125
    assert "fuse-overlayfs is not installed" in guest["refused"].stderr


@pytest.mark.parametrize("guest", [*OLD, *slow], indirect=True)
def test_what_a_layer_is_for(guest: dict[str, Done]) -> None:
    """By overlay, or without: a foreign image, new mount points, --writable."""
    assert guest["cache"] == Done(0, "1\n", "")
    assert guest["sealed"].status == 1
    assert guest["sealed"].stderr.count("Read-only file system") == 3
    assert guest["nested"] == Done(0, "ro,nosuid,nodev\n", "")
    assert guest["writable"] == Done(0, "made\n", "")
    assert guest["mount point"] == Done(0, "udi\n", "")
    assert guest["foreign"] == Done(0, "1500\n", "")
