"""A start of a known request: the plan of the last one, carried out by udi-run in C.

It makes the same container as Python does, and only while nothing is different.
"""

import json
import marshal
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootless_udi.launch import known
from rootless_udi.node import publish
from rootless_udi.store import windows
from tests.conftest import User
from tests.kit.calls import calls_of
from tests.kit.nodes import Leftovers, counted
from tests.kit.places import TREE
from tests.launch.test_attack import modules

pytestmark = pytest.mark.needs("joiner", "userns", "fuse", "busybox", "strace")

COPIES = 40
NO_TMP = '[[mount]]\ndestination = "/tmp"\nenabled = false\n'
SHOW = r"""
sed 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //; s/ \(shared\|master\|propagate_from\):[0-9]*//g' \
    /proc/self/mountinfo
grep -i -v -e state -e pid -e gid: -e sid -e ctxt -e vm -e rss -e mems -e spec /proc/self/status
cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
for file in passwd group shadow nsswitch.conf host.conf hosts resolv.conf; do
    cat /etc/$file
done
find / -xdev -path /home -prune -o -print | xargs stat -c '%A %u %g %n'
ls /proc/self/fd; umask; pwd; env | sort
"""
"""What tells one container from another, without numbers of mounts and processes."""


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    user.env["PATH"] = f"{TREE}/build/joiner:{user.env['PATH']}"
    with counted(user) as found:
        yield found


@pytest.fixture(scope="module")
def made(box: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with a copy of `box` and a site's folder, made at once: what has been changed in the
    last two seconds is not noted."""
    found = []
    for _ in range(COPIES):
        folder = tmp_path_factory.mktemp("made")
        for suffix in (".sqfs", ".json"):
            (folder / f"image{suffix}").write_bytes(box.with_suffix(suffix).read_bytes())
        (folder / "site").mkdir()
        (folder / "site/udi.toml").write_text(NO_TMP)
        found.append(folder)
    return found


@pytest.fixture
def image(made: list[Path]) -> Path:
    """An image with its facts, which a test may change."""
    return made.pop() / "image.sqfs"


@pytest.fixture
def site(user: User, image: Path) -> Path:
    """The site's folder; /tmp is not mounted, in which tests are."""
    user.env["UDI_SITE_DIR"] = str(image.parent / "site")
    return image.parent / "site"


def notes(user: User) -> list[Path]:
    return [*Path(user.env["XDG_RUNTIME_DIR"], "rootless_udi/starts").glob(f"{known.PLAN}*")]


def noted(user: User, *argv: object, **how: object) -> Path:
    """Start /bin/true until the start is noted; return the note.

    That is at once, but for files that were changed in the last two seconds.
    """
    end = time.monotonic() + 60
    before = notes(user)
    while True:
        done = user.run("udi-run", *argv, "true", **how)  # type: ignore[arg-type]
        assert (done.returncode, done.stderr) == (0, "")
        found = [path for path in notes(user) if path not in before]
        if found:
            return found[0]
        assert time.monotonic() < end


def traced(
    user: User, *argv: object, **how: object
) -> "tuple[bool, subprocess.CompletedProcess[str]]":
    """Return whether a start was planned by Python, and what came of it."""
    log = user.home / "log"
    words = ("strace", "-f", "-o", log, "-e", "trace=execve", "udi-run", *argv)
    done = user.run(*words, **how)  # type: ignore[arg-type]
    return "program=udi-run" in log.read_text(), done


def ran(user: User, *argv: object, **how: object) -> "tuple[bool, str]":
    """Return whether a start that went well was planned by Python, and what it printed."""
    planned, done = traced(user, *argv, **how)
    assert (done.returncode, done.stderr) == (0, "")
    return planned, done.stdout


def shown(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(r"fd=\d+|size=\d+k|nr_inodes=\d+", "", done.stdout)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--no-cwd", "--clearenv", "--env=A=b c", "--workdir=/etc", "--quiet", "--fuse=udi"),
        ("--volume=%s/data:/data:ro", "--volume=%s/data/file:/srv/file", "--home"),
        ("--volume=%s/data:/usr/new/deep", "--volume=%s/data:/run/in", "--layer=overlay"),
    ],
    ids=str,
)
def test_the_container_is_the_same(
    user: User, image: Path, site: Path, left: Leftovers, options: tuple[str, ...]
) -> None:
    (user.home / "data").mkdir()
    (user.home / "data/file").write_text("data\n")
    words = [word.replace("%s", str(user.home)) for word in options]
    place = user.home / "work"
    place.mkdir()
    first = shown(user.run(TREE / "bin/udi-run", *words, image, "sh", "-c", SHOW, cwd=place))
    noted(user, *words, image, cwd=place)
    planned, done = traced(user, *words, image, "sh", "-c", SHOW, cwd=place)
    assert not planned
    assert shown(done).splitlines() == first.splitlines()


