"""What only a machine of one's own can have: NFS, quotas, cgroups that kill, security modules.

One boot of Linux 6.1 and one of 6.12, with the packages of Debian 13. README's table of fallbacks,
row by row, and where it is run:

    a decompressor of the image        here, "without zstd"; tests/fuse/test_choice.py
    /dev/fuse                          here, "without fuse"
    overlayfs for users                test_kernels.py (5.10), tests/launch/test_underlay.py
    tar2sqfs and mksquashfs            here, "without writers"
    isal, zstd                         every step here: Debian's python3-minimal has neither
    a newer system call                test_kernels.py (5.10), tests/launch/test_refused_calls.py
    user namespaces                    here, "without namespaces", "without clone", "apparmor
                                       refuses"; test_selinux.py
"""

import hashlib
import os
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit import fuseimages, images, vm
from tests.kit.places import TREE
from tests.kit.vm import Done, step

SUITES = ("bookworm", "trixie")
PACKAGES = ("nfs-kernel-server", "nfs-common", "quota", "e2fsprogs", "apparmor", "iproute2")
MODULES = (
    *("quota_tree", "quota_v2", "veth", "dns_resolver", "netfs", "fscache", "sunrpc", "grace"),
    *("lockd", "nfs_acl", "auth_rpcgss", "nfs", "nfsv4", "nfsd"),
)
TRIO = ("trio", "attr", "attrs", "sortedcontainers", "idna", "outcome", "sniffio")
LAYOUT = "oci:/srv/layout:latest"
SERVE = """
    ip link set lo up
    cat >/tmp/serve.py <<END
import sys
sys.path.insert(0, "/srv")
from rangeserver import RangeServer
class Told(list):
    def append(self, one):
        print(*one, flush=True)
with open("/srv/app.sqfs", "rb") as file:
    server = RangeServer(file.read())
server.asked = Told()
print(server.url, flush=True)
server.serve_forever()
END
    setsid python3 /tmp/serve.py >/tmp/asked 2>/tmp/asked.err </dev/null &
    until [ -s /tmp/asked ]; do sleep 0.5; done
    head -n 1 /tmp/asked
"""
"""A web server with ranges; /tmp/asked has its URL, and then what it is asked for."""
LAZY = """
    export UDI_STORE=$1
    url=$(head -n 1 /tmp/asked)
    udi-run --pull=lazy $url md5sum /noise
    udi fetch -q $url
    echo $?
"""
LAZY_TWO = f"""
    ( sh -c '{LAZY}' sh /mnt/a/u/lazy >/tmp/la 2>/tmp/la.err ) &
    ( sh -c '{LAZY}' sh /mnt/b/u/lazy >/tmp/lb 2>/tmp/lb.err ) &
    wait
    cat /tmp/la /tmp/lb; cat /tmp/la.err /tmp/lb.err >&2
    find /srv/export/u/lazy -type f | sed 's/.*lazy//' | sort
    cmp /srv/export/u/lazy/images/*.sqfs /srv/app.sqfs && echo same
    UDI_STORE=/mnt/b/u/lazy udi-run --pull=never $(head -n 1 /tmp/asked) md5sum /noise
"""

QUOTA = """
    truncate -s 300M /srv/disk
    mke2fs -q -t ext4 -O quota -E quotatype=usrquota /srv/disk
    mkdir -p /srv/export
    mount -o loop,usrquota /srv/disk /srv/export
    mkdir -p /srv/export/full /srv/export/u
    chown 1500:1500 /srv/export/full /srv/export/u
"""
LIMIT = "setquota -u u 0 $1 0 0 /srv/export; quota -u -w u"
FILL = """
    dd if=/dev/zero of=/srv/export/full/all bs=64k
    dd if=/dev/zero of=/srv/export/full/all oflag=append conv=notrunc bs=1k
    df /srv/export
"""

