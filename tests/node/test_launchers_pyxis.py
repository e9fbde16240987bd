"""pyxis' options for srun by the plugin of contrib/slurm: on a real Slurm, by real steps."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images
from tests.kit.cage import ok, reachable
from tests.kit.nodes import SHOW, squashfs, state_files
from tests.kit.places import TREE
from tests.kit.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("slurm", "gcc", "userns", "fuse", "mksquashfs", "busybox"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = reachable(tmp_path_factory.mktemp("pyxis"))
    built, task = folder / "spank_container.so", folder / "udi-task"
    source = TREE / "contrib/slurm/spank_container.c"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", built, source], check=True)
    shutil.copy(TREE / "contrib/slurm/udi-task", task)
    (folder / "slurm").mkdir()
    line = f"required {built} task={task} path={TREE}/bin"
    with Slurm(folder / "slurm", spank=line) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = [
        *images.busybox_entries(),
        ("bin/only-here", b'#!/bin/sh\necho only "$@"\n', {"mode": 0o755}),
    ]
    folder = reachable(tmp_path_factory.mktemp("image"))
    return squashfs(folder / "box.squashfs", [images.tar(entries)])


@pytest.fixture(autouse=True)
def nothing_remains(slurm: Slurm, user: User) -> Iterator[None]:
    reachable(user.home)
    yield
    state = Path(user.env["XDG_RUNTIME_DIR"])
    slurm.gone(lambda: state_files(state))


def test_tasks_run_inside_without_udi_run(slurm: Slurm, user: User, image: Path) -> None:
    """As the user, in one container on each node; the command may be the image's alone."""
    script = f'echo "$SLURMD_NODENAME $(id -u)" $({SHOW}); env | grep -c UDI_TASK'
    argv = ("srun", "-N2", "-n4", f"--container-image={image}")
    out = ok(slurm.run(user, *argv, "sh", "-c", script + "; sleep 1"))
    lines = [line.split() for line in out.splitlines() if line.startswith("n")]
    assert len(lines) == 4 and {line[1] for line in lines} == {str(user.uid)}
    assert len({(node, mnt) for node, _, _, mnt in lines}) == 2
    out = ok(slurm.run(user, *argv[:1], argv[3], "only-here", "it's", 'a "b"', "$c"))
    assert out == 'only it\'s a "b" $c\n'


def test_each_option_does_what_pyxis_says(slurm: Slurm, user: User, image: Path) -> None:
    for name in ("a b", "c"):
        (user.home / name).mkdir()
        (user.home / name / "word").write_text(f"{name}\n")
    options = (
        f"--container-mounts={user.home}/a b:/one:ro+rprivate+x-create=dir,{user.home}/c:/two",
        *("--container-workdir=/two", "--container-env=GREETING,MISSING"),
        *("--container-writable", "--container-mount-home", "--no-container-entrypoint"),
        *("--container-name=mine", "--no-container-remap-root"),
    )
    script = (
        "pwd; cat word /one/word; echo $GREETING; echo x > /new && cat /new; "
        "(: > /one/no) 2>/dev/null || echo readonly; test -d $HOME/c && echo home; ulimit -n"
    )
    argv = ("srun", "-n1", f"--container-image={image}", *options, "sh", "-c", script)
    env = {"GREETING": "job's"}
    limited = ("sh", "-c", 'ulimit -n 1000; exec "$@"', "sh", *argv)
    out = ok(slurm.run(user, *limited, env=env))
    assert out.splitlines() == ["/two", "c", "a b", "job's", "x", "readonly", "home", "1000"]


def test_a_tasks_status_and_an_image_that_is_not_there(
    slurm: Slurm, user: User, image: Path
) -> None:
    argv = ("srun", "-n1", "--export=NONE", f"--container-image={image}")
    assert slurm.run(user, *argv, "sh", "-c", "exit 7").returncode == 7
    done = slurm.run(user, "srun", "-n1", "--container-image=host.example#my/app:1", "true")
    assert done.returncode == 125
    assert "host.example/my/app:1" in done.stderr


def test_a_step_of_a_batch_job(slurm: Slurm, user: User, image: Path) -> None:
    inside = f"srun -Q -n2 --container-image={image} only-here $SLURM_JOB_ID"
    script = f"#!/bin/sh\n{inside}\nsrun -Q -n1 id -u\n"
    lines = slurm.batch(user, script, "-n2").splitlines()
    assert lines == [lines[0], lines[0], str(user.uid)] and lines[0].startswith("only ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--container-remap-root",), "--container-remap-root: nobody is root"),
        (("--container-save=/x",), "--container-save: what runs in an image does not change it"),
        (("--container-unshare=net",), "--container-unshare: network, IPC and host name"),
        (("--container-entrypoint-log",), "--container-entrypoint-log: an ENTRYPOINT's output"),
        (
            ("--container-image=i", "--container-mounts=tmpfs:/x"),
            "'tmpfs' is no folder of the host",
        ),
        (("--container-image=i", "--container-mounts=umount:/x"), "'umount' is no folder"),
        (("--container-image=",), "--container-image needs one line of 1 to 4095 characters"),
        (("--container-image=" + "x" * 5000,), "--container-image needs one line"),
        (("--container-mounts=/a:/b",), "--container-mounts needs --container-image"),
        (("--container-image=i", "--container-name=x:exec"), "=NAME:FLAG: no flag is known here"),
        (("--container-image=i", "--multi-prog"), "--container-image with --multi-prog"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    slurm: Slurm, user: User, words: tuple[str, ...], line: str
) -> None:
    programs = user.home / "programs"
    programs.write_text("* true --multi-prog\n")
    done = slurm.run(user, "srun", "-n1", *words, programs)
    assert done.returncode != 0 and line in done.stderr, done.stderr


