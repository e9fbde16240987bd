"""udi-run in C comes to the decisions of the Python one, for any command line and any record.

Both print what they would do (UDI_JOIN_PLAN=1). Where C hands over it is Python's own answer that
it prints: that is right too, and `by` says who answered.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from joiner import build
from rootless_udi import run
from rootless_udi.base import process
from rootless_udi.base.errors import UdiError
from rootless_udi.launch import command, joinplan
from rootless_udi.node import launcher, publish
from rootless_udi.node.record import state_of
from rootless_udi.plan import options
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("joiner")

C = str(TREE / "build/joiner/udi-run")
PYTHON = (sys.executable, "-I", "-S", "-X", "utf8=1", "-X", "ignored=", str(TREE / "bin/udi-run"))
ALIVE = f"{os.getpid()} {process.started(os.getpid())}"
Fields = list[tuple[str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory, empty; the tests run in its parent."""
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    state = runtime / "rootless_udi"
    state.mkdir(mode=0o700)
    before = os.getcwd()
    os.chdir(runtime)
    yield state
    os.chdir(before)


def fields(text: bytes) -> Fields:
    """Read a plan back."""
    found, at = [], 0
    while at < len(text):
        colon = text.index(b":", at)
        end = colon + 1 + int(text[at:colon])
        key, _, value = os.fsdecode(text[colon + 1 : end]).partition("=")
        assert text[end : end + 1] == b"\n"
        found.append((key, value))
        at = end + 1
    return found


def asked(
    program: "tuple[str, ...]", argv: list[str], env: dict[str, str]
) -> tuple[int, Fields, str]:
    done = subprocess.run([*program, *argv], env=env, capture_output=True)
    found = fields(done.stdout) if b":by=" in done.stdout[:8] else []
    return done.returncode, found, done.stderr.decode(errors="surrogateescape")


def decided(argv: list[str], env: dict[str, str]) -> "tuple[int, Fields]":
    """Return what the Python program prints, without a process for it."""
    try:
        request = options.parse(argv, env)
        if request.help or request.version:
            return 0, []
        own = command.own_variables(request)
        name, key = called(request, env)
        return 0, fields(joinplan.plan(request, env, own, name, key))
    except UdiError as error:
        return error.status, []


def called(request: options.Request, env: dict[str, str]) -> tuple[str, str]:
    """Return the container's name and the text of what it depends on."""
    who, kept = run.owners(request, env)
    return launcher.key(request, kept or who, env) if kept or who else ("", "")


def same(argv: list[str], env: dict[str, str]) -> str:
    """Compare both; return who answered where C was asked."""
    status, found, error = asked((C,), argv, env)
    if found and found[0][0] == "by":
        by = found.pop(0)[1]
        wanted = decided(argv, env)
        assert (status, found) == (wanted[0], wanted[1][1:]), error
        return by
    assert status == decided(argv, env)[0], error
    return ""


