"""udi-run in C holds on to its memory, whatever arguments, environment and record say.

It is compiled with the sanitizers and run on inputs made at random: always the same ones for a
given number. Python is /bin/true here, so that handing over is cheap.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from joiner import build
from rootless_udi.base import process
from rootless_udi.launch import known
from rootless_udi.node import launcher, publish
from rootless_udi.node import record as record_of
from rootless_udi.plan import options
from rootless_udi.shifter import options as shifter
from tests.conftest import User
from tests.joiner.test_known import STEPS, edited, noted
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("gcc")

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
QUIET = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
WORDS = [
    *("--", "-", "", "-E", "-qE", "-eA=1", "--env=B=x", "--env==", "--workdir", "--workdir=", "/"),
    *("--gpu", "cdi:", "--mpi=", "--share=", "--volume=/a", "-V", "--image=x", "--no-cwd=1", "run"),
    *(
        "--entrypoint",
        "?",
        "x.sqfs",
        "oci:",
        "-\xff",
        "--\xff=",
        "\x01",
        "-x",
        "--shifter",
        "--env-file=variables",
        "a" * 99,
    ),
]
SHIFTER_WORDS = [
    *(
        "--",
        "-",
        "-n",
        "-nEe",
        "A=b",
        "--e",
        "--env=",
        "--entry",
        "-wx",
        "-w",
        "--=",
        "-V",
        "/a:/b",
    ),
    *("--im=id:" + "aB" * 32, "-iid:", "-ilocal:x", "-i", "--module", "--env-f=variables", "\xff"),
]
NAMES = [
    *("PATH", "PWD", "HOME", "UDI_IMAGE", "UDI_SHARE", "UDI_VOLUME", "NVIDIA_VISIBLE_DEVICES"),
    *("CUDA_VISIBLE_DEVICES", "PMI_RANK", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"),
    *("SHIFTER_IMAGE", "SHIFTER_IMAGETYPE", "SHIFTER_IMAGEREQUEST", "SHIFTER_VOLUME", "SHELL"),
    *("PBS_JOBID", "JOB_ID", "SGE_TASK_ID", "LD_PRELOAD", "CONDA_", "BASH_FUNC_ml", "A", ""),
]
VALUES = [
    "",
    ",",
    " ",
    "1, 2",
    "none ",
    "all",
    "=",
    "/",
    ":",
    "::",
    "x" * 5000,
    "\xff",
    "\n",
    "\x1b",
]


def test_the_analyzer_finds_nothing(tmp_path: Path) -> None:
    # What `occupy` opens for 0, 1 and 2 is to stay open: newer compilers call that a leak.
    flags = ["-Werror", "-fanalyzer", "-Wno-analyzer-fd-leak"]
    assert build.compiled(["gcc"], tmp_path / "udi-run", flags) == ""


def words(chance: random.Random, most: int) -> list[bytes]:
    return [os.fsencode(chance.choice(WORDS)) for _ in range(chance.randrange(most))]


def environment(chance: random.Random, place: Path) -> dict[bytes, bytes]:
    """Return variables of a caller; execve(2) takes what os.environ would not."""
    found = {os.fsencode(k): os.fsencode(v) for k, v in QUIET.items()}
    for _ in range(chance.randrange(12)):
        name = chance.choice(NAMES) or "N" * chance.randrange(1, 9)
        found[os.fsencode(name)] = os.fsencode(chance.choice(VALUES))
    if chance.randrange(50) == 0:
        found |= {b"V%d" % i: b"x" for i in range(10_000)}
    if chance.randrange(3):
        found[b"UDI_JOIN_PLAN"] = b"1"
    if chance.randrange(9):
        found[b"XDG_RUNTIME_DIR"] = os.fsencode(place)
    return found


def record(chance: random.Random, key: str) -> bytes:
    """Return a record: right in most of its bytes."""
    pick = chance.choice
    pairs = [("request", key), ("user", pick("1x")), ("mnt", "2")]
    for _ in range(chance.randrange(8)):
        op = pick(["set", "unset", "append", "prepend", "clear", "x"])
        op = f"{op}\0{pick(NAMES)}\0{pick(VALUES)}"
        name = pick(["before", "after", "entrypoint", "cmd", "workdir", "dead", "server", "x"])
        pairs.append((name, op if name in ("before", "after") else pick(VALUES)))
    me = f"{os.getpid()} {process.started(os.getpid())}"
    lines = [me, "1 1", "4194303 5", "99999999999 1", "told 5", "", "x", "1 99999999999999999999"]
    tail = "\n".join(pick(lines) for _ in range(chance.randrange(6))) + pick(["", "\n"])
    if chance.randrange(9) == 0:
        # More than is read at once, cut anywhere.
        tail += pick([*lines, "\n", "4194303 5\n"]) * chance.randrange(5000) + pick(lines)
    data = bytearray(publish.content(pairs, os.fsencode(tail)))
    for _ in range(chance.choice((0, 0, 1, 2, 5))):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        data = data or bytearray(b"u")
    return bytes(data[: chance.choice((None, None, None, chance.randrange(len(data) + 1)))])


def note(chance: random.Random, key: str, place: Path) -> bytes:
    """Return what is noted of a start: right in most of its bytes."""
    pick = chance.choice
    image = place / "variables"
    pairs = [
        *(("request", key), ("until", pick((str(int(time.time()) + 300), "x", "1")))),
        *(("path", pick((str(image), "", "/"))), ("place", pick((f"{place}/rootless_udi", "/")))),
        *(("optimized", pick(("", "1"))), ("image", pick(VALUES)), ("workdir", "/")),
    ]
    for _ in range(chance.randrange(4)):
        kind, path = pick(("exact", "opened", "place", "link", "variable")), pick(("/", "/x", ""))
        state = record_of.state_of(kind, path) if kind != "variable" else ""
        pairs.append(("same", f"{kind}\0{path}\0{state}"))
    for _ in range(chance.randrange(4)):
        kind = pick(("write", "link", "mkdir", "create", "tmpfs", "bind", "slave", "x"))
        words = (kind, pick(VALUES), pick(("420", "0", "x", "9" * 30)), pick(VALUES))
        pairs.append(("step", "\0".join(words[: chance.choice((4, 4, 4, 2))])))
    data = bytearray(publish.content(pairs, b""))
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at = chance.randrange(len(data))
        data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(data)


def one(program: Path, place: Path, seed: int) -> None:
    """Run the program once; nothing but a clean end may come of it."""
    chance = random.Random(seed)
    env = environment(chance, place)
    called = chance.choice((b"udi-run", b"udi-run", b"/x/shifter"))
    argv = [b"--share=job", *words(chance, 3), b"img", *words(chance, 4)]
    # Without it, a start by itself.
    argv = argv[chance.randrange(3) == 0 :]
    if called.endswith(b"shifter"):
        env |= {b"UDI_SHARE": b"job"}
        argv = [os.fsencode(chance.choice(SHIFTER_WORDS)) for _ in range(chance.randrange(5))]
        argv = [b"--image=docker:img", *argv][chance.randrange(5) == 0 :]
    (place / "variables").write_bytes(
        chance.choice((b"A=1\n\r B=x ", b"#\n=", chance.randbytes(9)))
    )
    text = [os.fsdecode(word) for word in argv]
    name, key, plan, of_plan = "x", "", "x", ""
    try:
        seen = {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()}
        if called.endswith(b"shifter"):
            text = ["--shifter", *(shifter.translate(text, seen) or ())]
        request = options.parse(text, seen)
        name, key = launcher.key(request, "name job", seen)
        script = str(program.parent / "udi-run-python")
        plan, of_plan = launcher.key(request, known.owner(seen, script), seen)
    except Exception:
        # Refused: there is still a record.
        pass
    state = place / "rootless_udi"
    for old in state.rglob("*.2"):
        old.unlink()
    (state / f"starts/{known.PLAN}{plan}.2").touch(mode=0o600)
    (state / f"starts/{known.PLAN}{plan}.2").write_bytes(note(chance, of_plan, place))
    (state / f"{name}.2").touch(mode=0o600)
    (state / f"{name}.2").write_bytes(record(chance, key))
    argv = [] if chance.randrange(99) == 0 else [called, *argv]
    # With a folder to start in: posix_spawn(3), by Python 3.13 and later, takes no empty argv[0].
    argv = argv or [b""]
    done = subprocess.run(argv, executable=program, env=env, cwd=place, capture_output=True)
    assert done.returncode in (0, 125, 1), (seed, done.returncode, done.stderr)
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, seed


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    assert build.compiled(["gcc"], folder / "udi-run", SANITIZERS) == ""
    (folder / "udi-run-python").touch()
    (folder / "python3").symlink_to("/bin/true")
    return folder / "udi-run"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rootless_udi/starts").mkdir(mode=0o700, parents=True)
    (tmp_path / "rootless_udi").chmod(0o700)
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_random_inputs_do_no_harm(program: Path, place: Path) -> None:
    for seed in range(400):
        one(program, place, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_inputs_do_no_harm(program: Path, place: Path) -> None:
    """Ten minutes of an idle CPU."""
    for seed in range(1000, 31_000):
        one(program, place, seed)


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_known_start_holds_on_to_its_memory(user: User, box: Path) -> None:
    """From the note to the command, and with steps that fail."""
    folder = user.home / "sanitized"
    folder.mkdir()
    assert build.compiled(["gcc"], folder / "udi-run", SANITIZERS) == ""
    (folder / "udi-run-python").symlink_to(TREE / "bin/udi-run")
    user.env |= {**QUIET, "PATH": f"{folder}:{user.env['PATH']}"}
    found = noted(user, box)
    data = found.read_bytes()
    for step in (None, *STEPS):
        found.write_bytes(data)
        if step is not None:
            edited(found, step=step)
        done = user.run("udi-run", box, "sh", "-c", "echo $GREETING")
        assert (done.stdout, done.stderr, done.returncode) == ("image\n", "", 0)
        assert bool(found.stat().st_size) is (step is None)


def test_large_arguments_and_many_variables(program: Path, place: Path) -> None:
    """2 MB of arguments, 10,000 variables, no environment at all, no argv[0]."""
    env = {**QUIET, "XDG_RUNTIME_DIR": str(place)}
    argv = ["udi-run", "--share=job", *["--env=A=" + "x" * 100_000] * 15, "img", "true"]
    assert subprocess.run(argv, executable=program, env=env).returncode == 0
    many = {f"V{i}": str(i) for i in range(10_000)}
    plan = {**env, **many, "UDI_JOIN_PLAN": "1"}
    argv = ["udi-run", "--share=job", "img", "true"]
    done = subprocess.run(argv, executable=program, env=plan, capture_output=True)
    assert done.returncode == 0 and b"state=none" in done.stdout
    for words in (argv, ["", *argv[1:]]):
        done = subprocess.run(words, executable=program, env={}, cwd=place)
        assert done.returncode in (0, 1)
