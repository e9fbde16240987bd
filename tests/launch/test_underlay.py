"""Images on kernels that mount no overlay: covers in its place, and fuse-overlayfs for --writable.

On this kernel by `--layer=underlay`, and where the mount is refused; tests/kernels has Linux 5.10.
"""

import os
import shutil
import signal
import subprocess
from errno import ENOSYS
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.nodes import Rank, counted
from tests.launch.test_refused_calls import ALL, refusing
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")

UNDER = "--layer=underlay"
APPLETS = (
    "sh",
    "id",
    "ls",
    "cat",
    "find",
    "stat",
    "touch",
    "rmdir",
    "grep",
    "echo",
    "sort",
    "wc",
    "true",
    "readlink",
)
NAMES = [b"a\xff\xfeb", b"sp ace", b"new\nline", b"-dash", b"x" * 255]


@pytest.fixture
def tree(user: User) -> Path:
    """A root directory that nobody prepared: no mount points, names that are no text."""
    root = user.home / "tree"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/mine").write_text("mine\n")
    (root / "etc/mtab").symlink_to("../gone")
    (root / "etc/hosts").symlink_to("deep/none")
    (root / "usr/lib").mkdir(parents=True)
    (root / "odd").mkdir(mode=0o750)
    for odd in NAMES:
        (root / "odd" / os.fsdecode(odd)).write_text("found\n")
    os.mkfifo(root / "odd/fifo")
    (root / "odd/link").symlink_to("gone")
    os.utime(root / "odd", (1e9, 1e9))
    return root


@pytest.fixture(params=["directory", "squashfs"])
def image(request: pytest.FixtureRequest, user: User, tree: Path) -> Path:
    if request.param == "directory":
        return tree
    return squashfs(tree, user.home / "bare.sqfs")


def squashfs(tree: Path, path: Path, *options: str) -> Path:
    subprocess.run(["mksquashfs", tree, path, "-quiet", "-no-progress", *options], check=True)
    return path


def shown(user: User, *argv: object) -> str:
    done = user.run("udi-run", *argv)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_container_looks_as_with_an_overlay(user: User, image: Path) -> None:
    """Names, types, modes, owners, contents and the order of listings."""
    script = """
        for name in /bin /usr /odd /etc/deep; do find "$name" -exec stat -c '%n %F %a %u %g' {} +
        done
        find /odd; cat /odd/a*; stat -c %Y /odd; cat /etc/mine /etc/passwd /etc/group; ls /etc
        ls -l /etc/mtab /etc/hosts | grep -o '[^ ]*$'; id -u
    """
    volume = f"--volume={user.home}:/odd/new/home"
    over, under = (
        shown(user, layer, image, "sh", "-c", script) for layer in ("--layer=overlay", UNDER)
    )
    assert over == under
    listed = shown(user, UNDER, volume, image, "ls", "-1", "/odd")
    assert {*listed.split("\n")} >= {"new", "fifo", "link", "sp ace"}
    assert shown(user, UNDER, volume, image, "stat", "-c", "%a %Y", "/odd") == "750 1000000000\n"


@pytest.mark.parametrize("older", [False, True])
def test_all_of_it_is_sealed(user: User, image: Path, older: bool) -> None:
    """Each mount of the image and each cover is read-only, nosuid and nodev; in older ways too."""
    words = refusing(ALL, ENOSYS) if older else []
    places = "/made /etc/made /etc/mine /usr/made /usr/lib/made /odd/made /bin/made"
    script = f"for at in {places}; do touch $at && echo $at; done; cat /proc/self/mountinfo"
    volume = f"--volume={user.home}:/usr/lib/new"
    done = user.run(*words, "udi-run", UNDER, volume, image, "sh", "-c", script)
    assert done.stderr.count("Read-only file system") == 7, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert {row[4] for row in rows} >= {"/", "/bin", "/usr", "/etc/mine", "/usr/lib/new"}
    own = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/usr/lib/new")
    for row in rows:
        if not any(row[4] == at or row[4].startswith(f"{at}/") for at in own):
            assert {"ro", "nosuid", "nodev"} <= set(row[5].split(",")), row


