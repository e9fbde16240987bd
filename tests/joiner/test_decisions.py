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
from rootless_udi.shifter import options as shifter
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("joiner")

C = str(TREE / "build/joiner/udi-run")
SHIFTER = str(TREE / "build/joiner/shifter")
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


def decided_by_shifter(argv: list[str], env: dict[str, str]) -> "tuple[int, Fields]":
    """Return what the Python program called `shifter` prints."""
    try:
        words = shifter.translate(argv, env)
    except UdiError as error:
        return error.status, []
    status, found = (0, []) if words is None else decided(["--shifter", *words], env)
    return shifter.status(status), found


def same(argv: list[str], env: dict[str, str], program: str = C) -> str:
    """Compare both; return who answered where C was asked."""
    status, found, error = asked((program,), argv, env)
    wanted = (decided if program == C else decided_by_shifter)(argv, env)
    if found and found[0][0] == "by":
        by = found.pop(0)[1]
        assert (status, found) == (wanted[0], wanted[1][1:]), error
        return by
    assert status == wanted[0], error
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
    | st.sampled_from(
        ["img.sqfs", "img.sif", "/img.sqfs", "./img", "img:tag", "oci:dir", "oci:/dir"]
    )
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


FILE = st.binary(max_size=40) | st.lists(
    st.sampled_from(
        [b"A=1", b"B=", b"#", b"\n", b"\r\n", b" ", b"=", b"\xc2\xa0", b"\xff", b"\x1c", b"Z= x "]
    ),
    max_size=9,
).map(b"".join)


@settings(max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(content=FILE, more=ENVIRON)
def test_files_of_variables_are_read_alike(
    place: Path, content: bytes, more: dict[str, str]
) -> None:
    file = place.parent / "variables"
    file.write_bytes(content)
    argv = ["--share=job", "--env-file", str(file), "--env=A=own", "img"]
    env = environment(place, {name: more[name] for name in more if name != "UDI_IMAGE"})
    try:
        name, key = called(options.parse(argv, env), env)
    except UdiError:
        name, key = "x", ""
    write(place, name, [("request", key), ("user", "1"), ("mnt", "2")], None)
    same(argv, env)


def test_a_file_of_variables_is_read_in_c(place: Path) -> None:
    file = place.parent / "variables"
    file.write_bytes("# two\n\n A=1 \nB=é  x\r\nC==\n".encode())
    env = usual(place, ["--share=job", f"--env-file={file}", "img"], True)
    assert same(["--share=job", f"--env-file={file}", "img"], env) == "c"
    for other in ("/nowhere", "/dev/null", "/"):
        assert same(["--share=job", f"--env-file={other}", "img"], env) != "c"


SHIFTER_LONG = [f"--{name[:n]}" for name in shifter.LONG for n in (len(name) - 1, len(name))]
SHIFTER_IMAGE = st.sampled_from(
    ["img", "docker:img", "custom:/x.sqfs", "local:/x", "local:x", "id:" + "aB" * 32, "id:7", "id:"]
)
SHIFTER_WORD = (
    st.sampled_from(["--", "-", "-Ev", "-n", "-nE", "-wA", "-w", "-eA=1", "-e", "A=", "A=b=", "-h"])
    | st.sampled_from(SHIFTER_LONG)
    | st.builds("{}={}".format, st.sampled_from(SHIFTER_LONG), VALUE | SHIFTER_IMAGE)
    | st.sampled_from(["--en", "--entry=/x", "-i", "-m", "none", "-V", "/a:/b", "/x/slurm_script"])
    | SHIFTER_IMAGE
    | VALUE
)
SHIFTER_NAMES = [
    *("SHIFTER_IMAGETYPE", "SHIFTER_IMAGE", "SHIFTER_IMAGEREQUEST", "SHIFTER_VOLUME"),
    *("SHIFTER_MODULE", "SLURM_SPANK_SHIFTER_IMAGEREQUEST", "SLURM_SPANK_SHIFTER_VOLUME"),
    *("SHELL", "SLURM_JOB_ID", "UDI_IMAGE", "UDI_VOLUME", "UDI_SHARE", "UDI_KEEP"),
]
SHIFTER_ENVIRON = st.dictionaries(
    st.sampled_from(SHIFTER_NAMES) | NAME,
    VALUE | SHIFTER_IMAGE | st.sampled_from(["id", "docker", "/bin/sh", "/bin/bash"]),
    max_size=6,
)


@settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(argv=st.lists(SHIFTER_WORD, max_size=5), more=SHIFTER_ENVIRON, image=st.booleans())
def test_shifter_decides_alike(
    place: Path, argv: list[str], more: dict[str, str], image: bool
) -> None:
    argv = ["--image=docker:img", *argv] if image else argv
    env = environment(place, {"UDI_SHARE": "job", **more})
    name, key = "", ""
    try:
        words = shifter.translate(argv, env)
        if words is not None:
            name, key = called(options.parse(["--shifter", *words], env), env)
    except UdiError:
        pass
    write(place, name or "x", [("request", key), ("user", "1"), ("mnt", "2")], None)
    same(argv, env, SHIFTER)


@pytest.mark.parametrize(
    ("argv", "more"),
    [
        (["--image=docker:img:1", "--volume=/a:/b;/c:/d", "a", "-x"], {}),
        (["-EV", "/a:/b", "--mod=gpu", "-i", "custom:x.sqfs", "--", "a"], {}),
        (["a"], {"SHIFTER_IMAGETYPE": "id", "SHIFTER_IMAGE": "AB" * 32, "SHIFTER_MODULE": "mpich"}),
        ([], {"SLURM_SPANK_SHIFTER_IMAGEREQUEST": "img", "SHELL": "/bin/bash"}),
        (["--entry=/e", "-eA=b", "-w/x", "a"], {"UDI_IMAGE": "img"}),
    ],
)
def test_what_is_usual_of_shifter_is_decided_in_c(
    place: Path, argv: list[str], more: dict[str, str]
) -> None:
    env = environment(place, {"UDI_SHARE": "job", **more})
    words = shifter.translate(argv, env)
    assert words is not None
    name, key = called(options.parse(["--shifter", *words], env), env)
    write(place, name, [("request", key), ("user", "1"), ("mnt", "2")], None)
    assert same(argv, env, SHIFTER) == "c"


USUAL = [
    ["--share=job", "img.sqfs"],
    ["--share=job", "img.sif", "a"],
    ["--share=job", "--entrypoint", "--image=img.sif"],
    ["--share=job", "--entrypoint=b", "img.sif"],
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
    {"FLUX_JOB_ID": "f2Qm", "FLUX_TASK_RANK": "0", "FLUX_URI": "local:///tmp/flux/local-0"},
    {"FLUX_JOB_ID": "\u01922Qm", "FLUX_TASK_RANK": "3", "FLUX_TASK_LOCAL_ID": "1"},
    {"FLUX_JOB_ID": "f2Qm", "PMI_RANK": "3"},
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
