"""Mounts inside: what is writable below what, and images whose standard places are links or files.

On each rung: our server, squashfuse_ll, a directory extracted from the store.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.plan.mountpoints import FOLLOWED
from tests.conftest import User
from tests.kit import bent, images
from tests.kit.places import TREE

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


# Links and files of the image at the standard places


@pytest.fixture
def marks() -> Iterator[tuple[Path, Path]]:
    """A file in the host's /tmp and one in its /var/tmp."""
    made = [tempfile.mkstemp(prefix="udi-mark-", dir=folder) for folder in ("/tmp", "/var/tmp")]
    for fd, _ in made:
        os.close(fd)
    yield Path(made[0][1]), Path(made[1][1])
    for _, name in made:
        os.unlink(name)


def kept(way: str, point: str = "") -> list[str]:
    """Return where the image's own files are still found: its links lead to directories of it."""
    points = [p for p in FOLLOWED if point in ("", p)]
    return points if way in ("relative", "absolute", "chain") else []


@pytest.mark.needs("mksquashfs", "squashfuse")
@pytest.mark.parametrize("way", bent.WAYS)
def test_an_image_whose_standard_places_are_bent_runs(
    user: User, marks: tuple[Path, Path], way: str
) -> None:
    """All of one level at once: /etc and /var, or what is in them."""
    for depth in (1, 2):
        points = {p: way for p in bent.POINTS if p.count("/") == depth}
        tree = bent.tree(user.home / f"tree{depth}", points)
        before = sorted(map(str, tree.rglob("*")))
        image = bent.packed(user, tree)
        own = kept(way) if depth == 1 else []
        for argv in (
            (tree,),
            ("--writable", "--fuse=udi", image),
            ("--fuse=squashfuse_ll", image),
        ):
            assert bent.faults(user, marks, own, *argv) == [], (depth, argv)
        assert sorted(map(str, tree.rglob("*"))) == before


@pytest.mark.slow
@pytest.mark.parametrize("way", bent.WAYS)
def test_each_standard_place_bent_alone(user: User, marks: tuple[Path, Path], way: str) -> None:
    for number, point in enumerate(bent.POINTS):
        tree = bent.tree(user.home / f"tree{number}", {point: way})
        assert bent.faults(user, marks, kept(way, point), tree) == [], point