NFS = """
    ip link set lo up
    ip netns add b
    ip link add va type veth peer name vb netns b
    ip addr add 10.9.0.1/24 dev va; ip link set va up
    ip -n b addr add 10.9.0.2/24 dev vb; ip -n b link set vb up; ip -n b link set lo up
    mkdir -p /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery /mnt/a /mnt/b /mnt/soft
    mount -t nfsd nfsd /proc/fs/nfsd
    echo '/srv/export *(rw,no_subtree_check,no_root_squash,fsid=0,insecure)' >/etc/exports
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    exportfs -ra
    rpc.mountd -N 3
    rpc.nfsd -N 3 4
    cat /proc/fs/nfsd/threads
"""
MOUNT = """
    mount -t nfs4 -o vers=4.2 127.0.0.1:/ /mnt/a
    # Another machine: another name, another address. The mount belongs to the network that it is
    # made in.
    export mount="mount -t nfs4 -o vers=4.2 10.9.0.1:/ /mnt/b"
    unshare --uts sh -c 'hostname b; exec nsenter --net=/run/netns/b $mount'
    grep -c ' nfs4 ' /proc/mounts
"""
TWO = """
    ( UDI_STORE=/mnt/a/u/store udi pull -q $1 >/tmp/a 2>/tmp/a.err; echo $? >>/tmp/a ) &
    ( UDI_STORE=/mnt/b/u/store udi pull -q $1 >/tmp/b 2>/tmp/b.err; echo $? >>/tmp/b ) &
    wait
    cat /tmp/a /tmp/b; cat /tmp/a.err /tmp/b.err >&2
    find /srv/export/u/store -type f | sed 's/.*store//' | sort
"""
STOPPED = """
    cd /
    rpc.nfsd 0
    # Names that are in no cache: the start must ask the server.
    echo 2 >/proc/sys/vm/drop_caches
"""
KILLED = """
    export UDI_STORE=/mnt/a/u/store HOME=/mnt/a/u
    udi-run $1 true & one=$!
    udi images >/tmp/list 2>&1 & other=$!
    sleep 5
    kill -0 $one && echo waits
    kill -9 $one $other
    wait $one; echo $?
    wait $other; echo $?
"""
SOFT = "mount -t nfs4 -o vers=4.2,soft,timeo=20,retrans=1,lookupcache=none 127.0.0.1:/ /mnt/soft"
CGROUP = """
    set -e
    mkdir -p /sys/fs/cgroup; cd /sys/fs/cgroup
    # Version 1, where the kernel still has it: Debian's 6.12 has not.
    if mount -t cgroup -o memory cgroup . 2>/dev/null; then
        cd /sys/fs/cgroup; mkdir job; echo 150M >job/memory.limit_in_bytes; echo 1
    else
        mount -t cgroup2 cgroup2 .; cd /sys/fs/cgroup
        echo +memory >cgroup.subtree_control
        mkdir job; echo 150M >job/memory.max; chmod 666 cgroup.procs; echo 2
    fi
    chown -R 1500 /sys/fs/cgroup/job
"""
EATS = """
    echo $$ >$1/cgroup.procs || exit 99
    script='echo before; head -c 400000000 /dev/zero | tail -c 300000000 | wc -c; echo after $?'
    udi-run $2 sh -c "$script"
    echo status $?
"""
ALONE = """
    echo $$ >$1/cgroup.procs || exit 99
    udi-run $2 tail -c 300000000 /dev/zero
    echo status $?
"""
NO_ZSTD = """
    set -e
    # Another's squashfuse_ll, as Spack builds it, brings its own.
    mkdir /opt/lib
    mv /usr/lib/x86_64-linux-gnu/libzstd.so.1* /opt/lib
    printf '%s\n' '#!/bin/sh' 'LD_LIBRARY_PATH=/opt/lib exec /usr/bin/squashfuse_ll "$@"' \\
        >/usr/local/bin/squashfuse_ll
    chmod 755 /usr/local/bin/squashfuse_ll
"""
WITHOUT_ZSTD = """
    export PATH=/usr/local/bin:$PATH
    udi-run --explain $1 | grep -o 'no decompressor for zstd'
    udi-run $1 echo served
"""
ZSTD = "mv /opt/lib/* /usr/lib/x86_64-linux-gnu"
DENIES = """
abi <abi/4.0>,
profile udi-denied /opt/udi/bin/{udi-run,udi} {
  allow all,
  deny %s,
}
"""
APPARMOR = """
    mount -t securityfs s /sys/kernel/security
    cat /sys/module/apparmor/parameters/enabled
    echo "$1" >/tmp/denied; apparmor_parser -r /tmp/denied
"""
INSTEAD = 'echo "$1" >/tmp/denied; apparmor_parser -r /tmp/denied'
PROFILE = "apparmor_parser -R /tmp/denied && apparmor_parser -r /etc/apparmor.d/udi-run"
GONE = "for n in 1 2 3 4 5 6 7 8 9 10; do pgrep -l '^udi-' || exit 0; sleep 1; done; exit 1"