def test_standard_places_that_are_something_else(user: User, tree: Path) -> None:
    """`layover` does it in an overlay: what is in the way gives way."""
    (tree / "tmp").write_text("a file")
    (tree / "var").symlink_to("nowhere")
    (tree / "proc").symlink_to("etc")
    script = "stat -c '%n %F' /tmp /var /var/tmp /proc; cat /proc/self/comm"
    under = shown(user, UNDER, tree, "sh", "-c", script)
    assert under == shown(user, "--layer=overlay", tree, "sh", "-c", script)
    assert under.startswith("/tmp directory\n/var directory\n")
    (tree / "etc").rename(tree / "usr/etc")
    (tree / "etc").symlink_to("usr/etc")
    assert shown(user, UNDER, tree, "cat", "/usr/etc/mine", "/etc/mine") == "mine\nmine\n"
    assert shown(user, UNDER, tree, "stat", "-c", "%F", "/etc") == "symbolic link\n"


def test_mount_points_of_an_image_of_udi_pull(user: User, box: Path) -> None:
    """Only the directory that lacks one is covered; a plain start has no cover at all."""
    (user.home / "v").mkdir()
    volume = f"--volume={user.home}/v:/usr/new/place"
    script = "touch /usr/new/place/made; grep -c ' /usr ' /proc/self/mountinfo; ls /usr"
    assert shown(user, UNDER, volume, box, "sh", "-c", script).startswith("1\nbin\nnew\n")
    assert (user.home / "v/made").exists()
    plain = shown(user, UNDER, box, "cat", "/proc/self/mountinfo").splitlines()
    assert " - fuse.udi " in plain[0] and not any(" /etc " in row for row in plain)
    explained = shown(user, UNDER, volume, "--explain", box)
    assert "underlay" in explained and "/usr/new/place is not in the image; --layer" in explained
    assert "layer" in shown(user, UNDER, "--explain", box)


def test_explain_lists_the_covers_of_any_image(user: User, tree: Path) -> None:
    """Of a directory and of a squashfs file the same, and nothing is mounted for it."""
    image = user.home / "bare.sqfs"
    subprocess.run(["mksquashfs", tree, image, "-quiet", "-no-progress"], check=True)
    argv = [UNDER, "--explain", f"--volume={user.home}:/usr/lib/new/deep"]
    said = [
        [line for line in shown(user, *argv, one).splitlines() if line.startswith("cover ")]
        for one in (tree, image)
    ]
    assert said[0] == said[1]
    assert [line.split()[1] for line in said[1]] == ["/", "/etc", "/usr/lib"]
    data = bytearray(image.read_bytes())
    # Where the inode table begins (superblock, bytes 64 to 71): one that is no table.
    at = int.from_bytes(data[64:72], "little")
    data[at : at + 64] = b"\xff" * 64
    damaged = user.home / "damaged.sqfs"
    damaged.write_bytes(data)
    rows = [line.split() for line in shown(user, *argv, damaged).splitlines()]
    assert ["cover", "not", "known"] in [row[:3] for row in rows]


@pytest.mark.needs("strace")
def test_a_cover_asks_a_server_for_a_page_of_names_at_once(user: User, tree: Path) -> None:
    """And not for each: 2,000 mounts would be 2,000 messages, each a switch to the server."""
    (tree / "many").mkdir()
    for number in range(2000):
        (tree / "many" / f"file{number}").touch()
    path = user.home / "many.sqfs"
    subprocess.run(["mksquashfs", tree, path, "-quiet", "-no-progress"], check=True)
    log = user.home / "log"
    words = ["strace", "-f", "-qq", "-o", log, "-e", "trace=writev"]
    argv = [UNDER, f"--volume={user.home}:/many/new", path, "sh", "-c", "ls /many | wc -l"]
    done = user.run(*words, "udi-run", *argv)
    assert (done.returncode, done.stdout) == (0, "2001\n"), done.stderr
    # The server's answers are writev(2)'s. 83 pages of 4 KiB, or fewer of more.
    answers = log.read_text().count("writev(")
    assert 20 < answers < 600, answers


