"""udi-run --edf: real containers by environment definition files."""

import os
from pathlib import Path

import pytest

from tests.commands.test_sif import ENV, squashfs
from tests.conftest import User
from tests.kit import sifs

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture
def folder(user: User, box: Path) -> Path:
    folder = user.home / ".edf"
    folder.mkdir()
    (user.home / "data").mkdir()
    (user.home / "data/file").write_text("x")
    (folder / "base.toml").write_text(
        f'image = "{box}"\nmounts = ["${{HOME}}/data:/data:ro"]\n[env]\nA = "base"\nGONE = ""\n'
        'BOTH = "${GREETING}-${USER}"\nPATH = "${PATH}:/more"\n'
    )
    (folder / "app.toml").write_text(
        'base_environment = ["base"]\nentrypoint = false\nworkdir = "/data"\n[env]\nA = "app"\n'
    )
    return folder


def test_a_definition(user: User, folder: Path) -> None:
    script = "pwd; ls; echo $A ${GONE-unset} $BOTH $PATH; touch /new && echo writable"
    done = user.run("udi-run", "--edf=app", "sh", "-c", script, env={"GONE": "there"})
    lines = ["/data", "file", f"app unset image-{user.name} /bin:/more", "writable"]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


def test_the_entrypoint_runs_where_the_file_says_so(user: User, folder: Path) -> None:
    (folder / "e.toml").write_text('base_environment = "base"\nentrypoint = true\n')
    assert user.run("udi-run", "--edf", "e", "a", "b").stdout == "entry a b\n"
    assert user.run("udi-run", "--edf", "e").stdout == "entry from cmd\n"
    assert user.run("udi-run", "--edf", "base", "echo", "b").stdout == "b\n"
    assert user.run("udi-run", "--edf", "e", "--entrypoint=/bin/echo", "x").stdout == "x\n"
    # Without a workdir the image's.
    (folder / "w.toml").write_text('base_environment = "base"\nentrypoint = false\n')
    assert user.run("udi-run", "--edf=w", "pwd").stdout == "/usr\n"


def test_a_sif_file_alone_runs_its_runscript(user: User, folder: Path) -> None:
    (user.home / "app.sif").write_bytes(sifs.sif(squashfs(user.home, ENV)))
    for more, said in (("", "run\n"), ("true", "run\n"), ("false", "sh\n")):
        more = more and f"entrypoint = {more}\n"
        (folder / "s.toml").write_text(f'image = "${{HOME}}/app.sif"\n{more}')
        done = user.run("udi-run", "--edf=s", input="echo sh\n")
        assert done.stdout == said, done.stderr
    assert user.run("udi-run", "--edf=s", "sh", "-c", "echo $A").stdout == "from the image\n"


def test_the_command_line_counts_more(user: User, folder: Path) -> None:
    words = ("--env=A=mine", "--workdir=/", "--volume=/usr:/more")
    done = user.run("udi-run", "--edf=app", *words, "sh", "-c", "echo $A; pwd; ls -d /data /more")
    assert done.stdout.splitlines() == ["mine", "/", "/data", "/more"], done.stderr


def test_where_files_are_looked_for(user: User, folder: Path, box: Path) -> None:
    (user.home / "here.toml").write_text(f'image = "{box}"\nentrypoint = false\n')
    for word in ("./here.toml", f"{user.home}/here.toml"):
        assert user.run("udi-run", "--edf", word, "echo", "in").stdout == "in\n"
    other = {"EDF_PATH": f"relative:{user.home}/no:{user.home}"}
    for word in ("here", "here.toml"):
        assert user.run("udi-run", "--edf", word, "echo", "in", env=other).stdout == "in\n"
    done = user.run("udi-run", "--edf=app", "true", env=other)
    assert done.returncode == 125
    assert f"environment definition app: is in none of {user.home}/no, {user.home}" in done.stderr
    done = user.run("udi-run", "true", env={"UDI_EDF": "here", "EDF_PATH": str(user.home)})
    assert done.returncode == 0, done.stderr