def steps() -> list[vm.Step]:
    """Return what is run; IMAGE is the digest's name in the store."""

    def shell(name: str, text: str, *words: str, user: bool = True, seconds: int = 120) -> vm.Step:
        return step(name, "sh", "-c", text, "sh", *words, user=user, seconds=seconds)

    image = LAYOUT
    return [
        step("uname", "uname", "-r"),
        step("pull", "udi", "pull", "-q", image, seconds=200),
        step("start", "udi-run", image, "echo", "well"),
        step("doctor", "udi", "doctor"),
        shell("serve", SERVE, user=False),
        # ext4 with quotas
        shell("quota", "set -e;" + QUOTA, user=False),
        shell("less", LIMIT, "3000", user=False),
        shell("lazy over", LAZY, "/srv/export/u/lazy-over", seconds=300),
        shell("lazy lift", LIMIT, "0", user=False),
        shell("lazy whole", LAZY, "/srv/export/u/lazy-over", seconds=300),
        shell("lazy gone", "rm -r /srv/export/u/lazy-over"),
        shell("limit", LIMIT, "600", user=False),
        shell("lazy none", LAZY, "/srv/export/u/lazy-none", seconds=300),
        shell("lazy none gone", "rm -r /srv/export/u/lazy-none"),
        step("pull over", "udi", "pull", "-q", image, UDI_STORE="/srv/export/u/over", seconds=200),
        shell("left over", "find /srv/export/u/over -type f -size +0"),
        shell("fill", FILL),
        step("state over", "udi-run", image, "echo", "well", XDG_RUNTIME_DIR="/srv/export/full"),
        step(
            *("ranks over", "udi-run", "--share=job", image, "true"),
            XDG_RUNTIME_DIR="/srv/export/full",
        ),
        step("export over", "udi", "export", image, "/srv/export/full/one.sqfs"),
        shell("lift", "rm /srv/export/full/all; " + LIMIT, "0", user=False),
        # NFS
        shell("nfs", NFS, user=False),
        shell("mounts", MOUNT, user=False),
        shell("two", TWO, image, seconds=300),
        shell("asked before", "wc -l </tmp/asked"),
        shell("lazy two", LAZY_TWO, seconds=400),
        shell("asked", "cat /tmp/asked"),
        step("from b", "udi-run", image, "echo", "b", UDI_STORE="/mnt/b/u/store", HOME="/mnt/b/u"),
        shell("cwd", "cd /mnt/a/u; udi-run $1 sh -c 'pwd; echo x >made; cat made'", image),
        step("images", "udi", "images", "--names", UDI_STORE="/mnt/b/u/store"),
        shell("soft", SOFT, user=False),
        shell("stop", STOPPED, user=False),
        shell("killed", KILLED, image),
        step("soft start", "udi-run", image, "true", UDI_STORE="/mnt/soft/u/store"),
        step("soft pull", "udi", "pull", "-q", image, UDI_STORE="/mnt/soft/u/store"),
        shell("again", "rpc.nfsd -N 3 4", user=False),
        step("goes on", "udi-run", image, "echo", "on", UDI_STORE="/mnt/a/u/store", seconds=200),
        # A memory cgroup that kills
        shell("cgroup", CGROUP, user=False),
        shell("eats", EATS, "/sys/fs/cgroup/job", image),
        shell("alone", ALONE, "/sys/fs/cgroup/job", image),
        shell("group", "echo 1 >/sys/fs/cgroup/job/memory.oom.group", user=False),
        shell("all", f"sh -c '{ALONE}' sh $1 $2; echo $?", "/sys/fs/cgroup/job", image),
        shell("gone", GONE, user=False),
        # What README's table says is missing
        step("no fuse", "chmod", "0", "/dev/fuse", user=False),
        step("without fuse", "udi-run", image, "echo", "extracted", seconds=200),
        step("fuse again", "chmod", "666", "/dev/fuse", user=False),
        shell("no writers", "chmod 0 /usr/bin/mksquashfs", user=False),
        step("without writers", "udi", "pull", "-q", image, UDI_STORE="/home/u/other"),
        step("runs without", "udi-run", image, "echo", "runs"),
        shell("no zstd", NO_ZSTD, user=False),
        shell("without zstd", WITHOUT_ZSTD, image),
        shell("zstd", ZSTD, user=False),
        # AppArmor
        shell("apparmor", APPARMOR, DENIES % "userns", user=False),
        step("apparmor refuses", "udi-run", image, "true"),
        step("doctor apparmor refuses", "udi", "doctor"),
        # As Ubuntu's setting does it: a namespace, and no capability in it.
        shell("instead", INSTEAD, DENIES % "capability", user=False),
        step("apparmor restricts", "udi-run", image, "true"),
        step("doctor apparmor restricts", "udi", "doctor"),
        shell("profile", PROFILE, user=False),
        step("apparmor allows", "udi-run", image, "cat", "/proc/self/attr/current"),
        # No user namespaces, by Debian's own setting and by everybody's
        step("no clone", "sysctl", "-qw", "kernel.unprivileged_userns_clone=0", user=False),
        step("without clone", "udi-run", image, "true"),
        step("doctor without clone", "udi", "doctor"),
        step("clone", "sysctl", "-qw", "kernel.unprivileged_userns_clone=1", user=False),
        step("none", "sysctl", "-qw", "user.max_user_namespaces=0", user=False),
        step("without namespaces", "udi-run", image, "true"),
        step("doctor without namespaces", "udi", "doctor"),
    ]


