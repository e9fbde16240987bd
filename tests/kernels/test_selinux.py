"""SELinux in force, in a virtual machine: what runs, and how a refusal is named.

Linux 6.12 with a small policy (tests/programs/selinux.cil): a domain that may do all, and others
that lack one permission each of those that a start needs. Linux 6.1 knows no class user_namespace,
which came with 6.2. Then Debian's own policy, with its labels on the files: all that users of an
unconfined domain do, as users are on most machines with SELinux.
"""

import shutil
from pathlib import Path

import pytest

from tests.kernels.test_kernels import EIGHT
from tests.kit import vm
from tests.kit.places import PROGRAMS
from tests.kit.vm import Done, step

IMAGE = "/srv/box.sqfs"
BARE = "/home/u/bare.sqfs"
DEVICE = "system_u:object_r:fuse_device_t"
POLICY = """
    set -e
    secilc -c 33 -o /tmp/policy -f /dev/null /srv/selinux.cil
    mount -t selinuxfs s /sys/fs/selinux
    # All of it in one write(2).
    python3 -c 'open("/sys/fs/selinux/load", "wb", 0).write(open("/tmp/policy", "rb").read())'
    python3 -c 'import os; os.setxattr("/dev/fuse", "security.selinux", os.environb[b"DEVICE"])'
    echo 1 >/sys/fs/selinux/enforce
    cat /sys/fs/selinux/enforce /sys/fs/selinux/deny_unknown
"""
LABELLED = """
    set -e
    cp -a /srv/tree /home/u/tree
    mksquashfs /home/u/tree /home/u/bare.sqfs -quiet -no-progress -xattrs
"""
DEBIAN = """
    set -e
    mount -t selinuxfs s /sys/fs/selinux
    load_policy
    setfiles -F /etc/selinux/default/contexts/files/file_contexts \\
        /usr /etc /home /opt /var /srv /root /tmp /run /dev
    stat -c %C /usr/bin/mount /dev/fuse
"""
USER = "unconfined_u:unconfined_r:unconfined_t:s0"
AS_USER = """
    # No login brings the kernel's own domain to a user's, so it is entered while all is allowed.
    echo 0 >/sys/fs/selinux/enforce
    who=$1
    shift
    # Of a label that every user may look at.
    : >/home/u/go
    chcon ${who%%:*}:object_r:user_home_t:s0 /home/u/go
    (
        printf $who >/proc/self/attr/exec
        exec setpriv --reuid=1500 --regid=1500 --clear-groups env -i HOME=/home/u USER=u \\
            PATH=$PATH UDI_STORE=/home/u/store LANG=C.UTF-8 \\
            sh -c 'until [ -s /home/u/go ]; do sleep 0.1; done; exec "$@"' sh "$@"
    ) &
    until grep -q $who /proc/$!/attr/current && [ "$(stat -c %u /proc/$!)" = 1500 ]; do
        sleep 0.1
    done
    echo 1 >/sys/fs/selinux/enforce
    echo go >/home/u/go
    wait $!
"""
AS = 'printf system_u:system_r:$1 >/proc/self/attr/exec || exit 99; shift; exec "$@"'
LABELS = """
    cat /proc/self/attr/current; echo
    grep -c seclabel /proc/self/mountinfo
    echo new >/tmp/f; cat /tmp/f
"""
WRITE = """
    echo more >>/etc/note; cat /etc/note
    mkdir /new; cp /bin/busybox /new; /new/busybox echo copied
"""


def domain(name: str, kind: str, *argv: str) -> vm.Step:
    """Return a step that runs in a domain of the small policy."""
    return step(name, "sh", "-c", AS, "sh", kind, *argv)


def unconfined(name: str, *argv: str, who: str = USER) -> vm.Step:
    """Return a step that runs as a user of Debian's policy."""
    return step(name, "sh", "-c", AS_USER, "sh", who, *argv, user=False)