def test_ranks_join_it(user: User, image: Path) -> None:
    with counted(user) as left:
        first = Rank(user, "udi-run", UNDER, "--share=job", image).ready()
        other = Rank(user, "udi-run", UNDER, "--share=job", image).ready()
        assert first.namespaces == other.namespaces
        assert other.end("cat /etc/mine; touch /etc/x")[1] == "mine\n"
        assert first.end()[0] == 0
        left.check()


# Where the kernel refuses an overlay


@pytest.mark.needs("strace")
@pytest.mark.parametrize("errno", ["ENODEV", "EPERM", "EINVAL"])
def test_a_refused_overlay_stops_no_start(user: User, box: Path, tree: Path, errno: str) -> None:
    """No module, a filter, a kernel that does not know its options."""
    inject = f"inject=mount:error={errno}"
    words = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        "/root",
        "-e",
        "trace=mount",
        "-e",
        inject,
    ]
    done = user.run(*words, "udi-run", box, "echo", "optional")
    assert (done.returncode, done.stdout, done.stderr) == (0, "optional\n", "")
    done = user.run(*words, "udi-run", tree, "sh", "-c", "cat /etc/mine; touch /usr/x /etc/x")
    assert done.stdout == "mine\n" and done.stderr.count("Read-only file system") == 2
    done = user.run(*words, "udi-run", "--layer=overlay", tree, "true")
    assert done.returncode == 125 and "can't be mounted: " in done.stderr


# Bad input


def test_a_directory_of_very_many_entries(user: User, tree: Path) -> None:
    """2,000 are covered with a warning; more than the kernel's table would bear are refused."""
    many = tree / "usr/lib"
    for number in range(2000):
        (many / f"lib{number}").touch()
    argv = [UNDER, f"--volume={user.home}:/usr/lib/new", tree, "sh", "-c", "ls /usr/lib | wc -l"]
    done = user.run("udi-run", *argv)
    assert (done.returncode, done.stdout) == (0, "2001\n")
    assert "udi-run: warning: /usr/lib/new is not in the image" in done.stderr
    assert "each of the 2000 entries of /usr/lib" in done.stderr
    explained = user.run("udi-run", "--explain", *argv).stdout
    assert "/usr/lib (2000 entries)" in explained and "each of the 2000 entries" in explained
    for number in range(100_000):
        os.mknod(many / f"more{number}")
    done = user.run("udi-run", *argv)
    assert done.returncode == 125
    assert "covering /usr/lib of the image failed: it has more than 20000 entries" in done.stderr
    assert "choose a destination that exists in the image" in done.stderr
    explained = user.run("udi-run", "--explain", *argv).stdout
    assert "/usr/lib (102000 entries)" in explained
    assert "covering /usr/lib of the image failed: it has more than 20000" in explained