NOISE = fuseimages.noise(3 << 20)


def _exported(work: Path) -> Path:
    """Return a file that `udi export` wrote, with NOISE as /noise."""
    layout = images.Layout(work / "lazy")
    layout.image("1", [images.tar([*images.busybox_entries(), ("noise", NOISE, {})])])
    name, path = f"oci:{layout.path}:1", work / "app.sqfs"
    env = {**os.environ, "UDI_STORE": f"{work}/store"}
    for words in (("pull", "-q", name), ("export", name, path)):
        subprocess.run([TREE / "bin/udi", *words], env=env, check=True)
    return path


@pytest.fixture(scope="module", params=SUITES)
def guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Done]:
    """Everything that the steps did; the step "uname" is the suite's name."""
    work = tmp_path_factory.mktemp("services")
    layout = images.Layout(work / "layout")
    ballast = bytes(range(256)) * 4096
    layout.image("latest", [images.tar([*images.busybox_entries(), ("ballast", ballast, {})])])
    app = _exported(work)
    specs = [(name, find_spec(name)) for name in TRIO]
    files = {
        # They have no compiled parts, so this machine's do for the guest's Python.
        f"/usr/lib/python3/dist-packages/{name}": Path(spec.origin).parent
        for name, spec in specs
        if spec and spec.origin
    }
    files |= {
        "/srv/layout": layout.path,
        "/srv/app.sqfs": app,
        "/srv/rangeserver.py": TREE / "tests/kit/rangeserver.py",
        "/etc/apparmor.d/udi-run": TREE / "contrib/apparmor/udi-run",
    }
    done = vm.boot(
        request.param,
        steps(),
        work / "boot",
        files,
        root="trixie",
        packages=PACKAGES,
        modules=MODULES,
        words="procopts=hidepid=2",
        seconds=3000,
    )
    for name, one in done.items():
        print(f"-- {name}: {one.status}\n{one.stdout}{one.stderr}")
    return done


