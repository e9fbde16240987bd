"""What the site and the user put in, in real containers: the slides' session, modules, caches."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images
from tests.kit.nodes import counted
from tests.kit.places import GOLDEN, TREE
from tests.kit.registry import Registry, open_registry

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")
MIB = 1024**2


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with the slides' images."""
    place = tmp_path_factory.mktemp("slides")
    layout = images.Layout(place / "layout")
    more: list[images.Entry] = [
        ("bin/bash", b'#!/bin/sh\nexec /bin/sh "$@"\n', {"mode": 0o755}),
        ("app", None, {}),
        ("app/hello", b"#!/bin/sh\necho Hello from $SHIFTER_IMAGEREQUEST\n", {"mode": 0o755}),
    ]
    layer = images.tar([*images.busybox_entries(), *more])
    layout.image("1", [layer], {"Env": ["PATH=/bin"]})
    with open_registry(place / "r", place / "data") as one:
        for name in ("ubuntu:14.04", "ubuntu:latest", "scanon/hello:latest"):
            one.push(layout.path, "1", name)
        yield one


class Site:
    """A site directory for a user's commands."""

    def __init__(self, user: User, root: Path) -> None:
        self.user, self.root = user, root
        for folder in (root, root / "modules.d"):
            folder.mkdir(mode=0o755)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def run(
        self, *argv: object, input: str | None = None, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        return self.user.run(*argv, env={"UDI_SITE_DIR": str(self.root), **env}, input=input)


@pytest.fixture
def site(user: User, tmp_path: Path) -> Site:
    os.umask(0o022)
    return Site(user, tmp_path / "site")


def good(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def bad(done: "subprocess.CompletedProcess[str]", status: int = 125) -> str:
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.needs("registry", "skopeo", "mksquashfs")
def test_the_slides(site: Site, registry: Registry) -> None:
    site.write("udi.toml", f'[image]\nregistry = "{registry.host}"\n')
    for name in ("ubuntu:14.04", "ubuntu", "scanon/hello"):
        assert good(site.run("shifterimg", "pull", name)).endswith("status: READY\n")
    out = good(site.run("shifter", "--image=ubuntu:14.04", "bash", input="echo $0; id -u\n"))
    assert out == f"/bin/sh\n{site.user.uid}\n"
    # Running an MPI Job – Submit and run
    out = good(site.run("shifter", "/app/hello", SLURM_SPANK_SHIFTER_IMAGEREQUEST="scanon/hello"))
    assert out.startswith("Hello from scanon/hello")
    # Using Volume Mounts
    scratch = site.user.home
    (scratch / "myjob").mkdir()
    for name in ("config", "data.in"):
        (scratch / "myjob" / name).touch()
    volume = f"--volume={scratch}/myjob:/data"
    out = good(site.run("shifter", "--image=ubuntu", volume, "bash", input="ls /data/\n"))
    assert out.split() == ["config", "data.in"]
    # Using PerNode Mounts
    words = ["shifter", "--image=ubuntu", f"--volume={scratch}:/scratch:perNodeCache=size=64M"]
    script = """
        df -h /scratch/ | tail -1
        dd if=/dev/zero bs=1k count=10k of=/scratch/output 2>/dev/null
        ls -l /scratch/output
        dd if=/dev/zero bs=1M count=100 of=/scratch/more 2>&1 | grep -o 'No space.*'
        rm /scratch/more; echo goes on > /scratch/after; cat /scratch/after
        exit
    """
    df, ls, *rest = good(site.run(*words, "/bin/bash", input=script)).splitlines()
    assert df.split()[1] == "64.0M"
    assert ls.split()[4] == str(10 * MIB)
    assert rest == ["No space left on device", "goes on"]
    out = good(site.run(*words, "/bin/bash", input="ls -l /scratch\nexit\n"))
    assert out == "total 0\n"
    assert not (scratch / "output").exists()


def test_shifter_s_statuses(site: Site, box: Path) -> None:
    assert "no image is given" in bad(site.run("shifter", "true"), 1)
    assert bad(site.run("shifter", "-i", "x/y:gone", "true", UDI_PULL="never"), 1)
    assert bad(site.run("shifter", "-i", box, "nosuch"), 127).startswith("shifter: nosuch: not")
    assert bad(site.run("shifter", "-i", box, "/etc"), 127).startswith("shifter: /etc: not exec")
    assert site.run("shifter", "-i", box, "sh", "-c", "exit 9").returncode == 9
    assert good(site.run("shifter", "-i", box, "-e", "A=1", "sh", "-c", "echo $A")) == "1\n"
    assert good(site.run("shifter", f"--image=local:{box}", "--entrypoint", "x")) == "entry x\n"
    assert good(site.run("shifter", "-i", box, input="echo $0\n")) == "/bin/sh\n"


def test_a_batch_script_with_shifter_as_interpreter(site: Site, box: Path, tmp_path: Path) -> None:
    # As slurmd starts it: a copy of the script in a folder that no container has.
    script = tmp_path / "spool/slurm_script"
    script.parent.mkdir()
    script.write_text(f"#!/usr/bin/env -S shifter --image={box} /bin/sh\necho $GREETING $1\n")
    script.chmod(0o755)
    site.write("udi.toml", '[[mount]]\nsource = "/tmp"\nenabled = false\n')
    done = site.run(script, "word", SLURM_JOB_ID="1")
    assert good(done) == "image word\n"


MODULE = """
description = "A library of the machine"
[[bind]]
source = "{home}/lib*"
destination = "/opt/udiImage/modules/one/"
[env]
set = {{ ONE = "1" }}
prepend = {{ PATH = "/opt/udiImage/modules/one/lib" }}
append = {{ GREETING = "module" }}
unset = ["OTHER"]
[hook]
command = "echo hook $ONE >> {home}/log"
"""


def test_a_module(site: Site, box: Path) -> None:
    home = site.user.home
    (home / "lib").mkdir()
    (home / "lib/tool").write_text("#!/bin/sh\necho tool $ONE $GREETING ${OTHER-none}\n")
    (home / "lib/tool").chmod(0o755)
    path = site.write("modules.d/one.toml", MODULE.format(home=home))
    site.write("udi.toml", f'[modules]\ndefault = ["one"]\n[[mount]]\nsource = "{home}"\n')
    assert good(site.run("udi-run", box, "tool", OTHER="x")) == "tool 1 image:module none\n"
    assert (home / "log").read_text() == "hook 1\n"
    done = site.run("udi-run", "--module=none", box, "sh", "-c", "echo ${ONE-unset}")
    assert good(done) == "unset\n"
    script = "touch /opt/udiImage/modules/one/lib/x"
    assert "Read-only" in site.run("udi-run", box, "sh", "-c", script).stderr
    text = good(site.run("udi-run", "--explain", box, "true"))
    assert f"module one ({path})" in text
    assert f"default mount ({site.root}/udi.toml:3)" in text


def test_modules_refused(site: Site, box: Path) -> None:
    site.write("modules.d/a.toml", 'requires = ["b"]')
    site.write("modules.d/b.toml", 'requires = ["a"]')
    site.write("modules.d/c.toml", 'conflicts = ["d"]')
    site.write("modules.d/d.toml", "")
    site.write("modules.d/e.toml", "hook = 'exit 3'")
    site.write("modules.d/f.toml", "[hook]\ncommand = 'sleep 1000'\nseconds = 0.3\n")
    site.write("modules.d/g.toml", '[[bind]]\nsource = "/nowhere/*"\n')
    site.write("modules.d/h.toml", "nonsense = 1")
    for names, why in (
        ("x", "module x: there is no such module"),
        ("a", "module a requires b requires a: a circle"),
        ("c,d", "module c conflicts with module d"),
        ("e", "hook of module e"),
        ("e", "exit 3: failed with status 3"),
        ("f", "sleep 1000: not done after 0.3 s, killed"),
        ("g", "module g: nothing matches /nowhere/* on this host"),
        ("h", "h.toml:1: nonsense: unknown key"),
        ("none,a", "none and others"),
    ):
        assert why in bad(site.run("udi-run", f"--module={names}", box, "true")), names
    assert good(site.run("udi-run", "--module=d", box, "echo", "fine")) == "fine\n"


def test_a_default_module_that_does_not_fit_is_left_out(site: Site, box: Path) -> None:
    """Only what is asked for by name must be possible; what is wrong in itself is always told."""
    fit = '[env]\nset = {{ {0} = "1" }}\n'
    site.write("modules.d/here.toml", fit.format("HERE"))
    site.write("modules.d/path.toml", '[[bind]]\nsource = "/nowhere"\n' + fit.format("PATHS"))
    site.write("modules.d/upon.toml", 'requires = ["path"]\n' + fit.format("UPON"))
    site.write("modules.d/card.toml", 'requires = ["gpu"]\n' + fit.format("CARD"))
    site.write("modules.d/tool.toml", "hook = ['/bin/nosuch']\n" + fit.format("TOOL"))
    site.write("modules.d/fails.toml", "hook = 'exit 3'\n")
    names = '"path", "mpi", "here", "upon", "card", "tool"'
    conf = f"[modules]\ndefault = [{names}]\n[gpu]\ncdi_spec_dirs = []\n"
    path = site.write("udi.toml", conf)
    script = "echo ${HERE-} ${PATHS-} ${UPON-} ${CARD-} ${TOOL-}"
    done = site.run("udi-run", "--quiet", box, "sh", "-c", script)
    has_gpu = any(os.path.exists(one) for one in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri"))
    assert good(done) == ("1 1 1\n" if has_gpu else "1 1\n") and not done.stderr
    told = site.run("udi-run", "--verbose", box, "true").stderr
    assert "default module path is left out: module path: there is no /nowhere" in told
    assert "default module mpi is left out: --mpi: " in told
    assert "hook of module tool" in told and "it is left out" in told
    assert "default module path is left out" in site.run("udi-run", "--explain", box).stderr
    for name, why in (("path", "no /nowhere"), ("upon", "no /nowhere"), ("tool", "not found")):
        assert why in bad(site.run("udi-run", f"--module={name}", box, "true"))
    assert "--mpi: " in bad(site.run("udi-run", "--module=mpi", box, "true"))
    for wrong, why in (("fails", "exit 3"), ("nosuch", "there is no such module")):
        path.write_text(f'[modules]\ndefault = ["{wrong}"]\n')
        assert why in bad(site.run("udi-run", box, "true"))


def test_the_examples_are_good_on_a_plain_machine(site: Site, box: Path) -> None:
    """As a site copies them; its modules that a plain machine has no use for are left out."""
    shutil.copytree(TREE / "contrib/site", site.root, dirs_exist_ok=True)
    for path in (site.root, *site.root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert good(site.run("udi", "config", "check")) == ""
    assert good(site.run("udi-run", "--quiet", box, "echo", "fine")) == "fine\n"
    (site.root / "udi.toml").write_text('[modules]\ndefault = ["cvmfs", "nccl", "mpi"]\n')
    assert good(site.run("udi-run", "--quiet", box, "echo", "fine")) == "fine\n"


def test_configuration_refused(site: Site, box: Path) -> None:
    path = site.write("udi.toml", "[image]\nlevel = 77\n")
    text = bad(site.run("udi-run", box, "true"))
    assert text.startswith(f"udi-run: {path}:2: image.level: 77 is out of bounds\n")
    path.write_text("")
    path.chmod(0o666)
    assert "may be written by everybody" in bad(site.run("udi-run", box, "true"))
    path.chmod(0o644)
    own = site.user.home / ".config/rootless_udi/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("")
    own.chmod(0o622)
    assert f"{own} is not trusted: it may be written by everybody" in bad(
        site.run("udi-run", box, "true")
    )


def test_site_environment_and_etc(site: Site, box: Path, tmp_path: Path) -> None:
    (tmp_path / "services").write_text("from the site\n")
    site.write(
        "udi.toml",
        f"""
[env]
set.GREETING = "site"
append.A = "2"
[etc.files]
services = "{tmp_path}/services"
""",
    )
    script = "echo $GREETING $A; cat /etc/services"
    done = site.run("udi-run", "--env=GREETING=option", "--env=A=1", box, "sh", "-c", script)
    assert good(done) == "site 1:2\nfrom the site\n"


def cache(options: str, where: str = "/s") -> str:
    return f"--volume={where}:/scratch:perNodeCache={options}"


def test_caches_refused(site: Site, box: Path) -> None:
    path = site.write("udi.toml", '[cache]\nlimit = "1G"\n')
    text = bad(site.run("udi-run", cache("size=2G"), box, "true"))
    assert f"size=2G is more than this site allows: 1G ({path}:2)" in text
    path.write_text("")
    text = bad(site.run("udi-run", cache("size=1000T"), box, "true"))
    assert "does not fit into" in text
    assert "name a directory of yours before the" in text
    text = bad(site.run("udi-run", cache("size=1G"), "--volume=/tmp:/scratch/x", box, "true"))
    assert "/scratch/x is inside the perNodeCache /scratch" in text


@pytest.mark.needs("fuse2fs")
def test_a_cache_in_a_file(site: Site, box: Path) -> None:
    home = site.user.home
    words = ["udi-run", cache("size=64M,method=file", str(home)), box, "sh", "-c"]
    script = """
        ls -A /scratch; stat -c %u /scratch
        df -P /scratch | awk 'NR == 2 { print ($2 > 60 * 1024 && $2 <= 64 * 1024) }'
        dd if=/dev/zero bs=1M count=100 of=/scratch/more 2>&1 | grep -o 'No space.*'
        rm /scratch/more; echo goes on > /scratch/after; cat /scratch/after
    """
    expected = [str(site.user.uid), "1", "No space left on device", "goes on"]
    for _ in range(2):
        assert good(site.run(*words, script)).splitlines() == expected
    assert sorted(path.name for path in home.iterdir() if not path.name.startswith(".")) == ["run"]
    done = site.run(*words, "kill -KILL $$")
    assert done.returncode == -9


@pytest.mark.needs("fuse2fs")
def test_its_server_ends_with_the_container(site: Site, box: Path) -> None:
    volume = cache("size=64M,method=file", str(site.user.home))
    with counted(site.user) as left:
        script = "grep -c ' /scratch .*fuse' /proc/self/mountinfo; kill -KILL $$"
        done = site.run("udi-run", volume, box, "sh", "-c", script)
        assert (done.returncode, done.stdout) == (-9, "1\n"), done.stderr
        left.check_processes()


def test_the_ranks_of_a_step_share_a_cache_and_jobs_do_not(site: Site, box: Path) -> None:
    home = site.user.home
    for name in ("up", "down"):
        os.mkfifo(home / name)
    words = ["udi-run", cache("size=8M"), f"--volume={home}:/h", box, "sh", "-c"]
    job = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    job |= {"UDI_SITE_DIR": str(site.root)}
    first = site.user.popen(
        *words, "echo one > /scratch/f; echo > /h/up; cat /h/down", env=job, stdout=subprocess.PIPE
    )
    try:
        (home / "up").read_text()
        assert good(site.user.run(*words, "cat /scratch/f", env=job)) == "one\n"
        other = site.user.run(*words, "ls -A /scratch", env={**job, "SLURM_JOB_ID": "78"})
        assert good(other) == ""
        assert good(site.user.run(*words, "ls -A /scratch", env={"UDI_SITE_DIR": "/none"})) == ""
        (home / "down").write_text("done\n")
        assert first.communicate(timeout=120)[0] == "done\n"
        assert good(site.user.run(*words, "ls -A /scratch", env=job)) == ""
    finally:
        first.kill()
        first.wait()


@pytest.mark.needs("squashfuse")
def test_udi_config(site: Site) -> None:
    path = site.write("udi.toml", '[image]\npull = "never"\n')
    assert 'image.pull = "never"' in good(site.run("udi", "config", "show"))
    assert good(site.run("udi", "config", "check")) == ""
    assert good(site.run("udi", "config", "compile")) == f"{site.root}/udi.cache\n"
    path.write_text("[image]\npul = 1\n")
    done = site.run("udi", "config", "check")
    assert (done.returncode, done.stdout) == (
        1,
        f"{path}:2: image.pul: unknown key\n    did you mean pull?\n",
    )
    golden = GOLDEN / "config/udiRoot.conf"
    target = site.user.home / "made"
    done = site.run("udi", "config", "import", golden, f"--to={target}")
    assert good(done).split() == [
        f"{target}/udi.toml",
        f"{target}/modules.d/cvmfs.toml",
        f"{target}/modules.d/mpich.toml",
    ]
    assert f"{golden}: line 3: loopMount: there is no loop device\n" in done.stderr
    shutil.rmtree(target)
