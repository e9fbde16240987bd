"""Ubuntu 24.04 in a virtual machine, its own kernels, AppArmor and profiles as it comes.

There an ordinary program gets no capability in a user namespace that it makes, by a setting that
only Ubuntu's kernels have, unless its AppArmor profile allows it. Linux 6.8, of the release, and
the newest of its updates. contrib/apparmor is what a site installs.
"""

import shutil
from pathlib import Path

import pytest

from tests.kernels.test_kernels import EIGHT
from tests.kit import vm
from tests.kit.places import TREE
from tests.kit.vm import Done, step

KERNELS = ("noble", "noble-updates")
IMAGE = "/srv/box.sqfs"
BARE = "/home/u/bare.sqfs"
SETTING = "kernel.apparmor_restrict_unprivileged_userns"
HERS = "/home/u/udi/bin"
"""Where a user has put the product for herself."""
IN_C = "/opt/site/1.0/bin"
"""An installation with udi-run in C, whose name for the Python one is udi-run-python."""

AS_IT_COMES = """
    set -e
    mount -t securityfs s /sys/kernel/security
    for file in /etc/sysctl.d/*apparmor* /usr/lib/sysctl.d/*apparmor*; do
        if [ -e $file ]; then sysctl -q -p $file; fi
    done
    # As apparmor.service does it, without its cache.
    apparmor_parser -r -T /etc/apparmor.d
    cat /etc/os-release /proc/sys/kernel/apparmor_restrict_unprivileged_userns
    wc -l </sys/kernel/security/apparmor/profiles
"""
WITHOUT_ITS_PROFILE = "apparmor_parser -R /etc/apparmor.d/unprivileged_userns"
PROFILE = """
    install -m 644 /srv/udi-run.apparmor /etc/apparmor.d/udi-run
    apparmor_parser -r /etc/apparmor.d/udi-run /etc/apparmor.d/unprivileged_userns
"""
SELF = "cat /proc/self/attr/apparmor/current"
WRITE = "echo new >/etc/note; mkdir /new; cat /etc/note"
LOG = "dmesg | grep 'apparmor=.DENIED' | grep -v unprivileged_userns | tail -n 20"


def steps() -> list[vm.Step]:
    """Return what is run: as it comes, with the profile of contrib/, without the setting."""
    cache = "--volume=/home/u:/c:perNodeCache=size=1M"
    return [
        step("uname", "uname", "-r"),
        step("bare", "mksquashfs", "/srv/tree", BARE, "-quiet", "-no-progress"),
        step("hers", "cp", "-a", "/opt/udi", "/home/u/udi"),
        step("comes", "sh", "-c", AS_IT_COMES, user=False, seconds=900),
        step("refused", "udi-run", IMAGE, "true"),
        step("doctor refused", "udi", "doctor"),
        step("no profile", "sh", "-c", WITHOUT_ITS_PROFILE, user=False),
        step("refused without it", "udi-run", IMAGE, "true"),
        step("doctor refused without it", "udi", "doctor"),
        step("profile", "sh", "-c", PROFILE, user=False),
        step("doctor", "udi", "doctor"),
        step("start", "udi-run", IMAGE, "sh", "-c", SELF),
        step("volume", "udi-run", "--volume=/opt:/not/there:ro", BARE, "ls", "/not/there"),
        step("underlay", "udi-run", "--layer=underlay", BARE, "id", "-u"),
        step("directory", "udi-run", "/srv/tree", "id", "-u"),
        step("writable", "udi-run", "--writable", BARE, "sh", "-c", WRITE),
        step("cache", "udi-run", cache, BARE, "sh", "-c", "echo 1 >/c/f; cat /c/f"),
        step("ranks", "sh", "-c", EIGHT, "sh", IMAGE),
        step("in C", f"{IN_C}/udi-run", IMAGE, "sh", "-c", SELF),
        step("ranks in C", "sh", "-c", f"PATH={IN_C}:$PATH; {EIGHT}", "sh", IMAGE),
        step("her own", f"{HERS}/udi-run", IMAGE, "true"),
        step("her doctor", f"{HERS}/udi", "doctor"),
        step("log", "sh", "-c", LOG, user=False),
        step("setting", "sysctl", "-qw", f"{SETTING}=0", user=False),
        step("her own without it", f"{HERS}/udi-run", IMAGE, "sh", "-c", SELF),
        step("left", "sh", "-c", "while pgrep -l ^udi-; do sleep 0.5; done", user=False),
    ]


