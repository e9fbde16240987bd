"""System calls younger than Linux 4.18, refused as older kernels, systemd and containers do it.

What is asked for comes about by an older way, as well protected, or is refused by name. A kernel of
Red Hat 8 (4.18) can't be had here: this one with all of them refused stands for it.
"""

import ast
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootless_udi.base import calls, syscalls
from rootless_udi.base.newcalls import TABLE, NewCall
from tests.conftest import User
from tests.kit import images
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")

REFUSE = [sys.executable, TREE / "tests/programs/refuse.py"]
ERRNOS = {"ENOSYS": ENOSYS, "EPERM": EPERM, "EINVAL": EINVAL}
ALL = "all of them"
YOUNG = 424
"""The first number of Linux 5.1; from here on all architectures have the same numbers, and 4.18 has
none of them."""


def refusing(call: str, errno: int) -> list[object]:
    """Return words that run a command to which the call, or each of the table, is refused."""
    rows = [row for row in TABLE if call in (row.name, ALL)]
    # Without threads nothing is pulled, and mksquashfs does nothing: a test of its own.
    pairs = [
        (row.number, ENOSYS if row.name == "clone3" and call == ALL else errno) for row in rows
    ]
    return [*REFUSE, ",".join(f"{number}:{answer}" for number, answer in pairs)]


@pytest.fixture
def pulled(user: User) -> str:
    """A store with one image, also extracted; its name."""
    layout = user.home / "layout"
    images.busybox_layout(layout)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    assert user.run("udi", "pull", "-q", f"oci:{layout}:latest").returncode == 0
    return f"oci:{layout}:latest"


Words = list[object]


def shown(user: User, before: Words, *argv: object) -> str:
    """Return what a command in a container prints, with `before` in front of udi-run."""
    done = user.run(*before, "udi-run", *argv)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def mounts(text: str) -> list[tuple[str, str]]:
    """Return (place, flags) of the mounts that show in a mountinfo; one that another covers, and
    nobody can reach, keeps its flags in the older way."""
    rows = [line.split(" ", 6) for line in text.splitlines() if " - " in line]
    covered = {(parent, place) for _, parent, _, _, place, *_ in rows}
    return sorted((r[4], r[5]) for r in rows if (r[0], r[4]) not in covered)


def same(user: User, before: Words, *argv: object) -> None:
    """The container with calls refused has the very mounts and flags of the one without."""
    old, new = (shown(user, x, *argv, "cat", "/proc/self/mountinfo") for x in (before, []))
    assert mounts(old) == mounts(new)
    old, new = (shown(user, x, *argv, "ls", "/", "/etc") for x in (before, []))
    assert sorted(old.split()) == sorted(new.split())


def plain(user: User, before: Words, pulled: str) -> None:
    same(user, before, pulled)


def squashfuse(user: User, before: Words, pulled: str) -> None:
    same(user, before, "--fuse=squashfuse_ll", pulled)


def directory(user: User, before: Words, pulled: str) -> None:
    image = f"--fuse=directory {pulled}".split()
    # unsquashfs is nothing without threads.
    threads = not re.search(rf"\b435:({EPERM}|{EINVAL})\b", str(before[-1]))
    first = before if threads else []
    done = user.run(*first, "udi-run", *image, "echo", "extracted first")
    assert (done.returncode, done.stdout) == (0, "extracted first\n"), done.stderr
    same(user, before, *image)


def pyfuse3(user: User, before: Words, pulled: str) -> None:
    same(user, before, "--fuse=pyfuse3", pulled)


def fuse_python(user: User, before: Words, pulled: str) -> None:
    same(user, before, "--fuse=fuse-python", pulled)


def writable(user: User, before: Words, pulled: str) -> None:
    same(user, before, "--writable", f"--volume={user.home}:/new/place:ro", pulled)
    script = "echo changed > /etc/group && cat /etc/group"
    assert shown(user, before, "--writable", pulled, "sh", "-c", script) == "changed\n"


def join(user: User, before: Words, pulled: str) -> None:
    words = [*before, "udi-run", "--share=one", pulled]
    show = "readlink /proc/self/ns/mnt"
    first = user.popen(*words, "sh", "-c", f"{show}; read x", stdin=-1, stdout=subprocess.PIPE)
    assert first.stdout is not None
    space = first.stdout.readline()
    assert space.startswith("mnt:")
    done = user.run(*words, "sh", "-c", show)
    assert (done.stdout, done.stderr) == (space, "")
    first.communicate("\n", timeout=120)