pytestmark = [
    pytest.mark.slow,
    pytest.mark.alike,
    pytest.mark.needs("qemu", "busybox"),
    # 4 minutes on two free cores.
    pytest.mark.timeout(3300),
]


def test_it_pulls_and_runs(guest: dict[str, Done]) -> None:
    assert guest["pull"].status == 0, guest["pull"].stderr
    assert guest["start"] == Done(0, "well\n", "")
    assert guest["doctor"].status == 0, guest["doctor"].stdout


def test_a_quota_that_is_used_up(guest: dict[str, Done]) -> None:
    """ext4's: what failed and what to do; nothing is left; a start writes nothing there."""
    for name in ("pull over", "export over"):
        assert guest[name].status == 125
        assert "failed: Disk quota exceeded" in guest[name].stderr
        assert "hint: your quota there is used up: remove what you don't need" in guest[name].stderr
    assert guest["left over"] == Done(0, "", "")
    assert guest["state over"] == Done(0, "well\n", "")
    assert guest["ranks over"].status == 125
    assert "state directory /srv/export/full/rootless_udi failed" in guest["ranks over"].stderr
    assert "hint: your quota there is used up" in guest["ranks over"].stderr


READ = f"{hashlib.md5(NOISE).hexdigest()}  /noise\n"


def test_a_store_that_fills_under_a_quota(guest: dict[str, Done]) -> None:
    """What is read comes all the same, also where nothing fits; with more quota it goes on."""
    for name in ("lazy over", "lazy none"):
        assert guest[name].stdout == f"{READ}125\n", guest[name]
        assert "Disk quota exceeded" in guest[name].stderr, guest[name]
    assert guest["lazy whole"].stdout.startswith(READ), guest["lazy whole"]
    assert guest["lazy whole"].stdout.endswith("\n0\n") and not guest["lazy whole"].stderr


def test_two_machines_that_start_before_it_is_there(guest: dict[str, Done]) -> None:
    """By NFS, at once: both read, one fills the store, and both find it there once."""
    said = guest["lazy two"].stdout
    digest = said.removeprefix(READ).partition("\n")[0]
    stem = digest.replace(":", "-")
    files = f"/images/{stem}.json\n/images/{stem}.sqfs\n"
    assert said == f"{READ}{digest}\n0\n" * 2 + f"{files}same\n{READ}", guest["lazy two"]
    assert guest["lazy two"].stderr == ""
    lines = guest["asked"].stdout.splitlines()[int(guest["asked before"].stdout) :]
    ranges = [tuple(map(int, line.split())) for line in lines]
    # What ends with the file is the list of its windows, which each start asks for.
    end = max(stop for _, stop in ranges)
    windows = Counter(
        number for at, stop in ranges if stop < end for number in range(at >> 20, -(-stop >> 20))
    )
    assert max(times for number, times in windows.items() if number) <= 2, windows


def test_two_machines_and_one_store(guest: dict[str, Done]) -> None:
    """By NFS, at once: both have it, it is there once, and each sees what the other has."""
    assert guest["mounts"].stdout == "2\n", guest["nfs"]
    words = guest["two"].stdout.split()
    digest, files = words[0], words[4:]
    assert words[:4] == [digest, "0", digest, "0"] and guest["two"].stderr == ""
    stem = digest.replace(":", "-")
    assert files == [f"/images/{stem}.json", f"/images/{stem}.sqfs"]
    assert guest["from b"] == Done(0, "b\n", "")
    assert guest["cwd"] == Done(0, "/mnt/a/u\nx\n", "")
    assert guest["images"] == Done(0, f"{LAYOUT}\n", "")