@pytest.fixture(scope="module", params=KERNELS)
def guest(
    request: pytest.FixtureRequest, box: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Done]:
    """Everything that the steps did on one of Ubuntu's kernels."""
    work = tmp_path_factory.mktemp("ubuntu")
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    for name in ("sh", "id", "cat", "ls", "mkdir"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc").mkdir()
    in_c = work / "bin"
    in_c.mkdir()
    shutil.copy(TREE / "build/joiner/udi-run", in_c / "udi-run")
    (in_c / "udi-run-python").symlink_to("/opt/udi/bin/udi-run")
    files = {
        IMAGE: box,
        "/srv/box.json": box.with_suffix(".json"),
        "/srv/tree": tree,
        "/srv/udi-run.apparmor": TREE / "contrib/apparmor/udi-run",
        IN_C: in_c,
    }
    target = work / "boot"
    done = vm.boot(
        request.param,
        steps(),
        target,
        files,
        root="noble-updates",
        packages=("apparmor",),
        words="security=apparmor apparmor=1",
        seconds=2400,
    )
    for name, one in done.items():
        print(f"-- {name}: {one.status}\n{one.stdout}{one.stderr}")
    return done


pytestmark = [
    pytest.mark.slow,
    pytest.mark.alike,
    pytest.mark.needs("qemu", "busybox", "mksquashfs", "joiner"),
    pytest.mark.timeout(3000),
]


def test_it_is_ubuntu_as_it_comes(guest: dict[str, Done]) -> None:
    assert guest["comes"].status == 0, guest["comes"]
    words = guest["comes"].stdout
    assert "\nVERSION_CODENAME=noble\n" in words
    setting, profiles = words.split()[-2:]
    assert setting == "1" and int(profiles) > 20


def test_what_it_refuses_is_named(guest: dict[str, Done]) -> None:
    """By the setting: with the profile into which Ubuntu puts such programs, without it, and for a
    user's own installation, for which the profile of contrib/ is not."""
    hint = (
        f"{SETTING} is 1: only programs with an AppArmor profile may use one (Ubuntu 23.10 and "
        "later); the administrator: install contrib/apparmor/udi-run as /etc/apparmor.d/udi-run "
        "(it is for the paths in it, none of them in a home directory), or "
        f"sysctl -w {SETTING}=0\n"
    )
    for run, doctor in (
        ("refused", "doctor refused"),
        ("refused without it", "doctor refused without it"),
        ("her own", "her doctor"),
    ):
        assert guest[run].status == 125
        assert "failed" in guest[run].stderr and "Permission denied" in guest[run].stderr
        assert guest[run].stderr.endswith(f"\nudi-run: hint: {hint}"), guest[run]
        assert guest[doctor].status == 1
        assert f"remedy: {hint}" in guest[doctor].stdout
    assert guest["her own without it"] == Done(0, "unconfined\n", "")


def test_all_runs_with_the_profile_of_contrib(guest: dict[str, Done]) -> None:
    """By the program in Python and the one in C; AppArmor denies nothing."""
    assert guest["profile"] == Done(0, "", "")
    assert guest["doctor"].status == 0, guest["doctor"].stdout
    assert f"{SETTING}: 1, and this program has the profile udi-run\n" in guest["doctor"].stdout
    for name in ("start", "in C"):
        assert guest[name] == Done(0, "udi-run (unconfined)\n", "")
    assert guest["volume"] == Done(0, "site\nudi\n", "")
    for name in ("underlay", "directory"):
        assert guest[name] == Done(0, "1500\n", "")
    assert guest["writable"] == Done(0, "new\n", "")
    assert guest["cache"] == Done(0, "1\n", "")
    for name in ("ranks", "ranks in C"):
        ranks = guest[name].stdout.split()
        assert (len(ranks), len(set(ranks)), guest[name].stderr) == (8, 1, "")
    assert guest["log"].stdout == ""
    assert guest["left"].status == 0, guest["left"]