@pytest.mark.parametrize(
    "rung",
    [
        pytest.param("udi", marks=pytest.mark.slow),
        "squashfuse_ll",
        pytest.param("directory", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("way", bent.WAYS)
def test_a_pulled_image_whose_standard_places_are_bent_runs(
    user: User, marks: tuple[Path, Path], rung: str, way: str
) -> None:
    for depth in (1, 2):
        points = {p: way for p in bent.POINTS if p.count("/") == depth}
        tree = bent.tree(user.home / f"tree{depth}", points)
        image = bent.layout(user.home / f"layout{depth}", tree)
        assert user.run("udi", "pull", "-q", image).returncode == 0
        own = kept(way) if depth == 1 else []
        assert bent.faults(user, marks, own, f"--fuse={rung}", image) == [], depth
        if depth == 1:
            argv = ("--writable", f"--fuse={rung}", image)
            assert bent.faults(user, marks, own, *argv) == []


# Volumes through links


@pytest.fixture
def linked(user: User) -> Path:
    """A root directory with links at /l (see `point`), /home -> var/home and others to nothing."""
    tree = bent.tree(user.home / "tree", {})
    for name, target in (
        ("home", "var/home"),
        ("srv", "/var/absent/deep"),
        ("data", "mnt/../media/data"),
        ("chain", "chained"),
        ("chained", "var/chained"),
        ("up", "../../../upper/there"),
    ):
        (tree / name).symlink_to(target)
    (tree / "mnt").mkdir()
    return tree


def asked(user: User, image: object, *volumes: str, run: str = "") -> "tuple[int, str, str]":
    folders(user, "v")
    (user.home / "v/mark").touch()
    argv = [f"--volume={user.home}/v:{volume}" for volume in volumes]
    done = user.run("udi-run", *argv, image, "/bin/sh", "-c", run or "exit 0")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.needs("mksquashfs", "squashfuse")
@pytest.mark.parametrize(
    "place", ["/home/ada", "/home", "/srv", "/srv/a/b", "/data", "/chain", "/chain/x", "/up"]
)
def test_a_mount_point_behind_a_link_to_nothing(user: User, linked: Path, place: str) -> None:
    image = bent.packed(user, linked)
    run = f"/bin/ls {place}; /bin/touch {place}/new"
    for words in ((linked,), ("--fuse=udi", image), ("--writable", "--fuse=squashfuse_ll", image)):
        folders(user, "v")
        (user.home / "v/mark").touch()
        (user.home / "v/new").unlink(missing_ok=True)
        argv = ["udi-run", f"--volume={user.home}/v:{place}", *words, "/bin/sh", "-c", run]
        done = user.run(*argv)
        assert (done.returncode, done.stdout) == (0, "mark\n"), done.stderr
        assert (user.home / "v/new").exists()


@pytest.mark.parametrize(
    ("target", "places", "why"),
    [
        ("/etc", ("/l", "/l/x"), "the container's /etc"),
        ("etc", ("/l/ssl",), "in the container's /etc"),
        ("../../etc", ("/l",), "that is the container's /etc"),
        ("/dev", ("/l", "/l/x"), "the container's /dev"),
        ("/dev/shm", ("/l",), "in the container's /dev"),
        ("/proc", ("/l",), "that is the container's /proc"),
        ("/sys/kernel", ("/l",), "in the container's /sys"),
        ("/opt/udiImage", ("/l", "/l/modules"), "the container's /opt/udiImage"),
        ("/opt", ("/l",), "would hide the container's /opt/udiImage"),
        ("/var", ("/l",), "would hide the container's /var/tmp"),
        ("/", ("/l",), "would hide the container's"),
        ("../..", ("/l",), "would hide the container's"),
        ("/tmp", ("/l/udi-nothing",), "nothing is made in /tmp of the host through a link"),
        ("/tmp/udi-nothing", ("/l", "/l/x"), "nothing is made in /tmp of the host through a link"),
    ],
)
def test_where_links_lead_a_volume_is_judged(
    user: User, linked: Path, target: str, places: tuple[str, ...], why: str
) -> None:
    (linked / "l").symlink_to(target)
    (linked / "second").symlink_to("l")
    for place in (*places, *(p.replace("/l", "/second", 1) for p in places)):
        status, _, err = asked(user, linked, place)
        assert status == 125 and why in err and "links lead it to" in err, err
        assert "hint: choose another destination" in err
        cache = f"--volume={user.home}:{place}:perNodeCache=size=1M"
        done = user.run("udi-run", cache, linked, "/bin/true")
        assert done.returncode == 125 and why in done.stderr
    assert not Path("/tmp/udi-nothing").exists()


@pytest.mark.parametrize(
    ("target", "place", "found"),
    [
        ("/usr", "/l", "/usr"),
        ("/", "/l/new", "/new"),
        ("var", "/l/lib/new", "/var/lib/new"),
        ("/opt", "/l/new", "/opt/new"),
        ("/tmp", "/l", "/tmp"),
    ],
)
def test_links_to_where_a_volume_may_be(
    user: User, linked: Path, target: str, place: str, found: str
) -> None:
    (linked / "l").symlink_to(target)
    status, out, err = asked(user, linked, place, run=f"/bin/ls {found}")
    assert (status, out) == (0, "mark\n"), err


def test_a_volume_that_would_hide_where_etc_really_is(user: User) -> None:
    tree = bent.tree(user.home / "nix", {"/etc": "absolute"})
    status, _, err = asked(user, tree, "/real")
    assert status == 125 and "mounting on /real failed: that would hide the container's /etc" in err
    assert asked(user, tree, "/real/etc")[0] == 125
    assert asked(user, tree, "/real/other")[0] == 0


def test_links_of_a_volume_are_judged_as_well(user: User, linked: Path) -> None:
    """They lead through the container, wherever they lead on the host."""
    folders(user, "v", "w")
    (user.home / "v/etc").symlink_to("/etc")
    (user.home / "v/file").symlink_to("nothing")
    (user.home / "v/home").symlink_to("/tmp/udi-nothing")
    outer = f"--volume={user.home}/v:/w"
    for inner in (f"{user.home}/w:/w/etc", f"{user.home}/w:/w/etc/sub", "/etc/hosts:/w/etc/hosts"):
        done = user.run("udi-run", outer, f"--volume={inner}", linked, "/bin/true")
        assert done.returncode == 125 and "container's /etc" in done.stderr, done.stderr
    for inner in ("/etc/hosts:/w/file", f"{user.home}/w:/w/home"):
        done = user.run("udi-run", outer, f"--volume={inner}", linked, "/bin/true")
        assert done.returncode == 125 and "not in" in done.stderr, done.stderr
    assert (user.home / "v/file").is_symlink() and not Path("/tmp/udi-nothing").exists()


# What is said when a mount can't be made


@pytest.mark.parametrize("more", [(), ("--writable",)], ids=["ro-root", "writable"])
def test_a_mount_point_that_a_volume_lacks_is_the_volumes(
    user: User, layout: str, more: tuple[str, ...]
) -> None:
    folders(user, "outer", "inner")
    (user.home / "outer/file").touch()
    (user.home / "usr").symlink_to("/usr")
    home = user.home
    for outer, inner, why in (
        (
            "outer:/w:ro",
            f"{home}/inner:/w/in",
            f"not in {home}/outer and can't be made there: Read",
        ),
        ("outer:/w:ro", "/etc/hosts:/w/in", f"not in {home}/outer and can't be made there: Read"),
        ("usr:/w", f"{home}/inner:/w/udi/deep", "not in /usr and can't be made there: Permission"),
        ("outer:/w", f"{home}/inner:/w/file", f"it is a file in {home}/outer, and a directory"),
        ("outer:/w", f"{home}/inner:/w/file/x", f"a part of it is a file in {home}/outer"),
    ):
        volumes = (f"--volume={home}/{outer}", f"--volume={inner}")
        done = user.run("udi-run", *more, *volumes, layout, "/bin/true")
        assert done.returncode == 125 and why in done.stderr, done.stderr
        assert "--writable" not in done.stderr and "image" not in done.stderr.partition("is in")[2]


DEAD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rootless_udi.base import syscalls
fd = os.open("/dev/fuse", os.O_RDWR)
ids = f"user_id={os.getuid()},group_id={os.getgid()}"
syscalls.mount("dead", sys.argv[2], "fuse.dead", 0, f"fd={fd},rootmode=40000,{ids}")
os.close(fd)
words = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", *sys.argv[3:]]
os.execvp(words[0], words)
"""


def test_a_dead_file_system_of_the_host_is_named(user: User, layout: str) -> None:
    folders(user, "dead", "site")
    dead = user.home / "dead"
    enter = ["unshare", "--user", "--map-current-user", "--mount", "--keep-caps", sys.executable]
    enter += ["-I", "-c", DEAD, str(TREE), str(dead), "udi-run"]
    assert user.run("udi", "pull", "-q", layout).returncode == 0
    why = f"mounting {dead} on /data failed: Transport endpoint is not connected on the host"
    done = user.run(*enter, f"--volume={dead}:/data", layout, "/bin/true")
    assert done.returncode == 125 and why in done.stderr, done.stderr
    for required in (False, True):
        word = "true" if required else "false"
        text = f'[[mount]]\nsource = "{dead}"\ndestination = "/data"\nrequired = {word}\n'
        (user.home / "site/udi.toml").write_text(text)
        env = {"UDI_SITE_DIR": str(user.home / "site")}
        done = user.run(*enter, layout, "/bin/echo", "ran", env=env)
        assert done.stdout == ("" if required else "ran\n"), done.stderr
        assert why in done.stderr and ("left out" in done.stderr) is not required