def test_a_server_that_stops_answering(guest: dict[str, Done]) -> None:
    """A hard mount waits, as all programs do, and SIGKILL ends that; a soft one is an error."""
    assert guest["killed"].stdout == "waits\n137\n137\n"
    for name in ("soft start", "soft pull"):
        assert guest[name].status == 125
        words = ("Input/output error", "Connection timed out")
        assert any(f"on /mnt/soft/u/store: {word}" in guest[name].stderr for word in words)
        assert "Traceback" not in guest[name].stderr
    assert guest["goes on"] == Done(0, "on\n", "")


def test_a_memory_cgroup_that_kills(guest: dict[str, Done]) -> None:
    """Version 1 on the older kernel, 2 on the newer. The command is told of by its shell as any
    other: udi-run is the command, so its status is the signal's. Nothing of ours stays."""
    version = "1" if guest["uname"].stdout.startswith("6.1.") else "2"
    assert guest["cgroup"] == Done(0, f"{version}\n", "")
    assert guest["eats"] == Done(0, "before\n0\nafter 0\nstatus 0\n", "Killed\n")
    assert guest["alone"] == Done(0, "status 137\n", "Killed\n")
    if version == "2":
        # All of the job are killed, our processes too.
        assert guest["all"].stdout == "137\n", guest["all"]
    assert guest["gone"].status == 0, guest["gone"].stdout


def test_what_is_missing_has_a_fallback(guest: dict[str, Done]) -> None:
    assert guest["without fuse"].stdout == "extracted\n", guest["without fuse"]
    assert guest["without writers"].status == 125
    assert "mksquashfs" in guest["without writers"].stderr
    assert guest["runs without"] == Done(0, "runs\n", "")
    assert guest["no zstd"] == Done(0, "", "")
    assert guest["without zstd"] == Done(0, "no decompressor for zstd\nserved\n", "")
    for name, setting, why in (
        ("without namespaces", "user.max_user_namespaces", "No space left on device"),
        ("without clone", "kernel.unprivileged_userns_clone", "Operation not permitted"),
    ):
        assert guest[name].status == 125
        assert f"udi-run: unshare failed: {why}\n" in guest[name].stderr
        assert f"hint: {setting} is 0: " in guest[name].stderr, guest[name]
        assert f"the administrator: sysctl -w {setting}=1" in guest[name].stderr
        name = name.replace("without", "doctor without")
        assert guest[name].status == 1
        assert f"{setting}: 0: " in guest[name].stdout


def test_apparmor_in_force(guest: dict[str, Done]) -> None:
    """A profile that lets udi-run make no user namespaces (as Ubuntu has it for all programs, by a
    setting that Debian's kernel lacks), and the profile of contrib/ in its place."""
    assert guest["apparmor"].stdout.startswith("Y\n"), guest["apparmor"]
    assert guest["profile"].status == 0, guest["profile"].stderr
    assert guest["apparmor allows"].stdout == "udi-run (unconfined)\n", guest["apparmor allows"]
    if guest["uname"].stdout.startswith("6.1."):
        # Rules of user namespaces are looked at since Linux 6.7.
        return
    for name, rule in (("refuses", "userns,"), ("restricts", "capability sys_admin,")):
        hint = f"AppArmor is in force: the profile udi-denied seems to lack a rule (`{rule}`); "
        assert guest[f"apparmor {name}"].status == 125
        assert f"hint: {hint}" in guest[f"apparmor {name}"].stderr, guest[f"apparmor {name}"]
        assert guest[f"doctor apparmor {name}"].status == 1
        assert f"remedy: {hint}" in guest[f"doctor apparmor {name}"].stdout