def test_ranks_of_a_definition_share_a_container(user: User, folder: Path) -> None:
    argv = ("udi-run", "--share=job", "--edf=app", "readlink", "/proc/self/ns/mnt")
    with user.popen(
        "udi-run", "--share=job", "--edf=app", "sh", "-c", "echo; read x", stdin=-1, stdout=-1
    ) as one:
        assert one.stdout and one.stdin
        one.stdout.readline()
        found = {user.run(*argv).stdout for _ in range(3)}
        one.stdin.close()
    assert len(found) == 1 and found != {""}


def test_modules_by_hooks(user: User, folder: Path, box: Path) -> None:
    config = user.home / ".config/rootless_udi"
    (config / "modules.d").mkdir(parents=True)
    for name in ("cxi", "ofi-cuda12", "other"):
        (config / f"modules.d/{name}.toml").write_text(f'[env]\nset = {{ M_{name[:3]} = "1" }}\n')
    (config / "config.toml").write_text('[modules]\ndefault = ["cxi", "other"]\n')
    (folder / "m.toml").write_text(
        'base_environment = "app"\n[annotations.com.hooks]\ncxi.enabled = "false"\n'
        'ofi.enabled = "true"\nofi.variant = "cuda12"\n'
    )
    done = user.run("udi-run", "--edf=m", "env")
    assert done.returncode == 0, done.stderr
    assert sorted(x for x in done.stdout.split() if x.startswith("M_")) == ["M_ofi=1", "M_oth=1"]
    (folder / "m.toml").write_text(
        f'image = "{box}"\n[annotations]\ncom.hooks.ssh.enabled = "true"\n'
    )
    done = user.run("udi-run", "--edf=m", "true")
    assert done.returncode == 125
    assert "m.toml:3: the site has no module ssh for the hook ssh" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image = ", "is no TOML"),
        ("a = " + "[" * 20000, "is no TOML"),
        ("\0", "is no TOML"),
        ('base_environment = "x"', "x.toml: a circle of base_environment"),
        ('base_environment = "nix"', "environment definition nix: is in none of"),
        ("#" * (1 << 20) + "\n", "is larger than"),
        ('image = "a"\nmounts = ["/a\\u001b[31m:"]', "x.toml: mount"),
    ],
)
def test_bad_files(user: User, folder: Path, text: str, words: str) -> None:
    (folder / "x.toml").write_text(text)
    done = user.run("udi-run", "--edf=x", "true")
    assert done.returncode == 125
    assert words in done.stderr and "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_bad_kinds_of_files(user: User, folder: Path) -> None:
    (folder / "d.toml").mkdir()
    os.mkfifo(folder / "f.toml")
    (folder / "open.toml").write_text('image = "a"')
    (folder / "open.toml").chmod(0o666)
    for word, why in (
        (".edf/d.toml", "Is a directory"),
        (".edf/f.toml", "It is no regular file"),
        (".edf/no.toml", "No such file or directory"),
        ("open", "anybody may write it"),
    ):
        done = user.run("udi-run", "--edf", word, "true")
        assert done.returncode == 125 and why in done.stderr, done.stderr


def test_eleven_files_on_one_another(user: User, folder: Path) -> None:
    for n in range(12):
        (folder / f"n{n}.toml").write_text(f'base_environment = "n{n + 1}"\n')
    done = user.run("udi-run", "--edf=n0", "true")
    assert done.returncode == 125
    assert "more than 10 files stand on one another" in done.stderr


def test_a_variable_that_nobody_set(user: User, folder: Path) -> None:
    (folder / "v.toml").write_text('base_environment = "app"\n[env]\nX = "${NOBODY_SET}"\n')
    done = user.run("udi-run", "--edf=v", "true")
    assert done.returncode == 125
    assert "v.toml:3: the variable NOBODY_SET is not set" in done.stderr