def cache(user: User, before: Words, pulled: str) -> None:
    """It covers no folder of the host on its way, and its server ends with the container."""
    options = [f"--volume={user.home}:/tmp/cache:perNodeCache=size=64M,method=file"]
    options += [f"--volume={folder}:{folder}" for folder in HOLDERS]
    script = f"""
    echo kept > /tmp/cache/f && cat /tmp/cache/f; grep -c served /proc/self/mountinfo
    ls {" ".join(HOLDERS)} | grep served
    for p in /proc/[0-9]*; do [ -O $p ] && grep -sq fuse2fs $p/comm && echo ${{p#/proc/}}; done
    true
    """
    others = set(servers())
    done = user.run(*before, "udi-run", "--writable", *options, pulled, "sh", "-c", script)
    kept, served, *found = done.stdout.split()
    assert (kept, served, done.stderr) == ("kept", "0", "")
    (server,) = {int(pid) for pid in found} - others
    assert ended(server)


def servers() -> Iterator[int]:
    """Yield the fuse2fs of this machine: those of other tests end in their own time."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "fuse2fs\n":
                yield int(path.parent.name)
        except OSError:
            continue


HOLDERS = ("/mnt", "/media", "/srv")
"""Where `detached` may mount private memory for a while."""


def ended(pid: int) -> bool:
    """Wait for the end of a process of somebody else; tell whether it came."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    waiter = select.poll()
    waiter.register(handle, select.POLLIN)
    try:
        return bool(waiter.poll(60_000))
    finally:
        os.close(handle)


def hook(user: User, before: Words, pulled: str) -> None:
    site = user.home / "site"
    (site / "modules.d").mkdir(parents=True)
    (site / "modules.d/one.toml").write_text("hook = 'echo hooked; exit 3'\n")
    user.env["UDI_SITE_DIR"] = str(site)
    done = user.run(*before, "udi-run", "--module=one", pulled, "true")
    assert "hooked" in done.stderr and "failed with status 3" in done.stderr


def pull(user: User, before: Words, pulled: str) -> None:
    done = user.run(*before, "udi", "pull", "-q", "--force", pulled)
    assert done.returncode == 0, done.stderr


NEST = """
mount -t tmpfs -o mode=755 one $1/sub && mkdir $1/sub/deep "$1/sub/two words"
mount -t tmpfs -o noexec two $1/sub/deep
mount -t tmpfs -o nodev,noatime three "$1/sub/two words"
mount --bind $1/file $1/other
shift; exec setpriv --ambient-caps=-all --inh-caps=-all "$@"
"""


def nested(user: User) -> tuple[Words, Path]:
    """Return words that mount this and that below a folder and run a command, and the folder."""
    folder = user.home / "volume"
    (folder / "sub").mkdir(parents=True)
    for name in ("file", "other"):
        (folder / name).touch()
    unshare = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    return [*unshare, "sh", "-c", NEST, "sh", folder], folder


def volume(user: User, before: Words, pulled: str) -> None:
    """Who writes below a read-only volume is refused, in each mount of it."""
    outer, folder = nested(user)
    places = ["/v/new", "/v/sub/new", "/v/sub/deep/new", "'/v/sub/two words/new'", "/v/other"]
    script = "; ".join(["cat /proc/self/mountinfo", *(f"touch {place} 2>&1" for place in places)])
    argv = [f"--volume={folder}:/v:ro", pulled, "sh", "-c", f"{script}; true"]
    found = shown(user, [*outer, *before], *argv)
    assert found.count("Read-only file system") == 5
    rows = [flags for place, flags in mounts(found) if f"{place}/".startswith("/v/")]
    assert len(rows) == 5
    for flags in rows:
        assert {"ro", "nosuid", "nodev"} <= set(flags.split(","))
    assert mounts(found) == mounts(shown(user, outer, *argv))
    argv[0] = f"--volume={folder}:/v"
    found = shown(user, [*outer, *before], *argv)
    assert "Read-only" not in found and mounts(found) == mounts(shown(user, outer, *argv))


def links(user: User, before: Words, pulled: str) -> None:
    """Mount points behind hostile links are where openat2 has them, or refused as by it."""
    tree = user.home / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "real").mkdir()
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name, to in LINKS.items():
        (tree / name).symlink_to(to)
    (user.home / "mark").touch()
    for name in LINKS:
        for end in ("new", "../new"):
            argv = ["udi-run", f"--volume={user.home}:/{name}/{end}", tree, "/bin/busybox"]
            argv += ["sh", "-c", "busybox cat /proc/self/mountinfo; busybox ls /real"]
            old, new = user.run(*before, *argv), user.run(*argv)
            assert (old.returncode, old.stderr) == (new.returncode, new.stderr), (name, end)
            assert mounts(old.stdout) == mounts(new.stdout), (name, end)
    assert not [*Path("/usr").glob("new*"), *Path("/").glob("new")]


LINKS = {
    "up": "../../../../../../usr",
    "top": "/",
    "circle": "circle",
    "gone": "/not/there",
    "chain": "up/../real",
    "file": "/bin/busybox",
}