def test_several_programs_run_nowhere(slurm: Slurm, user: User, image: Path) -> None:
    """Where the plugin sees late that there are several, no task runs outside."""
    programs = user.home / "programs"
    programs.write_text(f"* touch {user.home}/ran\n")
    argv = (
        "srun",
        "--quiet",
        "--label",
        "--ntasks",
        "1",
        f"--container-image={image}",
        "--multi-prog",
    )
    done = slurm.run(user, *argv, programs)
    assert "--container-image with --multi-prog" in done.stderr
    assert not (user.home / "ran").exists()


def test_for_whole_jobs_it_is_refused(slurm: Slurm, user: User, image: Path) -> None:
    for command in (("sbatch", "--wrap=true"), ("salloc", "true")):
        done = slurm.run(user, command[0], f"--container-image={image}", command[1])
        assert done.returncode != 0
        assert "--container-image is for srun; for a whole job: --image" in done.stderr


def test_the_commands_own_words_are_not_sruns(slurm: Slurm, user: User, image: Path) -> None:
    argv = ("srun", "-n1", f"--container-image={image}", "only-here", "--multi-prog")
    assert ok(slurm.run(user, *argv)) == "only --multi-prog\n"


def test_root_runs_nothing_inside(slurm: Slurm, image: Path) -> None:
    with pytest.raises(RuntimeError, match="root"):
        slurm.cage.run("srun", "-n1", f"--container-image={image}", "true", env=slurm.settings)


WRONG = pytest.mark.parametrize(
    ("words", "line"),
    [("", "needs task=/FILE"), ("tasks=/x", "tasks=/x: task=/FILE or path=/DIR")],
)


@WRONG
def test_a_line_of_plugstack_that_is_wrong(
    slurm: Slurm, user: User, image: Path, words: str, line: str
) -> None:
    """Who asks for a container is told; nobody else is."""
    with slurm.plugins(f"required {slurm.folder.parent}/spank_container.so {words}"):
        done = slurm.run(user, "srun", "-Q", "-n1", "echo", "out")
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")
        done = slurm.run(user, "srun", "-n1", f"--container-image={image}", "true")
        assert done.returncode != 0 and line in done.stderr, done.stderr


@WRONG
def test_a_line_that_is_wrong_on_a_node_alone(
    slurm: Slurm, user: User, image: Path, words: str, line: str
) -> None:
    """No task runs outside in place of inside."""
    good = (slurm.folder / "etc/plugstack.conf").read_text().strip()
    with slurm.plugins(f"required {slurm.folder.parent}/spank_container.so {words}"):
        env = slurm.commands_plugins(user, good)
        argv = ("srun", "-n1", f"--container-image={image}", "touch", user.home / "ran")
        done = slurm.run(user, *argv, env=env)
        assert done.returncode != 0 and line in done.stderr, done.stderr
        assert not (user.home / "ran").exists()
        assert ok(slurm.run(user, "srun", "-n1", "echo", "out", env=env)) == "out\n"


def test_pyxis_variables(slurm: Slurm, user: User, image: Path) -> None:
    """What pyxis reads where an option is not given; the option wins."""
    env = {
        "PYXIS_CONTAINER_IMAGE": str(image),
        "PYXIS_CONTAINER_WORKDIR": "/bin",
        "PYXIS_CONTAINER_WRITABLE": "yes",
        "PYXIS_CONTAINER_REMAP_ROOT": "0",
        "PYXIS_CONTAINER_MOUNT_HOME": "y",
    }
    argv = ("sh", "-c", "pwd; echo x > /new && cat /new")
    assert ok(slurm.run(user, "srun", "-n1", *argv, env=env)) == "/bin\nx\n"
    words = ("srun", "-n1", "--container-workdir=/var")
    assert ok(slurm.run(user, *words, *argv, env=env)) == "/var\nx\n"
    lines = slurm.batch(
        user, "#!/bin/sh\nsrun -Q -n1 pwd\n", f"--export=ALL,{next(iter(env))}={image}"
    )
    assert "PYXIS_CONTAINER_IMAGE is for srun: set it in the script" in lines
    assert "only" in slurm.batch(
        user, f"#!/bin/sh\nexport PYXIS_CONTAINER_IMAGE={image}\nsrun -Q -n1 only-here\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("REMAP_ROOT", "1", "--container-remap-root: nobody is root"),
        ("WRITABLE", "maybe", "--container-writable by its variable: yes or no"),
        ("UNSHARE", "net", "--container-unshare: network, IPC and host name are the host's"),
        ("ENTRYPOINT_LOG", "y", "--container-entrypoint-log: an ENTRYPOINT's output"),
        ("NAME", "x:exec", "no flag is known here"),
        ("WORKDIR", "x" * 5000, "--container-workdir needs one line"),
        ("WORKDIR", "/bin", "--container-workdir needs --container-image"),
    ],
)
def test_pyxis_variables_that_are_refused(
    slurm: Slurm, user: User, name: str, value: str, line: str
) -> None:
    done = slurm.run(user, "srun", "-n1", "true", env={f"PYXIS_CONTAINER_{name}": value})
    assert done.returncode != 0 and line in done.stderr, done.stderr


@pytest.mark.parametrize("image", ["host.example#my/app:1", "docker://$me@host.example#my/app:1"])
def test_enroots_names_of_images(slurm: Slurm, user: User, image: str) -> None:
    done = slurm.run(user, "srun", "-n1", f"--container-image={image}", "true")
    assert done.returncode == 125 and "image host.example/my/app:1 " in done.stderr, done.stderr