def steps() -> list[vm.Step]:
    """Return what is run under the small policy."""
    cache = "--volume=/home/u:/c:perNodeCache=size=1M"
    return [
        step("uname", "uname", "-r"),
        step("policy", "sh", "-c", POLICY, user=False, DEVICE=DEVICE),
        step("bare", "sh", "-c", LABELLED),
        domain("doctor", "free_t", "udi", "doctor"),
        domain("start", "free_t", "udi-run", IMAGE, "sh", "-c", LABELS),
        domain("foreign", "free_t", "udi-run", BARE, "id", "-u"),
        domain(
            "volume", "free_t", "udi-run", "--volume=/opt:/not/there:ro", BARE, "ls", "/not/there"
        ),
        domain("underlay", "free_t", "udi-run", "--layer=underlay", BARE, "id", "-u"),
        domain("directory", "free_t", "udi-run", "/home/u/tree", "id", "-u"),
        domain("writable", "free_t", "udi-run", "--writable", BARE, "sh", "-c", WRITE),
        domain("cache", "free_t", "udi-run", cache, BARE, "sh", "-c", "echo 1 >/c/f; cat /c/f"),
        domain("ranks", "free_t", "sh", "-c", EIGHT, "sh", IMAGE),
        domain("no namespaces", "no_namespaces_t", "udi-run", IMAGE, "true"),
        domain("doctor without namespaces", "no_namespaces_t", "udi", "doctor"),
        domain("no capabilities", "no_capabilities_t", "udi-run", IMAGE, "true"),
        domain("doctor without capabilities", "no_capabilities_t", "udi", "doctor"),
        domain("no fuse", "no_fuse_t", "udi-run", IMAGE, "true"),
        domain("doctor without fuse", "no_fuse_t", "udi", "doctor"),
        domain("no device", "no_device_t", "udi-run", IMAGE, "echo", "extracted"),
        domain("doctor without device", "no_device_t", "udi", "doctor"),
        domain("container", "container_t", "udi-run", IMAGE, "true"),
        step("left", "sh", "-c", "while pgrep -l ^udi-; do sleep 0.5; done", user=False),
        step(
            "log",
            "sh",
            "-c",
            "dmesg | grep -i -E 'selinux|avc' | grep denied | tail -n 60",
            user=False,
        ),
    ]


def debians_steps() -> list[vm.Step]:
    """Return what is run under Debian's policy."""
    cache = "--volume=/home/u:/c:perNodeCache=size=1M"
    return [
        step("bare", "sh", "-c", LABELLED),
        step("policy", "sh", "-c", DEBIAN, user=False, seconds=400),
        unconfined("doctor", "udi", "doctor"),
        unconfined("start", "udi-run", IMAGE, "sh", "-c", LABELS),
        unconfined("volume", "udi-run", "--volume=/opt:/not/there:ro", BARE, "ls", "/not/there"),
        unconfined("underlay", "udi-run", "--layer=underlay", BARE, "id", "-u"),
        unconfined("writable", "udi-run", "--writable", BARE, "sh", "-c", WRITE),
        unconfined("cache", "udi-run", cache, BARE, "sh", "-c", "echo 1 >/c/f; cat /c/f"),
        unconfined("ranks", "sh", "-c", EIGHT, "sh", IMAGE),
        step("log", "sh", "-c", "dmesg | grep 'avc:  denied' | grep permissive=0", user=False),
    ]