USES: dict[str, Callable[[User, Words, str], None]] = {
    use.__name__: use
    for use in (
        *(plain, squashfuse, directory, pyfuse3, fuse_python, writable),
        *(join, cache, hook, pull, volume, links),
    )
}
NEEDS = {
    "squashfuse": "squashfuse",
    "pyfuse3": "pyfuse3",
    "fuse_python": "fuse-python",
    "cache": "fuse2fs",
    "pull": "tar2sqfs",
}


def matrix() -> list[object]:
    """All at once for each use and answer; slow: each call by itself."""
    rows: list[object] = []
    for call in (ALL, *(row.name for row in TABLE)):
        for word in ERRNOS:
            for use in USES:
                if call == "clone3" and word != "ENOSYS" and use == "pull":
                    continue
                marks = [pytest.mark.needs(NEEDS[use])] if use in NEEDS else []
                marks += [] if call == ALL else [pytest.mark.slow]
                rows.append(pytest.param(call, word, use, marks=marks, id=f"{call}-{word}-{use}"))
    return rows


@pytest.mark.parametrize(("call", "errno", "use"), matrix())
def test_an_older_way(user: User, pulled: str, call: str, errno: str, use: str) -> None:
    USES[use](user, refusing(call, ERRNOS[errno]), pulled)


@pytest.mark.parametrize("errno", [EACCES, EOPNOTSUPP])
@pytest.mark.parametrize("use", ["volume", "links"])
def test_answers_that_are_rarer(user: User, pulled: str, errno: int, use: str) -> None:
    """As systemd's SystemCallErrorNumber= may set any."""
    USES[use](user, refusing(ALL, errno), pulled)


def test_a_pull_without_threads_is_refused_by_name(user: User, pulled: str) -> None:
    """The C library starts threads by clone3 and takes the older way after ENOSYS alone."""
    done = user.run(*refusing("clone3", EPERM), "udi", "pull", "--force", pulled)
    assert done.returncode == 125
    assert "starting a thread failed" in done.stderr and "clone3" in done.stderr
    assert "Traceback" not in done.stderr
    done = user.run(*refusing("clone3", EPERM), "udi", "extract", pulled)
    assert done.returncode == 125
    assert "thread" in done.stderr and "`udi doctor`" in done.stderr


@pytest.mark.parametrize("errno", ERRNOS)
def test_doctor_tells_what_is_refused_and_what_it_costs(user: User, errno: str) -> None:
    pairs = [f"{row.number}:{ERRNOS[errno]}" for row in TABLE]
    done = user.run(*REFUSE, ",".join(pairs), "udi", "doctor")
    assert done.returncode == 0
    found = [line for line in done.stdout.splitlines() if line.startswith("warning system call ")]
    why = os.strerror(ERRNOS[errno])
    assert found == [
        f"warning system call {row.name}: {why}. It is for: {row.use}. Without it: {row.older}. "
        f"Cost: {row.cost}"
        for row in TABLE
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_doctor_blames_no_other_call(user: User, row: NewCall) -> None:
    found = [one for one, _ in doctored(user, row)]
    assert found == [row.name]


def doctored(user: User, row: NewCall) -> list[tuple[str, str]]:
    code = "from rootless_udi.commands import doctor_calls; "
    code += "print([(r.name, why) for r, why in doctor_calls.refused()])"
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TREE)!r}); {code}"]
    done = user.run(*refusing(row.name, EPERM), *words)
    return list(ast.literal_eval(done.stdout))


def test_the_docs_have_the_table() -> None:
    text = (TREE / "docs/kernels.md").read_text()
    for row in TABLE:
        assert f"| {row.name} | {row.since} | {row.use} | {row.older} | {row.cost} |\n" in text


@pytest.mark.needs("strace", "fuse2fs", "squashfuse")
def test_the_table_has_every_young_call_that_is_made(
    user: User, pulled: str, tmp_path: Path
) -> None:
    cached = f"--volume={user.home}:/tmp/c:perNodeCache=size=64M,method=file"
    known = {row.number for row in TABLE}
    seen: set[int] = set()
    for argv in (
        ["udi-run", pulled, "true"],
        ["udi-run", "--writable", f"--volume={user.home}:/v:ro", cached, pulled, "true"],
        ["udi-run", "--fuse=squashfuse_ll", pulled, "true"],
        ["udi-run", "--fuse=directory", pulled, "true"],
        ["udi", "pull", "-q", "--force", pulled],
    ):
        log = user.home / "log"
        done = user.run("strace", "-f", "-n", "-qq", "-e", "raw=all", "-o", log, *argv)
        assert done.returncode == 0, done.stderr
        seen |= {int(n) for n in re.findall(r"^\d+ +\[ *(\d+)\]", log.read_text(), re.M)}
    assert {n for n in seen if n >= YOUNG} <= known
    assert known - seen == set()


