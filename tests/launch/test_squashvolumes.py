"""Volumes that are squashfs files: which files they are, who serves them, and what ends them."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import sifs
from tests.kit.nodes import Leftovers, Rank, busybox, counted
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

SERVERS = [
    "udi",
    *(pytest.param(f"squashfuse{x}", marks=pytest.mark.needs("squashfuse")) for x in ("_ll", "")),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found
        found.check()


def squashfs(target: Path, *words: str, **files: bytes) -> Path:
    """Write a squashfs file with `files`, and an empty folder `sub`."""
    folder = target.with_name(f"{target.name}.d")
    (folder / "sub").mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    argv: list[str | Path] = [
        "mksquashfs",
        folder,
        target,
        "-noappend",
        "-quiet",
        "-no-progress",
        *words,
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return target


def volumes(left: Leftovers) -> list[int]:
    """Return the processes that serve volumes with our own server."""
    return [pid for pid, words in left.processes().items() if words == "udi-volume"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_file_becomes_the_directory_in_it(
    user: User, image: Path, left: Leftovers, server: str
) -> None:
    one, two = user.home / "one.sqfs", user.home / "two.bin"
    squashfs(one, word=b"one\n")
    squashfs(two, "-comp", "gzip", word=b"two\n")
    argv = ["udi-run", f"--fuse={server}", f"--volume={one}:/data/one", f"-V{two}:/two:ro", image]
    script = "cat /data/one/word /two/word; touch /two/x; grep -c nosuid,nodev /proc/mounts"
    done = user.run(*argv, "sh", "-c", f"{script}; ls -A /two; grep ' /two ' /proc/mounts")
    assert done.stdout.startswith("one\ntwo\n"), done.stderr
    assert "sub\nword\n" in done.stdout and "Read-only file system" in done.stderr
    assert f"{two} /two fuse.{server} ro,nosuid,nodev," in done.stdout


@pytest.mark.parametrize("rung", ["squashfuse_ll", "directory"])
@pytest.mark.needs("squashfuse")
def test_whatever_the_image_is(user: User, image: Path, left: Leftovers, rung: str) -> None:
    squashfs(user.home / "x.sqfs", word=b"one\n")
    subprocess.run(["unsquashfs", "-q", "-n", "-d", user.home / "root", image], check=False)
    argv = ["udi-run", f"--fuse={rung}", f"--volume={user.home}/x.sqfs:/data"]
    what = image if rung != "directory" else user.home / "root"
    for layer in ("overlay", "underlay"):
        done = user.run(*argv, f"--layer={layer}", what, "cat", "/data/word")
        assert done.stdout == "one\n", done.stderr


def test_the_rule_which_files_are_meant(user: User, image: Path, left: Leftovers) -> None:
    """By content and by the destination's name; :sqfs and :bind say it."""
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    text = user.home / "text"
    text.write_text("some text\n")
    kinds = {}
    for name, volume in {
        "a": f"{file}:/data",
        "b": f"{file}:/data/y.sqfs",
        "c": f"{file}",
        "d": f"{file}:/data:bind",
        "e": f"{file}:/data/y.sqfs:sqfs",
        "f": f"{text}:/data",
    }.items():
        plan = json.loads(user.run("udi-run", "--explain=json", f"-V{volume}", image).stdout)
        steps = [step for step in plan["steps"] if step.get("reason", "").startswith("volume")]
        kinds[name] = [step["type"] for step in steps]
    whole, directory = ["Mount"], ["Squashfs"]
    assert kinds == dict.fromkeys("ae", directory) | dict.fromkeys("bcdf", whole)
    said = user.run("udi-run", "--explain", f"-V{file}:/data", image).stdout
    assert re.search(rf"^volume +{file} on /data \(squashfs,ro,nosuid,nodev\)  volume", said, re.M)
    done = user.run("udi-run", f"-V{file}:/data:bind", image, "head", "-c4", "/data")
    assert done.stdout == "hsqs", done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("{text}:/data:sqfs", "it is no squashfs file"),
        ("{home}:/data:sqfs", "it is a directory, and sqfs wants a squashfs file"),
        ("/dev/null:/data:sqfs", "it is a device, and sqfs wants a squashfs file"),
        ("{home}/none:/data:sqfs", "no such file or directory on the host"),
        ("{file}:/data:sqfs:rw", "sqfs and rw contradict each other"),
        ("{file}:/data:sqfs:bind", "sqfs and bind contradict each other"),
        ("{file}:/data:perNodeCache=size=1M:sqfs", "perNodeCache with sqfs"),
        ("{file}:/data:rw", "mounted read-only: not rw"),
        ("{file}:/data:slave", "mounted read-only: not slave"),
        ("{short}:/data", "it is cut off: "),
        ("{old}:/data", "it is not of squashfs version 4.0"),
        ("{root}:/data", "serving volume {root} on /data failed: "),
        ("{other}:/data", "there is no decompressor for unknown here"),
        ("{secret}:/data:sqfs", "Permission denied"),
        ("{encrypted}:/data", "an encrypted squashfs"),
        ("{sif}:/data", "is beyond its end"),
        ("{file}:/bin/busybox", "it is a file in the image, and a directory is to be mounted"),
    ],
)
def test_what_is_refused(user: User, image: Path, left: Leftovers, flags: str, words: str) -> None:
    names = {n: user.home / f"{n}.x" for n in ("short", "old", "root", "other", "encrypted", "sif")}
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    whole = file.read_bytes()
    names["short"].write_bytes(whole[:200])
    names["old"].write_bytes(whole[:28] + b"\3" + whole[29:])
    names["root"].write_bytes(whole[:32] + b"\xff" * 8 + whole[40:])
    names["other"].write_bytes(whole[:20] + b"\x09" + whole[21:])
    names["encrypted"].write_bytes(sifs.sif(whole, sifs.partition(5)))
    names["sif"].write_bytes(sifs.sif(whole)[:500])
    (user.home / "text").write_text("some text\n")
    secret = user.home / "secret"
    secret.touch(mode=0)
    known = {**names, "file": file, "home": user.home, "text": user.home / "text", "secret": secret}
    done = user.run("udi-run", "--fuse=udi", f"-V{flags.format(**known)}", image, "true")
    assert done.returncode == 125 and done.stderr.startswith("udi-run: "), done.stderr
    assert words.format(**known) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("server", SERVERS)
