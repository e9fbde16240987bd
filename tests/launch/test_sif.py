"""Apptainer's SIF files run in place: by each server, with their runscript and variables."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.launch import scripts
from tests.commands.test_sif import ENV, squashfs
from tests.conftest import User
from tests.kit import images, probes, sifs
from tests.kit.nodes import Leftovers, Rank, counted
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

SERVERS = [
    "udi",
    *(
        pytest.param(name, marks=pytest.mark.needs(word))
        for name, word in (
            ("squashfuse_ll", "squashfuse"),
            ("squashfuse", "squashfuse"),
            ("pyfuse3", "pyfuse3"),
            ("fuse-python", "fuse-python"),
        )
    ),
]


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found
        found.check()


@pytest.fixture
def app(user: User) -> Path:
    """A file with a runscript that says its words, and scripts that set variables."""
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, ENV), signed=True))
    return path


@pytest.mark.parametrize("server", SERVERS)
def test_by_each_server(user: User, app: Path, left: Leftovers, server: str) -> None:
    script = 'echo "$A" "$LD_LIBRARY_PATH" "${APPTAINER_X-unset}"; echo "$B"; echo "$PATH"'
    env = {"A": "the caller's", "LC_X": "kept"}
    done = user.run("udi-run", f"--fuse={server}", "app.sif", "sh", "-c", script, env=env)
    assert done.stdout.startswith("from the image /opt/lib unset\nx\ny\n"), done.stderr
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/app"
    assert done.stdout.endswith(f"\n{path}\n")
    assert not done.stderr


def test_what_is_run_without_a_command(user: User, app: Path, left: Leftovers) -> None:
    other = user.home / "other"
    other.write_bytes(app.read_bytes())
    for words, said in (
        (["app.sif"], "run\n"),
        (["./app.sif"], "run\n"),
        (["--entrypoint", "./app.sif", "a", "b c"], "run a b c\n"),
        (["--entrypoint", "./other", "a"], "run a\n"),
        (["app.sif", "echo", "in"], "in\n"),
        (["--entrypoint=/bin/echo", "app.sif"], "\n"),
    ):
        done = user.run("udi-run", *words)
        assert (done.stdout, done.stderr) == (said, ""), words
    assert user.run("udi-run", "./other", input="echo sh\n").stdout == "sh\n"


def test_ranks_share_what_the_scripts_have_set(user: User, left: Leftovers) -> None:
    """They are sourced once for a container, and see no variable of the caller's."""
    env = {"1.sh": 'echo x >>/h/count; export SET="by ${RANK-nobody}"; unset MINE\n'}
    (user.home / "app.sif").write_bytes(sifs.sif(squashfs(user.home, env)))
    argv = ["udi-run", "--keep=60", "--share=x", f"-V{user.home}:/h", "app.sif"]
    known = {"MINE": "mine", "RANK": "1", "SET": "the caller's"}
    one = Rank(user, *argv, env=known).ready()
    show = ("sh", "-c", 'echo "$SET, $MINE, $RANK"')
    done = user.run(*argv, *show, env={**known, "RANK": "2"})
    assert done.stdout == "by nobody, mine, 2\n", done.stderr
    assert user.run(*argv, env=known).stdout == "run\n"
    over = [*argv[:3], "--env=SET=over", *argv[3:]]
    assert user.run(*over, *show, env=known).stdout == "over, mine, 1\n"
    assert (user.home / "count").read_text() == "x\n"
    assert one.end()[0] == 0
    env["1.sh"] += "export SET=anew\n"
    (user.home / "new").write_bytes(sifs.sif(squashfs(user.home, env)))
    (user.home / "new").rename(user.home / "app.sif")
    assert user.run(*argv, *show, env=known).stdout == "anew, mine, 1\n"
    assert user.run("udi", "stop", "--all").returncode == 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "failed: the image's sh ended with 3"),
        ("echo '\x1b[31mbad' >&2; exit 1", "the image's sh ended with 1: "),
        ("kill -KILL $$", "failed: killed by signal 9"),
        ("export A=$(head -c 1100000 /dev/zero | tr '\\0' x)", "failed: "),
        ("while :; do echo '\x1b[31mbad'; done", "they took more than 1 s"),
        ("trap '' TERM; (trap '' TERM; sleep 1000) & wait", "they took more than 1 s"),
    ],
    ids=["exit", "escape", "killed", "large", "prints", "waits"],
)
def test_scripts_that_fail(user: User, left: Leftovers, script: str, words: str) -> None:
    """One line, no escape, and no process is left."""
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, {"1.sh": f"{script}\n"})))
    code = (
        "import sys; from rootless_udi.launch import scripts; scripts.SECONDS = 1; "
        "from rootless_udi.run import main; main(sys.argv[1:])"
    )
    argv = ["python3", "-c", code, "app.sif", "echo", "in"]
    done = user.run(*argv, env={"PYTHONPATH": str(images.__file__).rpartition("/tests/")[0]})
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    start = "udi-run: sourcing /.singularity.d/env/*.sh of app.sif failed: "
    assert done.stderr.startswith(start) and words in done.stderr and "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 2 and "udi import FILE NAME" in done.stderr