def test_entries_that_come_and_go(user: User, tree: Path) -> None:
    """Somebody installs into the image while it is started."""
    script = (
        'while :; do for n in 1 2 3 4 5; do : >"$0/$n"; mkdir "$0/d$n"; ln -s x "$0/l$n"; done; '
    )
    script += 'rm -r "$0"/*; done'
    (tree / "busy").mkdir()
    other = subprocess.Popen(["sh", "-c", script, tree / "busy"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(10):
            done = user.run(
                "udi-run", UNDER, f"--volume={user.home}:/busy/new", tree, "ls", "/busy"
            )
            assert done.returncode == 0, done.stderr
            assert "new" in done.stdout.split()
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("layer", [UNDER, "--layer=overlay"])
@pytest.mark.parametrize("folder", [False, True])
def test_an_entry_that_can_not_be_read(
    user: User, tree: Path, tmp_path: Path, layer: str, folder: bool
) -> None:
    """One damaged inode of the image: the start says what is missing, and all else is there."""
    bad = tree / "odd/bad"
    bad.mkdir() if folder else bad.write_text("lost\n")
    os.utime(bad, (0x5EAD51DE, 0x5EAD51DE))
    image = squashfs(tree, tmp_path / "image.sqfs", "-noI")
    data = bytearray(image.read_bytes())
    at = data.index((0x5EAD51DE).to_bytes(4, "little")) - 8
    assert data[at] in (1, 2) and data.count(b"\xde\x51\xad\x5e") == 1
    data[at] = 99  # an inode of a type that does not exist
    image.write_bytes(data)
    script = "ls /odd | wc -l; cat /odd/bad; cat '/odd/sp ace'; ls -d /odd/new"
    done = user.run("udi-run", layer, f"--volume={user.home}:/odd/new", image, "sh", "-c", script)
    assert "found\n/odd/new\n" in done.stdout, done.stdout + done.stderr
    warning = "udi-run: warning: /odd/bad of the image is not in the container: "
    assert (warning in done.stderr) == (layer == UNDER), done.stderr
    assert "can't open '/odd/bad'" in done.stderr and done.returncode == 0


@pytest.mark.root
def test_a_directory_that_can_not_be_listed(user: User, tree: Path) -> None:
    """Somebody else's, which may be searched and not read: named. What is in it works."""
    (tree / "closed/sub").mkdir(parents=True)
    (tree / "closed").chmod(0o711)
    done = user.run("udi-run", UNDER, f"--volume={user.home}:/closed/new", tree, "true")
    assert done.returncode == 125
    assert (
        "covering /closed of the image failed: listing it failed: Permission denied" in done.stderr
    )
    done = user.run("udi-run", UNDER, f"--volume={user.home}:/closed/sub", tree, "true")
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_a_tree_of_somebody_elses(user: User, tree: Path) -> None:
    """Where an overlay may not copy up, a cover needs no right to write."""
    done = user.run("udi-run", UNDER, f"--volume={user.home}:/usr/new", tree, "ls", "/usr")
    assert (done.returncode, done.stdout) == (0, "lib\nnew\n"), done.stderr


# --writable by fuse-overlayfs


@pytest.mark.needs("fuse-overlayfs")
def test_writable_by_fuse_overlayfs(user: User, image: Path) -> None:
    script = """
        echo made >/bin/made; cat /bin/made; echo changed >/etc/mine; cat /etc/mine
        echo x >/etc/passwd.new; mv /etc/passwd.new /etc/passwd; cat /etc/passwd
        rm -r /usr; ls -d /usr; grep -o ' / / [a-z]*' /proc/self/mountinfo; ls /data
    """.replace("mv", "busybox mv").replace("rm -r", "busybox rm -r")
    (user.home / "data").mkdir()
    (user.home / "data/there").touch()
    with counted(user) as left:
        argv = [UNDER, "--writable", f"--volume={user.home}/data:/data", image, "sh", "-c", script]
        done = user.run("udi-run", *argv)
        assert done.stdout == "made\nchanged\nx\n / / rw\nthere\n", done.stderr
        assert done.stderr == "ls: /usr: No such file or directory\n"
        left.check()


@pytest.mark.needs("fuse-overlayfs")
def test_fuse_overlayfs_that_dies(user: User, image: Path) -> None:
    """Its container is lost with what was written; who comes then gets another one."""
    words = ["udi-run", UNDER, "--writable", "--share=job", image]
    with counted(user) as left:
        old = Rank(user, *words).ready()
        (server,) = [pid for pid, said in left.processes().items() if "lowerdir=" in said]
        os.kill(server, signal.SIGKILL)
        assert old.process.stderr
        told = old.process.stderr.readline()
        assert told.startswith("udi-run: what was written in the container is lost: "), told
        assert told.endswith("fuse-overlayfs has ended (killed by signal 9)\n")
        wait_for(lambda: not left.files())
        new = Rank(user, *words).ready()
        assert new.namespaces != old.namespaces
        assert new.end("cat /etc/mine")[1] == "mine\n"
        old.process.kill()
        old.process.communicate()
        left.check()


def test_writable_without_it_is_refused_by_name(user: User, tree: Path) -> None:
    script = "mount --bind /dev/null /usr/bin/fuse-overlayfs; "
    script += 'exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'
    unshare = ["unshare", "--user", "--map-current-user", "--mount", "--keep-caps"]
    inner = [*unshare, "sh", "-c", script, "sh"]
    done = user.run(*inner, "udi-run", UNDER, "--writable", tree, "true")
    assert done.returncode == 125
    assert "fuse-overlayfs is not installed" in done.stderr