def test_a_sif_file(user: User, image: Path, left: Leftovers, server: str) -> None:
    """Its root file system, or its only other partition."""
    whole = squashfs(user.home / "x.sqfs", word=b"one\n").read_bytes()
    for name, kind in (("image.sif", sifs.PRIMARY), ("data.sif", 3)):
        (user.home / name).write_bytes(sifs.sif(whole, sifs.partition(part=kind)))
        argv = ["udi-run", f"--fuse={server}", f"-V{user.home}/{name}:/data", image]
        assert user.run(*argv, "cat", "/data/word").stdout == "one\n"


def test_thirty_of_them_have_one_process(user: User, image: Path, left: Leftovers) -> None:
    words = []
    for number in range(30):
        squashfs(user.home / f"{number}.sqfs", word=b"%d\n" % number)
        words.append(f"--volume={user.home}/{number}.sqfs:/data/{number}")
    one = Rank(user, "udi-run", *words, image).ready()
    assert len(volumes(left)) == 1
    assert one.end()[0] == 0
    done = user.run("udi-run", *words, image, "sh", "-c", "cat /data/*/word")
    assert sorted(map(int, done.stdout.split())) == list(range(30)), done.stderr


def test_ranks_share_them_and_a_changed_file_ends_a_kept_container(
    user: User, image: Path, left: Leftovers
) -> None:
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    argv = ["udi-run", "--keep=60", "--share=x", f"-V{file}:/data", image]
    one = Rank(user, *argv).ready()
    two = Rank(user, *argv).ready()
    assert one.namespaces == two.namespaces and len(volumes(left)) == 1
    assert one.end()[0] == 0 and two.end()[0] == 0
    first = volumes(left)
    assert user.run(*argv, "cat", "/data/word").stdout == "one\n"
    assert volumes(left) == first
    file.rename(user.home / "old")
    squashfs(user.home / "y.sqfs", word=b"two\n").rename(file)
    assert user.run(*argv, "cat", "/data/word").stdout == "two\n"
    assert user.run("udi", "stop", "--all").returncode == 0


def test_a_server_that_is_killed(user: User, image: Path, left: Leftovers) -> None:
    """Whoever reads gets an error, and the command's user a line."""
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    script = "echo up; read x; cat /data/word || cat /bin/nothing; echo ended"
    argv = ["udi-run", f"-V{file}:/data", image, "sh", "-c", script]
    said = (user.home / "said").open("a")
    one = user.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
    assert one.stdout and one.stdin and one.stdout.readline() == "up\n"
    os.kill(volumes(left)[0], signal.SIGKILL)
    wait_for(lambda: "can't be read" in (user.home / "said").read_text())
    assert one.communicate("\n", timeout=60)[0] == "ended\n"
    text = (user.home / "said").read_text()
    assert (
        "udi-run: volume /data can't be read any more, since its server has ended: killed" in text
    )
    assert "Transport endpoint is not connected" in text