def test_what_they_print_is_not_the_commands(user: User, left: Leftovers) -> None:
    env = {"1.sh": "echo out; echo err >&2; (sleep 100; echo late) &\nexport A=b\n", "2.sh": "no\n"}
    (user.home / "app.sif").write_bytes(sifs.sif(squashfs(user.home, env)))
    done = user.run("sh", "-c", "trap '' CHLD; exec udi-run app.sif sh -c 'echo $A'")
    assert (done.stdout, done.stderr) == ("b\n", "")


def test_an_image_without_a_shell(user: User, left: Leftovers) -> None:
    entries: list[images.Entry] = [
        (d, None, {}) for d in ("bin", "usr", ".singularity.d", ".singularity.d/env")
    ]
    busybox = next(one for one in images.busybox_entries() if one[0] == "bin/busybox")
    argv: list[str | Path] = [
        "mksquashfs",
        "-",
        user.home / "x",
        "-tar",
        "-quiet",
        "-no-progress",
        "-comp",
        "gzip",
    ]
    subprocess.run(argv, input=images.tar([*entries, busybox]), check=True, capture_output=True)
    (user.home / "app.sif").write_bytes(sifs.sif((user.home / "x").read_bytes()))
    for more, said in (((), "warning: the variables of app.sif are not known"), (("--quiet",), "")):
        done = user.run("udi-run", *more, "app.sif", "/bin/busybox", "echo", "in")
        assert done.stdout == "in\n" and said in done.stderr
    done = user.run("udi-run", "--quiet", "app.sif")
    assert done.returncode == 127 and "/.singularity.d/runscript: not found" in done.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (sifs.partition(machine=b"04"), "app.sif is for arm64, and this machine is"),
        (sifs.partition(2), "its root file system is ext3"),
        (sifs.partition(5), "its root file system is an encrypted squashfs"),
        (sifs.partition(part=3), "it has no root file system"),
    ],
)
@pytest.mark.skipif(os.uname().machine == "aarch64", reason="it is for this machine then")
def test_what_is_refused(user: User, left: Leftovers, extra: bytes, words: str) -> None:
    path = user.home / "app.sif"
    path.write_bytes(sifs.sif(squashfs(user.home, {}), extra))
    done = user.run("udi-run", "./app.sif", "true")
    assert done.returncode == 125 and words in done.stderr, done.stderr
    path.write_bytes(sifs.sif(b"hsqs" + bytes(500)))
    done = user.run("udi-run", "./app.sif", "true")
    assert "is no squashfs file: " in done.stderr and "Traceback" not in done.stderr
    path.write_bytes(sifs.sif(squashfs(user.home, {})[:9000]))
    assert "it is cut off: 9000 bytes" in user.run("udi-run", "./app.sif", "true").stderr