def test_its_record_is_there_while_it_lives(user: User, image: Path, left: Leftovers) -> None:
    noted(user, image)
    run = user.popen("udi-run", image, "sh", "-c", "echo; read x", stdin=-1, stdout=-1)
    assert run.stdout is not None and run.stdout.readline()
    (row,) = user.run("udi", "ps").stdout.splitlines()[1:]
    assert str(run.pid) in row and str(image) in row
    done = user.run("udi", "exec", f"alone-{run.pid}", "sh", "-c", "echo $GREETING")
    assert done.stdout == "image\n", done.stderr
    assert {"udi-helper", "udi-image"} <= {*left.processes().values()}
    run.communicate("\n", timeout=60)
    assert run.returncode == 0


def test_the_commands_errors_are_the_same(user: User, image: Path, left: Leftovers) -> None:
    noted(user, image)
    for words in (("nowhere",), ("/etc",), ("sh", "-c", "kill -9 $$"), ("sh", "-c", "exit 7")):
        planned, done = traced(user, image, *words)
        other = user.run(TREE / "bin/udi-run", image, *words)
        assert not planned
        assert (done.stderr, done.returncode) == (other.stderr, other.returncode)
    done = user.run("udi-run", image, "true", cwd="/boot")
    assert done.returncode == 0 and "the folder /boot is not in the container" in done.stderr


def test_it_opens_few_files(user: User, image: Path, left: Leftovers, tmp_path: Path) -> None:
    noted(user, image)
    log = tmp_path / "log"
    strace = ("strace", "-f", "-o", log, "-e", "trace=/open,execve")
    assert user.run(*strace, "udi-run", image, "true").returncode == 0
    calls = calls_of(log)
    last = next(i for i, (_, call) in enumerate(calls) if 'execve("/bin/true"' in call)
    own = [call for pid, call in calls[:last] if pid == calls[0][0] and call.startswith("open")]
    assert len(own) <= 14, own


def other_image(user: User, image: Path) -> None:
    new = user.home / "new"
    new.write_bytes(image.read_bytes())
    new.rename(image)


def image_touched(user: User, image: Path) -> None:
    os.utime(image)


def facts(user: User, image: Path) -> None:
    path = image.with_suffix(".json")
    path.write_text(path.read_text().replace("GREETING=image", "GREETING=facts"))


def facts_gone(user: User, image: Path) -> None:
    image.with_suffix(".json").unlink()


def facts_mode(user: User, image: Path) -> None:
    """Others may write them now, and they are not believed any more."""
    image.with_suffix(".json").chmod(0o666)


def site_file(user: User, image: Path) -> None:
    (image.parent / "site/conf.d").mkdir()
    (image.parent / "site/conf.d/a.toml").write_text('[env]\nset = { GREETING = "site" }\n')


def own_file(user: User, image: Path) -> None:
    path = user.home / ".config/rootless_udi"
    path.mkdir(parents=True)
    (path / "config.toml").write_text('[env]\nset = { GREETING = "mine" }\n')


def volume(user: User, image: Path) -> None:
    (user.home / "data").rename(user.home / "old")
    (user.home / "data").mkdir()


def site_words(user: User, image: Path) -> None:
    with open(image.parent / "site/udi.toml", "a") as file:
        file.write("\n")


CHANGES: list[Callable[[User, Path], None]] = [
    *(other_image, image_touched, facts, facts_gone, facts_mode),
    *(site_file, own_file, volume, site_words),
]