# The older way of openat2, with the kernel's own as the oracle

NAMES = ["a", "b", "file", "up", "abs", "self", "deep", "back", "..", ".", "", "none"]
RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("maze") / "root"
    (root / "a/b/a").mkdir(parents=True)
    (root.parent / "b").mkdir()
    for folder in (root, root / "a", root / "a/b"):
        (folder / "file").touch()
        (folder / "up").symlink_to("../../..")
        (folder / "abs").symlink_to("/a")
        (folder / "self").symlink_to("self")
        (folder / "deep").symlink_to("abs/b/")
        (folder / "back").symlink_to("../b/./file")
    return root


def opened(way: Callable[[], int]) -> object:
    """Return what was opened, or the error."""
    try:
        fd = way()
    except OSError as error:
        return error.errno
    try:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino, os.get_inheritable(fd)
    finally:
        os.close(fd)


LENIENT = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=400, suppress_health_check=LENIENT)
@given(
    parts=st.lists(st.sampled_from(NAMES), max_size=7),
    absolute=st.booleans(),
    more=st.sampled_from([0, os.O_NOFOLLOW, os.O_DIRECTORY]),
)
def test_a_walk_ends_where_openat2_does(
    maze: Path, parts: list[str], absolute: bool, more: int
) -> None:
    from rootless_udi.base import older

    path = "/" * absolute + "/".join(parts)
    flags = os.O_PATH | os.O_CLOEXEC | more
    before = os.listdir("/proc/self/fd")
    root = os.open(maze, os.O_PATH | os.O_CLOEXEC)
    try:
        expected = opened(lambda: calls.openat2(root, path, flags, RESOLVE))
        assert opened(lambda: older.inside(root, path, flags)) == expected
    finally:
        os.close(root)
    assert os.listdir("/proc/self/fd") == before


SWAP = """
import os, sys
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    os.rename("root/a/b", "outside/b")
    os.symlink("../../outside", "root/a/b")
    os.unlink("root/a/b")
    os.rename("outside/b", "root/a/b")
"""


def test_no_race_leads_a_walk_out(tmp_path: Path) -> None:
    """Somebody moves a directory out of the tree, and puts a link in its place, again and again."""
    from rootless_udi.base import older

    for name in ("root/a/b/c", "outside/secret", "secret"):
        (tmp_path / name).mkdir(parents=True)
    inner = {(tmp_path / "root" / name).stat().st_ino for name in ("", "a", "a/b", "a/b/c")}
    root = os.open(tmp_path / "root", os.O_PATH)
    other = subprocess.Popen([sys.executable, "-c", SWAP, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        for path in ("a/b/c", "a/b/../../secret", "a/b/secret", "a/b/../../../secret") * 1000:
            try:
                fd = older.inside(root, path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            assert path == "a/b/c" and os.fstat(fd).st_ino in inner
            os.close(fd)
    finally:
        other.kill()
        other.wait()
        os.close(root)


@pytest.mark.root
def test_a_read_only_volume_with_a_mount_out_of_reach_is_refused(
    user: User, pulled: str, tmp_path: Path
) -> None:
    """Who can't be there today may tomorrow, when the directory's owner opens it."""
    folder = tmp_path / "volume"
    (folder / "closed/sub").mkdir(parents=True)
    for path in (tmp_path, folder):
        path.chmod(0o755)
    script = f'mount -t tmpfs -o mode=777 x {folder}/closed/sub; chmod 700 {folder}/closed; "$@"'
    outer = ["unshare", "--mount", "sh", "-c", script, "sh"]
    words = [*refusing("mount_setattr", ENOSYS), "udi-run", f"--volume={folder}:/v:ro", pulled]
    done = subprocess.run(
        [*outer, *user.argv(*words, "true")], env=user.env, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 125
    assert "/closed/sub below a read-only one" in done.stderr and "mount_setattr" in done.stderr
    words[-2] = f"--volume={folder}:/v"
    done = subprocess.run(
        [*outer, *user.argv(*words, "true")], env=user.env, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_somebody_elses_link_in_a_folder_for_all_is_not_followed(tmp_path: Path) -> None:
    """As the kernel has it with fs.protected_symlinks."""
    from rootless_udi.base import older

    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "target").mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to("/target")
    os.lchown(shared / "link", 12345, 12345)
    root = os.open(tmp_path, os.O_PATH)
    with pytest.raises(syscalls.CallError, match="Permission denied"):
        older.inside(root, "shared/link", os.O_PATH | os.O_CLOEXEC)
    os.lchown(shared / "link", os.geteuid(), -1)
    os.close(older.inside(root, "shared/link", os.O_PATH | os.O_CLOEXEC))
    os.close(root)
