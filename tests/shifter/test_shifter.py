"""Shifter's command line: options, variables, refusals, and the commands of NERSC's slides."""

import json
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import options
from rootless_udi.shifter import main
from rootless_udi.shifter import options as shifter
from rootless_udi.shifter.options import translate
from tests.conftest import User

HEX = "0123456789abcdef" * 4


def words(line: str, environ: "dict[str, str] | None" = None) -> list[str]:
    """Translate a command line as the shell would split it (no quotes in these tests)."""
    found = translate(line.split(), environ or {})
    assert found is not None
    return found


SCRATCH = "/global/cscratch1/sd/canon"
SLIDES = [
    ("--image=ubuntu:14.04 bash", {}, ["--image=ubuntu:14.04", "--", "bash"]),
    ("/app/hello", {"SLURM_SPANK_SHIFTER_IMAGEREQUEST": "scanon/hello"},
     ["--image=scanon/hello", "--", "/app/hello"]),
    ("/app/hello", {"SHIFTER_IMAGETYPE": "docker", "SHIFTER_IMAGE": "scanon/hello:latest"},
     ["--image=docker:scanon/hello:latest", "--", "/app/hello"]),
    (f"--image=ubuntu --volume={SCRATCH}/myjob:/data bash", {},
     ["--image=ubuntu", f"--volume={SCRATCH}/myjob:/data", "--", "bash"]),
    (f"--image=ubuntu --volume={SCRATCH}:/scratch:perNodeCache=size=100G /bin/bash", {},
     ["--image=ubuntu", f"--volume={SCRATCH}:/scratch:perNodeCache=size=100G", "--", "/bin/bash"]),
    ("--image=docker:ubuntu:14.04 --volume /external/path:/container/path bash", {},
     ["--image=docker:ubuntu:14.04", "--volume=/external/path:/container/path", "--", "bash"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "environ", "expected"), SLIDES)
def test_the_slides(line: str, environ: dict[str, str], expected: list[str]) -> None:
    assert words(line, environ) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-i a", ["--image=a", "--", "/bin/sh"]),
        ("-ia b", ["--image=a", "--", "b"]),
        ("--image a b -i c", ["--image=a", "--", "b", "-i", "c"]),
        ("--im=a --verb x", ["--image=a", "--verbose", "--", "x"]),
        ("-vni a x", ["--image=a", "--verbose", "--", "x"]),
        ("-i a -i b x", ["--image=b", "--", "x"]),
        ("-i a -V /a:/b -V /c:/d:ro x",
         ["--image=a", "--volume=/a:/b", "--volume=/c:/d:ro", "--", "x"]),
        ("-i a -m mpich,cvmfs x", ["--image=a", "--module=mpich,cvmfs", "--", "x"]),
        ("-i a --module=none x", ["--image=a", "--module=none", "--", "x"]),
        ("-i a -e A=1 --env=B=2=3 x", ["--image=a", "--env=A=1", "--env=B=2=3", "--", "x"]),
        ("-i a --env-file=f --env-file g x", ["--image=a", "--env-file=g", "--", "x"]),
        ("-i a -E x", ["--image=a", "--clearenv", "--", "x"]),
        ("-i a --clearenv x", ["--image=a", "--clearenv", "--", "x"]),
        ("-i a -w x", ["--image=a", "--workdir", "--", "x"]),
        ("-i a -w/d x", ["--image=a", "--workdir=/d", "--", "x"]),
        ("-i a --workdir=/d x", ["--image=a", "--workdir=/d", "--", "x"]),
        ("-i a --workdir /d", ["--image=a", "--workdir", "--", "/d"]),
        ("-i a --entrypoint", ["--image=a", "--entrypoint", "--"]),
        ("-i a --entry", ["--image=a", "--entrypoint", "--"]),
        ("-i a --entry=/e x y", ["--image=a", "--entrypoint=/e", "--", "x", "y"]),
        ("-i a --entryp x", ["--image=a", "--entrypoint", "--", "x"]),
        ("-i a -- -x", ["--image=a", "--", "-x"]),
        ("-i a - x", ["--image=a", "--", "-", "x"]),
        (f"-i id:{HEX.upper()} x", [f"--image=sha256:{HEX}", "--", "x"]),
        ("-i custom:mine x", ["--image=mine", "--", "x"]),
        ("-i local:/ x", ["--image=/", "--", "x"]),
        ("-i oci:dir:tag x", ["--image=oci:dir:tag", "--", "x"]),
        ("-i host:5000/r:t x", ["--image=host:5000/r:t", "--", "x"]),
    ],
)  # fmt: skip
def test_options(line: str, expected: list[str]) -> None:
    found = words(line)
    assert found == expected
    options.parse(found, {})


@pytest.mark.parametrize("shell", ["", "/bin/sh", "zsh"])
def test_a_bare_shifter_without_a_shell_of_the_user(shell: str) -> None:
    assert words("-i a", {"SHELL": shell}) == ["--image=a", "--", "/bin/sh"]


@pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")
def test_what_scripts_of_shifter_ask(user: User, box: Path, tmp_path: Path) -> None:
    """The id as `shifterimg lookup` prints it, /var/shifterConfig.json, the user's shell."""
    image = f"--image={box}"
    ask = "cat /var/shifterConfig.json; echo $SHIFTER_IMAGE"
    done = user.run("shifter", image, f"--volume={tmp_path}:/data", "sh", "-c", ask)
    text, name = done.stdout.splitlines()
    found = json.loads(text)
    assert list(found) == ["identifier", "user", "volMap", "modules"]
    assert found["identifier"] == name == box.stem.partition("-")[2]
    assert (found["user"], found["volMap"]) == (
        pwd.getpwuid(os.getuid()).pw_name,
        f"{tmp_path}:/data",
    )
    plain = user.run("udi-run", box, "ls", "/var/shifterConfig.json")
    assert plain.returncode == 1
    user.env["SHELL"] = "/bin/ash"
    shell = user.run("shifter", image, input="echo $0; cat /proc/$$/comm\n").stdout
    assert shell == "/bin/ash\nash\n"
    user.env["SHELL"] = "/no/such/shell"
    assert user.run("shifter", image, input="echo $0\n").stdout == "/bin/sh\n"
    user.env["SHELL"] = "/bin/ash"
    assert user.run("shifter", image, "-E", input="echo $0\n").stdout == "/bin/ash\n"


@pytest.mark.parametrize("prefix", ["SHIFTER_", "SLURM_SPANK_SHIFTER_"])
def test_variables(prefix: str) -> None:
    environ = {f"{prefix}{name}": value for name, value in (
        ("IMAGETYPE", "id"), ("IMAGE", HEX), ("IMAGEREQUEST", "ubuntu"),
        ("VOLUME", "/a:/b;/c:/d:ro"), ("MODULE", "mpich"),
    )}  # fmt: skip
    assert words("x", environ) == [
        f"--image=sha256:{HEX}",
        "--volume=/a:/b;/c:/d:ro",
        "--module=mpich",
        "--",
        "x",
    ]
    assert words("-i u -V /e:/f -m none x", environ) == [
        "--image=u",
        "--volume=/e:/f",
        "--module=none",
        "--",
        "x",
    ]
    del environ[f"{prefix}IMAGETYPE"]
    assert words("x", environ)[0] == "--image=ubuntu"


def test_shifter_s_variables_before_slurm_s() -> None:
    environ = {"SHIFTER_IMAGEREQUEST": "a", "SLURM_SPANK_SHIFTER_IMAGEREQUEST": "b"}
    assert words("x", environ)[0] == "--image=a"


def test_an_image_that_udi_run_will_find_itself() -> None:
    assert words("x", {"UDI_IMAGE": "a"}) == ["--", "x"]


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["x"], "no image is given"),
        (["-i"], "option -i needs an argument"),
        (["--image"], "option --image needs an argument"),
        (["--image="], "option --image: its argument is empty"),
        (["--gpu", "x"], "unknown option --gpu"),
        (["-x"], "unknown option -x"),
        (["--e", "A=1"], "option --e is ambiguous: --entry, --entrypoint, --env, --env-file"),
        (["--verbose=1"], "option --verbose takes no argument"),
        (["-i", "a", "-e", "A"], "--env 'A' is not NAME=VALUE"),
        (["-i", "a", "-e", "A="], "--env 'A=' is not NAME=VALUE"),
        (["-i", "a", "-e", "=1"], "--env '=1' is not NAME=VALUE"),
        (["-i", "docker:"], "image 'docker:': nothing after docker:"),
        (["-i", "id:12ab"], "image 'id:12ab': an id has 64 of 0-9 and a-f"),
        (["-i", "local:x"], "image 'local:x': the path is not absolute"),
    ],
)
def test_refused(argv: list[str], why: str) -> None:
    with pytest.raises(UdiError) as caught:
        translate(argv, {})
    assert why in caught.value.message
    assert caught.value.status == 1


def test_help() -> None:
    assert translate(["-h"], {}) is None
    assert translate(["--help", "--image=x"], {}) is None
    for name in shifter.LONG:
        assert name == "entry" or f"--{name}" in shifter.USAGE


def test_statuses() -> None:
    assert [shifter.status(n) for n in (0, 3, 125, 126, 127)] == [0, 3, 1, 127, 127]


def test_a_batch_script_is_given_as_a_descriptor(tmp_path: Path) -> None:
    script = tmp_path / "job00001/slurm_script"
    script.parent.mkdir()
    script.write_text("echo hello\n")
    argv = ["--image=a", "--", "/bin/bash", str(script), "/gone/slurm_script", str(tmp_path)]
    assert main.scripted(argv, {}) == argv
    found = main.scripted(argv, {"SLURM_JOB_ID": "1"})
    assert found[:3] + found[4:] == argv[:3] + argv[4:]
    assert found[3].startswith("/dev/fd/")
    fd = int(found[3].rpartition("/")[2])
    assert os.get_inheritable(fd)
    assert os.read(fd, 100) == b"echo hello\n"
    os.close(fd)


LINES = st.lists(
    st.sampled_from(["-i", "a", "--image=b", "-V", "--vol", "-e", "A=1", "-w", "--entry=x", "--"])
    | st.text(max_size=6),
    max_size=6,
)


@given(LINES)
def test_any_words_are_translated_or_refused(argv: list[str]) -> None:
    try:
        found = translate(argv, {})
    except UdiError as error:
        assert error.status == 1
        return
    if found is not None:
        options.parse(found, {})