def test_an_image_that_is_checked(user: User, image: Path, site: Path, left: Leftovers) -> None:
    """image.verify = always: a known start checks as a planned one does."""
    (site / "udi.toml").write_text(f'{NO_TMP}[image]\nverify = "always"\n')
    with image.open("r+b", buffering=0) as file:
        windows.append(file.fileno())
    facts = json.loads(image.with_suffix(".json").read_text())
    image.with_suffix(".json").write_text(json.dumps({**facts, "windows": "sha256:0"}))
    note = noted(user, "--quiet", image)
    assert b"verify=listed" in note.read_bytes()
    assert ran(user, "--quiet", image, "echo", "right") == (False, "right\n")
    log = user.home / "files"
    words = (
        "strace",
        "-f",
        "-o",
        log,
        "-e",
        "trace=preadv,preadv2",
        "udi-run",
        "--quiet",
        image,
        "true",
    )
    assert user.run(*words).returncode == 0
    assert " preadv" in log.read_text()
    assert "exited with 70" not in log.read_text()
    status = image.stat()
    with image.open("r+b") as file:
        file.seek(status.st_size // 8)
        file.write(b"damaged" * 40)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    planned, done = traced(user, "--quiet", image, "true")
    assert planned and done.returncode == 125
    assert "window 0 of 1 MiB" in done.stderr or "its first bytes have changed" in done.stderr


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_what_has_changed_is_planned_anew(
    user: User,
    image: Path,
    site: Path,
    left: Leftovers,
    change: Callable[[User, Path], None],
) -> None:
    (user.home / "data").mkdir()
    words = ("--quiet", f"--volume={user.home}/data:/data", image)
    noted(user, *words)
    say = (*words, "sh", "-c", "echo $GREETING; stat -c %i /data")
    assert not ran(user, *say)[0]
    change(user, image)
    planned, done = traced(user, *say)
    assert planned
    assert done.stdout == user.run(TREE / "bin/udi-run", *say).stdout != ""


def test_another_request_is_planned(user: User, image: Path, left: Leftovers) -> None:
    noted(user, image)
    say = ("sh", "-c", "echo $GREETING")
    assert not ran(user, "--env=GREETING=x", image, *say)[0]
    other = user.home / "other"
    other.mkdir()
    hidden = {"GREETING": "caller"}
    assert ran(user, image, *say, env=hidden) == (False, "image\n")
    for words, how in (
        (("--home", image), {}),
        (("--writable", image), {}),
        (("--verbose", image), {}),
        ((image,), {"cwd": other}),
        ((image,), {"env": {"HOME": str(other)}}),
        ((image,), {"env": {"XDG_CONFIG_HOME": str(other)}}),
        ((image,), {"env": {"UDI_VOLUME": f"{other}:/data"}}),
        ((image,), {"env": {"USER": "another"}}),
    ):
        planned, done = traced(user, *words, *say, **how)
        assert planned and done.returncode == 0, (words, how)


def test_a_link_that_leads_elsewhere_is_followed(user: User, image: Path, left: Leftovers) -> None:
    for name in ("one", "two"):
        (user.home / name).mkdir()
        (user.home / name / "file").write_text(f"{name}\n")
    (user.home / "link").symlink_to("one")
    words = (f"--volume={user.home}/link:/data", image)
    noted(user, *words)
    assert ran(user, *words, "cat", "/data/file") == (False, "one\n")
    (user.home / "link").unlink()
    (user.home / "link").symlink_to("two")
    assert ran(user, *words, "cat", "/data/file") == (True, "two\n")


def edited(note: Path, **fields: str) -> None:
    """Write a note with other values in place of its own."""
    data, out = note.read_bytes(), []
    at = data.index(b"\n") + 1
    while at < len(data):
        colon = data.index(b":", at)
        stop = colon + 1 + int(data[at:colon])
        name, _, value = data[colon + 1 : stop].decode().partition("=")
        out.append((name, fields.get(name, value)))
        at = stop + 1
    note.write_bytes(publish.content(out, b""))


MISFITS = [
    {"until": "1"},
    {"until": "99999999999"},
    {"place": "/tmp"},
    {"same": "place\0/\0" + "1 1"},
    {"request": "another"},
]


def test_a_note_that_does_not_fit_is_left(user: User, image: Path, left: Leftovers) -> None:
    note = noted(user, image)
    for fields in MISFITS:
        edited(note, **fields)
        assert ran(user, image, "true")[0], fields
        # It is noted anew.
        assert not ran(user, image, "true")[0], fields


STEPS = [
    "bind\0/nowhere\0" + "0\0/",
    "bind\0/tmp\0" + "0\0/nowhere",
    "tmpfs\0/run\0" + "0\0no=option",
    "write\0/../x\0" + "420\0text",
    "write\0/etc/../../x\0" + "420\0text",
    "mkdir\0/nowhere/x\0" + "493\0",
    "create\0/tmp\0x\0",
    "link\0/etc/a/b\0" + "0\0/",
]


def test_a_step_that_fails_leaves_it_to_python(user: User, image: Path, left: Leftovers) -> None:
    """It says nothing, and tries no note of this request for a while."""
    note = noted(user, image)
    data = note.read_bytes()
    for step in STEPS:
        note.write_bytes(data)
        edited(note, step=step)
        assert ran(user, image, "sh", "-c", "echo $GREETING") == (True, "image\n"), step
        assert note.stat().st_size == 0, step
        assert ran(user, image, "true")[0], step
        assert note.stat().st_size == 0, step


def cut(note: Path) -> None:
    note.write_bytes(note.read_bytes()[:-1])


def binary(note: Path) -> None:
    note.write_bytes(os.urandom(5000))


def others(note: Path) -> None:
    note.chmod(0o666)


def link(note: Path) -> None:
    note.rename(note.with_suffix(".x"))
    note.symlink_to(note.with_suffix(".x"))


def fifo(note: Path) -> None:
    note.unlink()
    os.mkfifo(note, 0o600)


def test_a_damaged_note_is_left_to_python(user: User, image: Path, left: Leftovers) -> None:
    note = noted(user, image)
    data = note.read_bytes()
    for harm in (cut, binary, others, link, fifo):
        harm(note)
        assert ran(user, image, "sh", "-c", "echo $GREETING") == (True, "image\n"), harm
        note.unlink()
        note.write_bytes(data)
        note.chmod(0o600)


def test_without_room_for_a_process_python_says_so(
    user: User, image: Path, left: Leftovers
) -> None:
    noted(user, image)
    limited = ("bash", "-c", 'ulimit -u 1; exec udi-run "$@"', "x", image, "true")
    done = user.run(*limited)
    assert done.returncode == 125
    assert done.stderr.startswith("udi-run: starting a process failed: "), done.stderr


def test_a_damaged_bundle_of_the_image_server_is_written_anew(
    user: User, image: Path, left: Leftovers
) -> None:
    tree = user.home / "tree"
    (tree / "bin").mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TREE / "rootless_udi", tree / "rootless_udi", ignore=ignored)
    (tree / "rootless_udi/__pycache__").mkdir()
    shutil.copy(TREE / "bin/udi-run", tree / "bin/udi-run-python")
    shutil.copy(TREE / "build/joiner/udi-run", tree / "bin/udi-run")
    user.env["PATH"] = f"{tree}/bin:{user.env['PATH']}"
    noted(user, image)
    (bundle,) = (tree / "rootless_udi/__pycache__").glob("udi-image.*.bundle")
    sound = modules(bundle)
    left.check_processes()
    for damage in (b"", bundle.read_bytes()[:-1], marshal.dumps(5)):
        bundle.write_bytes(damage)
        assert not ran(user, image, "true")[0]
        left.check_processes()
        assert modules(bundle) == sound
        assert bundle.stat().st_mode & 0o777 == 0o644
    bundle.unlink()
    assert not ran(user, image, "true")[0]
    left.check_processes()
    assert modules(bundle) == sound