def boot(
    box: Path, work: Path, wanted: list[vm.Step], packages: tuple[str, ...], words: str
) -> dict[str, Done]:
    """Return what the steps did on Linux 6.12 with SELinux."""
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    for name in ("sh", "id", "cat", "ls", "cp", "mkdir", "grep", "sleep", "readlink"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc").mkdir()
    (tree / "etc/note").write_text("of the image\n")
    files = {
        IMAGE: box,
        "/srv/box.json": box.with_suffix(".json"),
        "/srv/tree": tree,
        "/srv/selinux.cil": PROGRAMS / "selinux.cil",
    }
    words = f"security=selinux selinux=1 {words}"
    target = work / "boot"
    done = vm.boot(
        "trixie", wanted, target, files, root="trixie", packages=packages, words=words, seconds=2400
    )
    for name, one in done.items():
        print(f"-- {name}: {one.status}\n{one.stdout}{one.stderr}")
    return done


@pytest.fixture(scope="module")
def guest(box: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Everything that was done under the small policy."""
    return boot(box, tmp_path_factory.mktemp("small"), steps(), ("secilc",), "")


@pytest.fixture(scope="module")
def debian(box: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Everything that was done under Debian's policy."""
    work = tmp_path_factory.mktemp("debian")
    return boot(box, work, debians_steps(), ("selinux-policy-default",), "enforcing=0")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.alike,
    pytest.mark.needs("qemu", "busybox", "mksquashfs"),
    pytest.mark.timeout(2700),
]


def test_what_runs_where_the_policy_allows_it(guest: dict[str, Done]) -> None:
    """Every way to lay out a container, of files with labels that the kernel makes up."""
    assert guest["policy"].stdout == "10", guest["policy"]
    assert guest["doctor"].status == 0, guest["doctor"].stdout
    assert "SELinux: in force; this is the domain free_t\n" in guest["doctor"].stdout
    label, mounts, new = guest["start"].stdout.replace("\0", "").split()
    assert (label, new) == ("system_u:system_r:free_t", "new") and int(mounts) > 0
    for name in ("foreign", "underlay", "directory"):
        assert guest[name] == Done(0, "1500\n", ""), name
    assert guest["volume"] == Done(0, "udi\n", "")
    assert guest["writable"] == Done(0, "of the image\nmore\ncopied\n", "")
    assert guest["cache"] == Done(0, "1\n", "")
    ranks = guest["ranks"].stdout.split()
    assert (len(ranks), len(set(ranks)), guest["ranks"].stderr) == (8, 1, "")
    assert guest["left"].status == 0, guest["left"]


@pytest.mark.parametrize(
    ("what", "why", "rule"),
    [
        (
            "namespaces",
            "unshare failed: Permission denied",
            "`allow {} self:user_namespace create;`",
        ),
        (
            "capabilities",
            "unshare failed: Operation not permitted",
            "`allow {} self:cap_userns sys_admin;`",
        ),
        (
            "fuse",
            "mount failed on /image: Permission denied",
            "of the class filesystem, dir or cap_userns",
        ),
    ],
)
def test_what_it_refuses_is_named(guest: dict[str, Done], what: str, why: str, rule: str) -> None:
    """By udi-run and `udi doctor`, with the domain, the rule and the place where denials are."""
    kind = f"no_{what}_t"
    hint = (
        f"SELinux is in force: the domain {kind} seems to lack a rule ({rule.format(kind)}); "
        "the administrator: `ausearch -m AVC -ts recent` shows what was denied\n"
    )
    refused = Done(125, "", f"udi-run: {why}\nudi-run: hint: {hint}")
    assert guest[f"no {what}"] == refused
    assert guest[f"doctor without {what}"].status == 1
    assert f"remedy: {hint}" in guest[f"doctor without {what}"].stdout


def test_a_device_that_it_refuses_is_named(guest: dict[str, Done]) -> None:
    """Its mode allows it; the image is extracted then."""
    assert guest["no device"].status == 0, guest["no device"]
    assert guest["no device"].stdout.endswith("extracted\n")
    said = guest["doctor without device"]
    assert said.status == 0, said.stdout
    assert "/dev/fuse: Permission denied: images are extracted into directories" in said.stdout
    assert (
        "remedy: SELinux is in force: the domain no_device_t seems to lack a rule "
        "(of the class chr_file); the administrator: `ausearch -m AVC -ts recent` shows"
    ) in said.stdout


def test_a_container_that_is_confined(guest: dict[str, Done]) -> None:
    """In one of docker's or podman's the remedy is theirs."""
    assert guest["container"].status == 125
    assert "hint: SELinux is in force" in guest["container"].stderr
    assert "; start the container with --security-opt" in guest["container"].stderr


def test_debians_policy(debian: dict[str, Done]) -> None:
    """All of it runs, and nothing at all was denied."""
    assert debian["policy"].status == 0, debian["policy"]
    assert "system_u:object_r:mount_exec_t:s0\n" in debian["policy"].stdout
    assert debian["doctor"].status == 0, debian["doctor"].stdout
    assert "SELinux: in force; this is the domain unconfined_t\n" in debian["doctor"].stdout
    label, mounts, new = debian["start"].stdout.replace("\0", "").split()
    assert (label, new) == (USER, "new") and int(mounts) > 0
    assert debian["volume"] == Done(0, "udi\n", "")
    assert debian["underlay"] == Done(0, "1500\n", "")
    assert debian["writable"] == Done(0, "of the image\nmore\ncopied\n", "")
    assert debian["cache"] == Done(0, "1\n", "")
    ranks = debian["ranks"].stdout.split()
    assert (len(ranks), len(set(ranks))) == (8, 1), debian["ranks"]
    assert debian["log"].stdout == ""