def test_what_is_known_of_it(user: User, app: Path, left: Leftovers) -> None:
    facts = json.loads(user.run("udi", "inspect", "app.sif").stdout)
    assert facts["labels"] == {"Author": "me", "org.label-schema.build-arch": "amd64"}
    assert facts["entrypoint"] == ["/.singularity.d/runscript"] and facts["unchecked"]
    assert "has no history" in user.run("udi", "history", "app.sif").stderr
    done = user.run("udi", "export", "--format=oci-archive", "app.sif", "x.tar")
    assert "a SIF file's variables are set by scripts" in done.stderr
    assert not (user.home / "x.tar").exists()
    for words in (("push", "app.sif", "127.0.0.1:1/x:1"), ("verify", "app.sif")):
        done = user.run("udi", *words)
        assert "it is a SIF file" in done.stderr and "udi import " in done.stderr


def test_exported_and_optimized(user: User, app: Path, left: Leftovers) -> None:
    """A squashfs file with the same variables, runscript and labels."""
    assert user.run("udi", "export", "app.sif", "x.sqfs").returncode == 0
    user.run("udi", "profile", "-o", "p", "app.sif", "--", "sh", "-c", "exec echo", check=True)
    done = user.run("udi", "optimize", "app.sif", "p", "-o", "y.sqfs")
    assert done.stdout == "y.sqfs\n", done.stderr
    for name in ("x.sqfs", "y.sqfs"):
        found = user.run("udi-run", name, "sh", "-c", 'echo "$A"; echo "$B"')
        assert found.stdout == "from the image\nx\ny\n", found.stderr
        assert user.run("udi-run", "--entrypoint", name, "a").stdout == "run a\n"
        assert user.run("udi", "verify", name).returncode == 0
    facts = json.loads(user.run("udi", "inspect", "x.sqfs").stdout)
    assert facts["labels"]["Author"] == "me" and "offset" not in facts


def test_checked(user: User, app: Path) -> None:
    done = user.run("udi", "check", "--json", "app.sif", "--", "sh", "-c", "exit 3")
    assert done.returncode in (0, 3), done.stderr
    found = json.loads(done.stdout)["sites"][0]
    assert found["findings"], done.stdout


def test_what_the_plan_says(user: User, app: Path, left: Leftovers) -> None:
    plan = json.loads(user.run("udi-run", "--explain=json", "app.sif").stdout)
    assert plan["scripts"] == "/.singularity.d/env" and plan["root"]["offset"] % 4096 == 0
    assert plan["notes"] == ["the image's signatures are not checked"]
    assert "/.singularity.d/env/*.sh" in user.run("udi-run", "--explain", "app.sif").stdout
    done = user.run("udi-run", "--trace=p", "app.sif", "true")
    assert done.returncode == 0
    # The image server writes it when it ends, after the command.
    wait_for(lambda: (user.home / "p").exists())
    assert "udi profile 1" in (user.home / "p").read_text()


def test_changes_are_operations() -> None:
    before = {"A": "1", "HOME": "/h", "PATH": "/bin"}
    after = {"A": "1", "C": "3", "HOME": "/", "PATH": "/bin", "UDI_X": "x"}
    after["LD_LIBRARY_PATH"] = "/x:/.singularity.d/libs"
    path = ("set", "PATH", "/bin"), ("set", "LD_LIBRARY_PATH", "/x")
    assert scripts.changes(before, after) == [("set", "C", "3"), *path]


@pytest.mark.needs("apptainer", "skopeo")
def test_apptainers_own(user: User, left: Leftovers) -> None:
    """The same words to both give the same."""
    sections = '%environment\n  export B="b of $A" C="$MINE"\n%runscript\n  echo run "$@" "$B"\n'
    sifs.by_apptainer(user, sections)
    env = {"MINE": "of the caller", "A": "the caller's"}
    words = ("sh", "-c", 'echo "$A, $B, $C, $MINE"')
    ours = user.run("udi-run", "app.sif", *words, env=env)
    theirs = user.run(probes.APPTAINER, "exec", "app.sif", *words, env=env)
    assert ours.stdout == theirs.stdout == "docker, b of docker, , of the caller\n", ours.stderr
    assert user.run("udi-run", "--entrypoint", "app.sif", "x").stdout == "run x b of docker\n"
    assert (
        user.run("udi-run", "app.sif").stdout == user.run(probes.APPTAINER, "run", "app.sif").stdout
    )