OUTSIDE = (
    *("/proc/", "/dev/null", "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/lib"),
    *("/usr/lib", "/usr/local/", "/usr/share/", "/usr/bin", "/usr/sbin/", "/bin/", "/sbin/"),
    *("/usr/pyvenv.cfg", "/run/nscd", "/var/run/nscd"),
)
"""What a planner looks at whose change makes no other plan, or makes the step fail: the interpreter
itself, the dynamic loader's, programs of other image servers."""


@pytest.mark.parametrize("kind", ["file", "store"])
def test_all_that_the_planner_looks_at_is_in_the_note(
    user: User, image: Path, site: Path, left: Leftovers, kind: str, tmp_path: Path
) -> None:
    """By the system calls of a start that plans, until it makes its namespaces."""
    own = user.home / ".config/rootless_udi"
    own.mkdir(parents=True)
    (own / "config.toml").write_text('[env]\nset = { A = "1" }\n')
    (user.home / "data").mkdir()
    name: object = image
    if kind == "store":
        user.run("udi", "import", image, "thing:1", check=True)
        name = "thing:1"
    words = ("--quiet", f"--volume={user.home}/data:/data", name)
    note = noted(user, *words)
    assert not ran(user, *words, "true")[0]
    seen = {
        text.split("\0")[1] for text in re.findall(r"same=(.*?)\n\d", note.read_text(), re.DOTALL)
    }
    log = tmp_path / "log"
    os.utime(image if kind == "file" else own / "config.toml")
    strace = ("strace", "-f", "-o", log, "-e", "trace=%file,unshare,listxattr")
    assert user.run(*strace, "udi-run", *words, "true").returncode == 0
    calls = calls_of(log)
    begin = next(i for i, (_, call) in enumerate(calls) if "program=udi-run" in call)
    pid = calls[begin][0]
    end = next(i for i, (who, call) in enumerate(calls) if who == pid and "unshare(" in call)
    state = f"{user.env['XDG_RUNTIME_DIR']}/rootless_udi"
    looked = set()
    for who, call in calls[begin:end]:
        path = re.search(r'"(/[^"]*)"', call)
        if who == pid and path and "execve(" not in call:
            at = os.path.normpath(path[1])
            # What is made in a folder whose state is noted changes that.
            looked.add(os.path.dirname(at) if "ENOENT" in call else at)
    python = [str(Path(sys.executable).parent.parent), str(TREE)]
    # Copies of the configuration's files, which say of which ones they are.
    copies = [f"{user.home}/.cache/rootless_udi/config-", f"{site}/udi.cache"]
    missing = {
        path
        for path in looked - seen
        if not path.startswith((*OUTSIDE, state, *python, *copies))
        # A folder on the way to something that is noted, looked at for links.
        and path != "/"
        and not any(other.startswith(f"{path}/") for other in seen)
    }
    assert missing == set() and len(looked & seen) > 10