# Pools of what means something, among any text.

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
VALUE = TEXT | st.sampled_from(
    [
        "0",
        "1,2",
        "all",
        "none",
        " void",
        "a=b",
        "GPU-1, 1",
        "30",
        "-1",
        "/",
        "/usr",
        "x.sqfs",
        "auto",
        "\u0664",
    ]
)
BARE = [f"-{o.short}" for o in options.OPTIONS if o.short]
LONG = [f"--{o.name}" for o in options.OPTIONS if o.name not in ("share", "env-file", "edf")]
CHOICES = sorted({c for o in options.OPTIONS for c in (*o.choices, *o.next)})
WORD = (
    st.sampled_from(["--", "-", "-Eq", "-qE-", "-e", "A=1", "-eB=2", "-V/a:/b", "run", "shell"])
    | st.sampled_from(BARE)
    | st.sampled_from(LONG)
    | st.builds("{}={}".format, st.sampled_from(LONG), VALUE | st.sampled_from(CHOICES))
    | st.builds("--env={}={}".format, TEXT, TEXT)
    | st.sampled_from(["img.sqfs", "/img.sqfs", "./img", "img:tag", "oci:dir", "oci:/dir"])
    | VALUE
)
NAMES = [
    *("PATH", "PWD", "HOME", "LD_PRELOAD"),
    *("CONDA_PREFIX", "BASH_FUNC_ml%%", "PYTHONPATH", "UDI_IMAGE"),
    *("UDI_VOLUME", "UDI_MPI", "UDI_LAYER", "UDI_MODULE", "UDI_KEEP"),
    *("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PALS_APID"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURMD_NODENAME"),
    *("A", "B"),
]
NAME = st.sampled_from(NAMES) | st.text("ABC_a.-%", min_size=1, max_size=4)
ENVIRON = st.dictionaries(NAME, VALUE, max_size=8)
OPERATION = st.builds(
    "{}\0{}\0{}".format, st.sampled_from(["set", "unset", "append", "prepend"]), NAME, VALUE
)
SAME = st.builds(
    "{}\0{}\0{}".format,
    st.sampled_from(["file", "link", "place", "variable", "x"]),
    st.sampled_from(["/", "/etc/passwd", "/none", "/proc/self/exe"]) | TEXT,
    st.sampled_from(["-", "1 2", state_of("place", "/"), state_of("file", "/etc/passwd")]) | TEXT,
)
RECORD = st.lists(
    st.tuples(st.sampled_from(["before", "after"]), OPERATION)
    | st.tuples(st.sampled_from(["entrypoint", "cmd", "workdir"]), VALUE)
    | st.tuples(st.sampled_from(["dead", "server", "image", "x"]), st.just("") | VALUE)
    | st.tuples(st.just("same"), SAME)
    | st.tuples(st.just("server"), st.sampled_from([ALIVE, "4194303 7", "1 1 1", "0 1"])),
    max_size=8,
)
DAMAGE = st.none() | st.tuples(st.integers(0), st.integers(0, 3), st.binary(max_size=3))


def damaged(data: bytes, damage: "tuple[int, int, bytes] | None") -> bytes:
    if damage is None:
        return data
    at, cut, more = damage[0] % (len(data) + 1), damage[1], damage[2]
    return data[:at] + more + data[at + cut :] if cut < 3 else data[:at]


def write(place: Path, name: str, pairs: Fields, damage: "tuple[int, int, bytes] | None") -> None:
    for old in place.iterdir():
        old.unlink()
    path = place / f"{name}.2"
    path.touch(mode=0o600)
    path.write_bytes(damaged(publish.content(pairs, f"{ALIVE}\n".encode()), damage))


def environment(place: Path, more: dict[str, str]) -> dict[str, str]:
    env = {"HOME": str(place.parent), "XDG_RUNTIME_DIR": str(place.parent), **more}
    if "PATH" in env:
        # Where C finds Python.
        env["PATH"] += f":{Path(sys.executable).parent}"
    return {**env, "UDI_JOIN_PLAN": "1"}


@settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(argv=st.lists(WORD, max_size=6), more=ENVIRON, record=RECORD, damage=DAMAGE)
@example(argv=["img"], more={}, record=[("same", "\0".join(("file", "", "1 2")))], damage=None)
def test_both_decide_alike(
    place: Path,
    argv: list[str],
    more: dict[str, str],
    record: Fields,
    damage: "tuple[int, int, bytes] | None",
) -> None:
    argv = ["--share=job", *argv]
    env = environment(place, more)
    try:
        request = options.parse(argv, env)
        name, key = called(request, env)
    except UdiError:
        name, key = "x", ""
    write(place, name, [("request", key), ("user", "1"), ("mnt", "2"), *record], damage)
    same(argv, env)


USUAL = [
    ["--share=job", "img.sqfs"],
    ["--share=job", "img.sqfs", "--", "a", "--env=x"],
    ["-qE", "--share", "job", "-eA=1", "--env=B=a b", "-V/a:/b", "-V", "/c:/d", "img", "sh", "-c"],
    ["--image=/img", "--share=job", "--mpi", "--gpu=nvidia", "--writable", "--home", "cmd"],
    ["--share=job", "--workdir", "/x", "img", "a"],
    ["--share=job", "--workdir", "img", "a"],
    ["--share=job", "--entrypoint", "--image=img", "a"],
    ["--share=job", "--entrypoint=/bin/x", "--shifter", "img", "a"],
]


@pytest.mark.parametrize("argv", USUAL, ids=range(len(USUAL)))
@pytest.mark.parametrize("record", [True, False])
def test_what_is_usual_is_decided_in_c(place: Path, argv: list[str], record: bool) -> None:
    env = usual(place, argv, record)
    assert same(argv, env) == "c"


def usual(place: Path, argv: list[str], record: bool) -> dict[str, str]:
    """Write a record for a usual command line, or one of another container; return variables."""
    more = {"PWD": "/nowhere", "CUDA_X": "1", "NVIDIA_VISIBLE_DEVICES": " 1 , GPU-x", "B": ""}
    env = environment(place, {**more, "PMI_RANK": "1", "LD_PRELOAD": "x", "LMOD_x": "y"})
    request = options.parse(argv, env)
    name, key = called(request, env)
    pairs = [("request", key), ("user", "1"), ("mnt", "2"), ("server", ALIVE), ("workdir", "/w")]
    pairs += [("before", "set\0A\0x"), ("before", "append\0B\0y"), ("after", "prepend\0B\0\0z")]
    write(place, name if record else "other", [*pairs[:-1], ("entrypoint", "/e")], None)
    return env


KEPT = [
    ["--keep=30", "img.sqfs"],
    ["--keep", "030", "img"],
    ["--keep=0", "img"],
    ["img"],
    ["--share=auto", "--keep=5", "--no-cwd", "img"],
    ["--keep=5", "--shifter", "img"],
    ["--keep=5", "--home", "img"],
    ["--keep=5", "-V.HERE.", "img"],
    ["--keep=5", "-V.HERE./:.HERE./:ro", "-V/x:/y", "img"],
    ["--keep=5", "-V.HERE.:/work", "img"],
    ["--keep=5", "-V/:/", "img"],
    ["--keep=5", "--share=job", "--writable", "img"],
    ["--keep=5", "--share=job", "-V/tmp:/x:perNodeCache=size=1M", "img"],
]
BY_PYTHON = [
    ["--keep=-5", "img"],
    ["--keep=86401", "img"],
    ["--keep=1.5", "img"],
    ["--keep=99999999999999999999", "img"],
    ["--keep=5", "--writable", "img"],
    ["--keep=5", "--trace=/x", "img"],
    ["--keep=5", "--pull=always", "img"],
    ["--keep=5", "--share=off", "img"],
    ["--keep=5", "-V/tmp:/x:perNodeCache=size=1M", "img"],
]
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
JOBS = [{}, {"JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, STEP, {"PWD": "/tmp"}]


@pytest.mark.parametrize("argv", [*KEPT, *BY_PYTHON], ids=" ".join)
def test_kept_containers_are_found_alike(place: Path, argv: list[str]) -> None:
    """With what is mounted unchanged, and with something changed; and where nothing is kept."""
    words = [word.replace(".HERE.", os.getcwd()) for word in argv]
    mount = str(place.parent)
    for more in JOBS:
        for state in (state_of("place", mount), state_of("file", mount), "-", None):
            env = environment(place, {"PWD": os.getcwd(), **more})
            try:
                name, key = called(options.parse(words, env), env)
            except UdiError:
                name, key = "x", ""
            pairs = [("request", key), ("user", "1"), ("mnt", "2")]
            pairs += [("same", f"place\0{mount}\0{state}")] if state else []
            write(place, name or "x", pairs, None)
            by = same(words, env)
            assert by == ("" if argv in BY_PYTHON else "c" if name else "python")


@pytest.mark.slow
@pytest.mark.needs("aarch64")
def test_it_is_the_same_on_aarch64(place: Path, tmp_path: Path) -> None:
    """Cross-compiled, and run by qemu."""
    program = tmp_path / "udi-run"
    flags = ["-Werror"]
    assert build.compiled(["aarch64-linux-gnu-gcc", "-static"], program, flags) == ""
    for argv in USUAL:
        env = usual(place, argv, True)
        status, found, _ = asked(("qemu-aarch64-static", str(program)), argv, env)
        assert status == 0 and found[0] == ("by", "c")
        # qemu turns the order of the variables round.
        assert sorted(found) == sorted(asked((C,), argv, env)[1])


LAUNCHERS = [
    {"PMI_RANK": "3"},
    {"PMIX_RANK": "3", "PBS_JOBID": "7.x"},
    {"PMI_FD": "5", "JOB_ID": "7", "SGE_TASK_ID": "undefined"},
    {"LSB_JOBID": "7"},
    {"LSB_JOBID": "7", "LSB_JOBINDEX": ""},
    {"PALS_APID": "x"},
    {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n"},
    {"SLURM_JOB_ID": "7"},
]


@pytest.mark.parametrize("more", LAUNCHERS, ids=lambda more: "+".join(more))
@pytest.mark.parametrize("wrapped", [False, True])
def test_launchers_are_told_alike(place: Path, more: dict[str, str], wrapped: bool) -> None:
    """As two processes of one parent, also behind wrapper scripts that are ranks themselves."""
    env = environment(place, more)
    script = ("/bin/sh", "-c", '"$@" & wait $!', "sh") if wrapped else ()
    answers = [asked((*script, *program), ["img"], env) for program in ((C,), PYTHON)]
    who = [found.pop(0)[1] for _, found, _ in answers]
    requests = [dict(found).get("request", "") for _, found, _ in answers]
    if wrapped and "LSB_JOBID" in more:
        # The launcher is the shell above, another one each time.
        assert requests[0] and requests[1]
    else:
        assert answers[0] == answers[1]
    assert who == ["c" if requests[0] else "python", "python"]


def test_the_table_in_c_is_the_python_one(tmp_path: Path) -> None:
    """It is made of it at each build; what is built is as new as the tables."""
    text = build.tables()
    for option in options.OPTIONS:
        assert f'{{"{option.name}", ' in text
    newest = max(path.stat().st_mtime for path in (*build.SOURCES, TREE / "joiner/joiner.h"))
    assert os.stat(C).st_mtime >= newest


def test_the_sources_stay_small() -> None:
    for path in (*build.SOURCES, TREE / "joiner/joiner.h"):
        assert path.read_text().count("\n") <= 200, path
