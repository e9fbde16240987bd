"""spank_udi of contrib/slurm, --image and others for srun, sbatch and salloc, on a real Slurm."""

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.cage import ok, reachable
from tests.kit.nodes import busybox
from tests.kit.places import TREE
from tests.kit.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("slurm", "gcc", "userns", "fuse", "mksquashfs", "busybox"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(reachable(tmp_path_factory.mktemp("image")))


@pytest.fixture(autouse=True)
def home(user: User) -> None:
    reachable(user.home)


FLAGS = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def spank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("spank")
    built = reachable(folder) / "spank_udi.so"
    source = TREE / "contrib/slurm/spank_udi.c"
    subprocess.run(["gcc", *FLAGS, "-o", built, source], check=True)
    (folder / "slurm").mkdir()
    with Slurm(folder / "slurm", nodes=1, spank=f"required {built}") as cluster:
        yield cluster


VARIABLES = 'echo "${UDI_IMAGE-none} ${UDI_MODULE-none} ${UDI_VOLUME-none}"'


def test_the_plugins_options_are_known(spank: Slurm, user: User) -> None:
    for command in ("srun", "sbatch", "salloc"):
        text = ok(spank.run(user, command, "--help"))
        assert "--image=IMAGE" in text and "--module=" in text and "--volume=" in text


def test_an_image_given_to_srun(spank: Slurm, user: User, image: Path) -> None:
    argv = ["srun", "-n2", f"--image={image}", "udi-run", "cat", "/etc/passwd"]
    assert "root:x:0:0:" in ok(spank.run(user, *argv))


@pytest.mark.parametrize("export", [(), ("--export=NONE",)])
def test_an_image_given_to_sbatch(spank: Slurm, user: User, export: tuple[str, ...]) -> None:
    """The script and its steps have it; a step's own option wins there, a variable does not.

    srun is quiet (-Q), as it may have to wait for the step before to be gone.
    """
    script = f"""#!/bin/sh
#SBATCH --image=first:1 --module=a,b
#SBATCH --volume=/a:/b;/c:/d
{VARIABLES}
srun -Q -n1 /bin/sh -c '{VARIABLES}'
srun -Q -n1 --image=second:2 --module=none /bin/sh -c '{VARIABLES}'
UDI_IMAGE=third srun -Q -n1 /bin/sh -c '{VARIABLES}'
"""
    job = "a,b /a:/b;/c:/d"
    assert spank.batch(user, script, *export).splitlines() == [
        f"first:1 {job}",
        f"first:1 {job}",
        "second:2 none /a:/b;/c:/d",
        f"first:1 {job}",
    ]


def test_an_image_given_to_salloc(spank: Slurm, user: User) -> None:
    argv = ["salloc", "-n1", "--image=first:1", "srun", "sh", "-c", VARIABLES]
    assert ok(spank.run(user, *argv)) == "first:1 none none\n"


@pytest.mark.parametrize("option", ["--image=", "--module=a\nb", "--volume=" + "x" * 5000])
def test_a_bad_value_is_refused_at_submission(spank: Slurm, user: User, option: str) -> None:
    done = spank.run(user, "srun", "-n1", option, "true")
    assert done.returncode != 0
    assert "udi: this option needs one line of 1 to 4095 characters" in done.stderr


def test_without_the_options_nothing_is_set(spank: Slurm, user: User) -> None:
    assert ok(spank.run(user, "srun", "-n1", "sh", "-c", VARIABLES)) == "none none none\n"


# A line of plugstack.conf that is wrong: who asks for one of the options is told, and nobody else.


@pytest.fixture(scope="module")
def other(spank: Slurm) -> Path:
    """Another plugin, which has an option --image of its own."""
    built, source = (spank.folder.parent / f"spank_other.{end}" for end in ("so", "c"))
    text = """\
        #include <slurm/spank.h>
        SPANK_PLUGIN(other, 1)
        static int taken(int a, const char *b, int c) { return (void)a, (void)b, (void)c, 0; }
        static struct spank_option mine = {"image", "IMAGE", "its own", 1, 0, taken};
        int slurm_spank_init(spank_t spank, int a, char **b)
        { return (void)a, (void)b, spank_option_register(spank, &mine); }
        """
    source.write_text(textwrap.dedent(text))
    subprocess.run(["gcc", *FLAGS, "-o", built, source], check=True)
    return built


WORDS = "plugstack.conf: nonsense: spank_udi.so takes no words"


def test_a_line_with_words(spank: Slurm, user: User) -> None:
    with spank.plugins(f"required {spank.folder.parent}/spank_udi.so nonsense"):
        done = spank.run(user, "srun", "-Q", "-n1", "sh", "-c", VARIABLES)
        assert (done.returncode, done.stdout, done.stderr) == (0, "none none none\n", "")
        commands = (("srun", "-n1", "true"), ("sbatch", "--wrap=true"), ("salloc", "true"))
        for command, *rest in commands:
            done = spank.run(user, command, "--module=a", *rest)
            assert done.returncode != 0 and f"udi: {WORDS}" in done.stderr, done.stderr


def test_an_option_that_another_plugin_has(spank: Slurm, user: User, other: Path) -> None:
    """Slurm names it at each command, without telling the plugin: --image is the first one's."""
    with spank.plugins(f"required {other}", f"required {spank.folder.parent}/spank_udi.so"):
        words = ("srun", "-n1", "--image=i", "--module=a", "sh", "-c", VARIABLES)
        done = spank.run(user, *words)
        assert ok(done) == "none a none\n"
        assert 'option "image" provided by both spank_udi.so and spank_other.so' in done.stderr


def test_a_line_that_is_wrong_on_a_node_alone(spank: Slurm, user: User) -> None:
    """A step and a script that ask for an option don't run; the node stays in use."""
    plugin = f"required {spank.folder.parent}/spank_udi.so"
    with spank.plugins(f"{plugin} nonsense"):
        env = spank.commands_plugins(user, plugin)
        ran = user.home / "ran"
        done = spank.run(user, "srun", "-n1", "--image=i", "touch", ran, env=env)
        assert done.returncode != 0 and WORDS in done.stderr, done.stderr
        script, out = user.home / "job.sh", user.home / "out"
        script.write_text(f"#!/bin/sh\ntouch {ran}\n")
        words = ("sbatch", "--parsable", "--image=i", f"--output={out}", script)
        spank.wait(user, ok(spank.run(user, *words, env=env)).strip())
        assert not ran.exists()
        assert ok(spank.run(user, "srun", "-n1", "echo", "up", env=env)) == "up\n"
    state = ok(spank.run(user, "sinfo", "--noheader", "--format=%T"))
    assert "drain" not in state and "down" not in state