def test_a_file_that_is_damaged_or_vanishes(user: User, image: Path, left: Leftovers) -> None:
    """What was removed is read on; what was overwritten is an error of whoever reads it."""
    data = os.urandom(1 << 20)
    file = squashfs(user.home / "x.sqfs", "-noD", "-noF", word=data, other=b"one\n")
    script = "echo up; read x; cat /data/other; cat /data/word | wc -c"
    for name, how in (("removed", Path.unlink), ("cut", lambda path: os.truncate(path, 4096))):
        copy = user.home / name
        copy.write_bytes(file.read_bytes())
        argv = ["udi-run", f"-V{copy}:/data", image, "sh", "-c", script]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        one = user.popen(*argv, **pipes)
        assert one.stdout and one.stdout.readline() == "up\n"
        how(copy)
        out, errors = one.communicate("\n", timeout=60)
        if name == "removed":
            assert out == f"one\n{1 << 20}\n" and not errors
        else:
            assert errors.count("Input/output error") == 1 + ("one" not in out), errors


def test_volumes_inside_one_another(user: User, image: Path, left: Leftovers) -> None:
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    (user.home / "in").mkdir()
    (user.home / "in/own").write_text("own\n")
    argv = ["udi-run", f"-V{file}:/data", f"-V{user.home}/in:/data/sub", image]
    assert user.run(*argv, "cat", "/data/sub/own", "/data/word").stdout == "own\none\n"
    argv = ["udi-run", f"-V{file}:/data", f"-V{user.home}/in:/data/none", image]
    done = user.run(*argv, "true")
    assert f"mount point /data/none is not in {file} and can't be made there" in done.stderr
    argv = ["udi-run", f"-V{user.home}/in:/data", f"-V{file}:/data/sq", image]
    assert user.run(*argv, "cat", "/data/sq/word").stdout == "one\n"


def test_a_mount_of_the_site(user: User, image: Path, left: Leftovers) -> None:
    """[[mount]] with options = ["sqfs"], with what the site and the user mount in it."""
    file = squashfs(user.home / "x.sqfs", word=b"one\n")
    (user.home / "sif").write_bytes(sifs.sif(squashfs(user.home / "y", word=b"two\n").read_bytes()))
    (user.home / "in").mkdir()
    (user.home / "in/own").write_text("own\n")
    site = user.home / "site/udi.toml"
    site.parent.mkdir()
    rows = (
        f'source = "{file}"\ndestination = "/data"\noptions = ["sqfs"]',
        f'source = "{user.home}/in"\ndestination = "/data/sub"',
        f'source = "{user.home}/sif"\ndestination = "/two"\noptions = ["sqfs", "ro"]',
        'source = "/nowhere/x"\ndestination = "/no"\noptions = ["sqfs"]\nrequired = false',
    )
    site.write_text("".join(f"[[mount]]\n{row}\n" for row in rows))
    env = {"UDI_SITE_DIR": str(site.parent)}
    words = ("cat", "/data/word", "/data/sub/own", "/two/word")
    for _ in range(2):  # the second by the flattened copy of the configuration
        done = user.run("udi-run", image, *words, env=env)
        assert (done.stdout, done.stderr) == ("one\nown\ntwo\n", "")
    assert user.run("udi", "config", "check", env=env).returncode == 0
    said = user.run("udi-run", "--explain", image, env=env).stdout
    assert re.search(rf"{file} on /data \(squashfs.*default mount \({site}:1\)", said)
    # The user's own volume lies over it.
    done = user.run("udi-run", f"-V{user.home}/in:/data", image, "cat", "/data/own", env=env)
    assert done.stdout == "own\n", done.stderr
    for row, words_of in (
        (rows[0].replace(str(file), "/usr"), "it is a directory, and sqfs wants a squashfs file"),
        (rows[0].replace(str(file), "/etc/passwd"), "it is no squashfs file"),
        (rows[0].replace("x.sqfs", "none"), "no such file or directory on the host"),
        (rows[0].replace('"sqfs"', '"sqfs", "slave"'), "sqfs and slave contradict each other"),
    ):
        site.write_text(f"[[mount]]\n{row}\n")
        done = user.run("udi-run", image, "true", env=env)
        assert done.returncode == 125 and words_of in done.stderr, done.stderr


def test_a_site_that_checks_what_is_read(user: User, image: Path, left: Leftovers) -> None:
    (user.home / "site").mkdir()
    (user.home / "site/udi.toml").write_text('[image]\nverify = "always"\n')
    file = squashfs(user.home / "x.sqfs", word=b"one\n" * 5000)
    env = {"UDI_SITE_DIR": str(user.home / "site")}
    listed = user.home / "y.sqfs"
    user.run("udi", "export", file, listed, check=True)
    for one in (file, listed):
        done = user.run("udi-run", f"-V{one}:/data", image, "wc", "-l", "/data/word", env=env)
        assert done.stdout == "5000 /data/word\n", done.stderr
    whole = bytearray(listed.read_bytes())
    whole[110] ^= 1
    listed.write_bytes(whole)
    done = user.run("udi-run", f"-V{listed}:/data", image, "cat", "/data/word", env=env)
    words = f"serving volume {listed} on /data failed: window 0 of 1 MiB"
    assert done.returncode == 125 and words in done.stderr, done.stderr
