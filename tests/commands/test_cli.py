"""udi's commands as a user calls them: lists, facts, removal, refusals."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rootless_udi.base import trees
from rootless_udi.commands import ps, shell, udi
from rootless_udi.node import publish
from tests.conftest import User
from tests.kit import images
from tests.kit.places import TREE
from tests.kit.pulling import HERE
from tests.kit.terminal import shown

pytestmark = pytest.mark.needs("userns", "busybox")


@pytest.fixture
def pulled(user: User, tmp_path: Path) -> str:
    """An image in the user's store."""
    images.busybox_layout(tmp_path / "layout")
    name = f"oci:{tmp_path}/layout:latest"
    done = user.run("udi", "pull", name)
    assert done.returncode == 0, done.stderr
    return name


def test_pull_prints_the_digest_and_plain_lines(user: User, tmp_path: Path) -> None:
    images.busybox_layout(tmp_path / "layout")
    name = f"oci:{tmp_path}/layout:latest"
    done = user.run("udi", "pull", name)
    assert done.stdout.startswith("sha256:") and done.stdout.count("\n") == 1
    assert "fetching the layers" in done.stderr and "\x1b" not in done.stderr
    # The digest once, for scripts; and a total, for people.
    assert "sha256" not in done.stderr and re.search(
        r"store: \d+ layers?, [\d.]+ MB, in ", done.stderr
    )
    again = user.run("udi", "pull", name)
    assert again.stdout == done.stdout and "is in the store already" in again.stderr
    assert user.run("udi", "pull", "-q", "--force", name).stderr == ""


def test_pull_shows_bars_on_a_terminal(user: User, tmp_path: Path) -> None:
    images.busybox_layout(tmp_path / "layout")
    ours, theirs = pty.openpty()
    user.env["TERM"] = "xterm"
    process = user.popen(
        "udi", "pull", f"oci:{tmp_path}/layout:latest", stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    text = shown(ours)
    assert process.wait(60) == 0
    assert b"\x1b[" in text and b"merging" in text


def test_images_inspect_rm(user: User, pulled: str) -> None:
    (row,) = json.loads(user.run("udi", "images", "--json").stdout)
    assert row["name"] == pulled and row["size"] > 100_000
    table = user.run("udi", "images").stdout.splitlines()
    assert table[0].split() == ["NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED"]
    assert "\n".join(table[1:]).split()[:2] == [pulled, row["digest"][7:19]]
    facts = json.loads(user.run("udi", "inspect", pulled).stdout)
    assert facts["digest"] == row["digest"] and facts["cmd"] == ["/bin/sh"]
    done = user.run("udi", "rm", pulled)
    assert f"removed {row['digest']}" in done.stdout
    assert json.loads(user.run("udi", "images", "--json").stdout) == []
    done = user.run("udi", "rm", pulled)
    assert done.returncode == 125 and "no such image" in done.stderr
    done = user.run("udi", "inspect", pulled)
    assert done.returncode == 125 and f"udi pull {pulled}" in done.stderr


@pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")
def test_a_name_that_was_pulled_for_a_platform(user: User, tmp_path: Path) -> None:
    """It is run, listed and removed by that platform; what this CPU lacks is not run unasked."""
    arch = HERE.architecture
    one = images.Layout(tmp_path / "layout")
    entries = []
    for variant in ("", "v7.7"):
        layer = images.tar([*images.busybox_entries(), ("variant", variant.encode(), {})])
        found = one.image(variant or "plain", [layer], arch=arch)
        entries.append({**found, "platform": {"os": "linux", "architecture": arch}})
    body = json.loads((one.path / "blobs/sha256" / entries[1]["digest"][7:]).read_bytes())
    config = one.path / "blobs/sha256" / body["config"]["digest"][7:]
    newer = {**json.loads(config.read_bytes()), "variant": "v77.7"}
    body["config"] = one.blob(json.dumps(newer).encode(), body["config"]["mediaType"])
    entries[1] = one.blob(json.dumps(body).encode(), entries[1]["mediaType"])
    entries[1]["platform"] = {"os": "linux", "architecture": arch, "variant": "v77.7"}
    index = {"schemaVersion": 2, "manifests": entries}
    one.tag("all", one.blob(json.dumps(index).encode(), f"{images.MEDIA}.index.v1+json"))
    name, wanted = f"oci:{one.path}:all", f"--platform=linux/{arch}/v77.7"
    newest = user.run("udi", "pull", "-q", wanted, name).stdout.strip()
    assert newest == entries[1]["digest"]
    words = ("--pull=never", name, "cat", "/variant")
    done = user.run("udi-run", wanted, *words)
    assert done.stdout == "v7.7", done.stderr
    done = user.run("udi-run", *words)
    assert done.returncode == 125 and "is in no image store" in done.stderr
    done = user.run("udi-run", newest, "true")
    assert done.returncode == 125
    assert f"is for linux/{arch}/v77.7, and this node's CPU is linux/{arch}" in done.stderr
    done = user.run("udi-run", f"--platform=linux/{arch}", newest, "true")
    assert done.returncode == 125 and f"and linux/{arch}" in done.stderr
    assert f"udi pull --platform=linux/{arch} {newest}" in done.stderr
    done = user.run("udi-run", name, "cat", "/variant")
    assert done.stdout == "", done.stderr
    assert user.run("udi", "inspect", wanted, name).stdout.count("v77.7") == 1
    assert user.run("udi", "rm", name).stdout.count("removed") == 1
    assert user.run("udi", "rm", name).returncode == 125
    assert f"removed {newest}" in user.run("udi", "rm", wanted, name).stdout


@pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")
def test_a_name_pulled_for_less_than_this_cpu_is_found(user: User, pulled: str) -> None:
    digest = json.loads(user.run("udi", "inspect", pulled).stdout)["digest"]
    lesser = {"amd64": "amd64-v1", "arm64": "arm64-v8.0"}.get(HERE.architecture)
    (place,) = (user.home / "store/names").iterdir()
    place.rename(place.parent / (lesser or f"{place.name}-"))
    done = user.run("udi-run", "--pull=never", pulled, "echo", "ran")
    assert done.stdout == "ran\n", done.stderr
    assert json.loads(user.run("udi", "inspect", pulled).stdout)["digest"] == digest


@pytest.mark.needs("userns", "fuse", "busybox", "mksquashfs")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_an_image_s_text_and_a_terminal_s(user: User, tmp_path: Path, encoding: str) -> None:
    """Whatever standard output can have: nothing is a traceback, and JSON stays JSON."""
    one = images.Layout(tmp_path / "layout-\udcff")
    odd = {"Env": ["PATH=/bin", "TEXT=\ud800\u65e5é\U0001f600"], "Labels": {"\u65e5": "\U0001f600"}}
    entries = [*images.busybox_entries(), ("opt/\udcfe", b"", {"mode": 0o4755})]
    one.image("t", [images.tar(entries)], odd, arch=HERE.architecture)
    name = f"oci:{one.path}:t"
    user.env["PYTHONIOENCODING"] = encoding
    user.env["LC_ALL"] = "C"

    def said(*words: str) -> bytes:
        done = user.run("sh", "-c", '"$@" >"$0"', tmp_path / "said", *words)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "said").read_bytes()

    assert said("udi", "pull", name).startswith(b"sha256:")
    assert os.fsencode(name) in said("udi", "images")
    facts = json.loads(said("udi", "inspect", name))
    assert facts["env"][1] == "TEXT=\ufffd\u65e5é\U0001f600"
    assert facts["labels"] == {"\u65e5": "\U0001f600"}
    assert facts["left_out"]["setuid_paths"] == ["/opt/\udcfe"]
    plan = json.loads(said("udi-run", "--explain=json", "--env=B=\udcff", name, "true"))
    assert plan["image"] == name
    assert b"/opt" in said("udi-run", "--explain", "--volume=/tmp:/opt/\udcff", name, "true")
    text = "TEXT=\ufffd\u65e5é\U0001f600".encode()
    assert text in said("udi-run", name, "env").splitlines()
    assert os.fsencode(name) in said("shifterimg", "images")
    assert os.fsencode(name) in said("udi", "rm", name)


def test_a_limit_of_file_sizes_is_named(user: User, tmp_path: Path) -> None:
    images.busybox_layout(tmp_path / "layout")
    archive = tmp_path / "x.tar"
    subprocess.run(["tar", "-C", tmp_path / "layout", "-cf", archive, "."], check=True)
    # Python writes what it compiles without a look at how much was written: here once, whole.
    assert user.run("udi", "pull", "oci-archive:/nowhere").returncode == 125
    done = user.run("sh", "-c", f"ulimit -f 40; exec udi pull oci-archive:{archive}")
    assert done.returncode == 125, done.stderr
    assert "File too large" in done.stderr and "ulimit -f" in done.stderr


def test_a_platform_and_a_file(user: User, box: Path) -> None:
    done = user.run("udi-run", "--platform=linux/amd64", box, "true")
    assert done.returncode == 125 and "is a file or a directory" in done.stderr
    done = user.run("udi-run", "--platform=amd/64/x/y", "name", "true")
    assert done.returncode == 125 and "OS/ARCHITECTURE" in done.stderr


def test_extract_prints_the_directory(user: User, pulled: str) -> None:
    first = user.run("udi", "extract", pulled)
    assert Path(first.stdout.strip(), "bin/busybox").exists(), first.stderr
    assert user.run("udi", "extract", pulled).stdout == first.stdout


def test_paths_are_no_images_to_pull(user: User) -> None:
    done = user.run("udi", "pull", "/some/where.sqfs")
    assert done.returncode == 125 and "oci:DIR" in done.stderr


def test_ps_lists_a_running_container(user: User, box: Path) -> None:
    process = user.popen("udi-run", box, "sh", "-c", "echo up; read x", stdin=-1, stdout=-1)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    rows = json.loads(user.run("udi", "ps", "--json").stdout)
    # The user's own state directory of this node counts too, and others may run in it.
    (row,) = [row for row in rows if row["image"] == str(box)]
    assert row["members"] == [process.pid] and row["memory"] > 0
    table = user.run("udi", "ps").stdout.splitlines()
    assert table[0].split() == [
        "NAME",
        "IMAGE",
        "JOB",
        "MEMBERS",
        "AGE",
        "WAITS",
        "SERVER",
        "MEMORY",
    ]
    assert any(line.split()[:2] == [f"alone-{process.pid}", str(box)] for line in table)
    process.communicate("\n", timeout=120)


def test_ps_without_a_container(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Others may run in the user's own state directory of this node: it is not asked."""
    monkeypatch.setattr(ps, "containers", lambda env: [])
    assert ps.ps(udi.parser().parse_args(["ps"])) == 0
    assert capfd.readouterr() == ("", "no container of yours is on this node\n")
    assert ps.ps(udi.parser().parse_args(["ps", "--json"])) == 0
    assert capfd.readouterr() == ("[]\n", "")


def test_ps_removes_what_is_stale(user: User) -> None:
    state = user.home / "run/rootless_udi"
    state.mkdir(mode=0o700)
    pairs = (("user", "1"), ("mnt", "1"), ("server", "999999999"))
    (state / "alone-1.2").write_bytes(publish.content(pairs, b"999999999 1\n"))
    (state / "nonsense").write_text("what is this")
    assert user.run("udi", "ps").returncode == 0
    assert [path.name for path in state.iterdir()] == ["nonsense"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5s"), (65, "1m 5s"), (7800, "2h 10m"), (90000, "1d 1h")],
)
def test_ages(seconds: int, text: str) -> None:
    from rootless_udi.commands.ps import age

    assert age(seconds) == text


def test_every_command_has_help(user: User) -> None:
    for words in ([], ["pull"], ["images"], ["config"], ["mpi", "check"], ["gpu"], ["doctor"]):
        done = user.run("udi", *words, "--help")
        assert done.returncode == 0 and done.stdout.startswith("usage: udi")
    assert user.run("udi", "nonsense").returncode == 2
    assert udi.parser().prog == "udi"


# doctor


@pytest.mark.needs("fuse", "mksquashfs")
def test_doctor_is_content(user: User) -> None:
    done = user.run("udi", "doctor")
    assert done.returncode == 0, done.stdout
    for what in ("kernel", "user and mount namespaces", "/dev/fuse", "FUSE in a user namespace"):
        assert f"{what}: " in done.stdout
    assert "FAILURE" not in done.stdout


def test_doctor_names_what_is_wrong(user: User) -> None:
    """Inside a user namespace where the limit on further ones is 0."""
    script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    outer = ["unshare", "--user", "--map-current-user", "--keep-caps"]
    drop = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"]
    done = user.run(*outer, "sh", "-c", script, "sh", *drop, "udi", "doctor")
    assert done.returncode == 1
    assert "user.max_user_namespaces: 0: user namespaces are switched off" in done.stdout
    assert "remedy: the administrator: sysctl -w user.max_user_namespaces" in done.stdout
    run = user.run(*outer, "sh", "-c", script, "sh", *drop, "udi-run", "/", "true")
    assert run.returncode == 125
    why = "unshare failed: No space left on device\nudi-run: hint: user.max_user_namespaces is 0: "
    assert (
        why in run.stderr and "the administrator: sysctl -w user.max_user_namespaces" in run.stderr
    )


@pytest.mark.root
def test_doctor_names_a_chroot(user: User, tmp_path: Path) -> None:
    """There unshare(2) is refused, whatever the kernel's age."""
    script = (
        'mount --bind "$0/whole" "$0/whole"; for one in /*; do for root in whole plain; do '
        'if [ -L $one ]; then cp -a $one "$0/$root"; elif [ -d $one ]; then '
        'mkdir "$0/$root$one"; mount --rbind $one "$0/$root$one"; fi; done; done; '
        'root=$1; shift; exec chroot "$0/$root" "$@"'
    )
    enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
    for name in ("whole", "plain"):
        for folder in ("whole", "plain"):
            (tmp_path / name / folder).mkdir(parents=True)
        words = [*enter, tmp_path / name, name, *user.argv(TREE / "bin/udi", "doctor")]
        done = subprocess.run(words, env=user.env, capture_output=True, text=True)
        assert done.returncode == 1 and "chroot" in done.stdout, done.stdout + done.stderr
        assert ("this is a chroot" in done.stdout) is (name == "plain")
        assert "Linux 5.11" not in done.stdout and "kernel of 4.18" not in done.stdout


def test_doctor_reports_a_bad_state_directory(user: User) -> None:
    bad = user.home / "run/rootless_udi"
    bad.symlink_to("/tmp")
    done = user.run("udi", "doctor")
    assert "state directory: the state directory" in done.stdout and "symbolic link" in done.stdout
    bad.unlink()
    bad.mkdir()
    bad.chmod(0o755)
    assert "it is open to others" in user.run("udi", "doctor").stdout


def test_doctor_reports_a_store_that_can_not_be_written(user: User) -> None:
    done = user.run("udi", "doctor", env={"UDI_STORE": "/proc/store"})
    assert done.returncode == 1 and "not writable" in done.stdout


def test_file_systems_are_named() -> None:
    assert trees.filesystem("/proc/self") == "proc"


def test_what_a_check_of_the_doctor_tries_in_a_child() -> None:
    """In an interpreter of its own, as the doctor is: this one has threads, and fork(2) none."""
    code = (
        "import os, sys; from rootless_udi.commands import doctor; print(repr(doctor.in_child({})))"
    )
    for body, said in (
        ("lambda: os._exit(0)", "''"),
        ("lambda: os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("lambda: print(1 / 0)", "ZeroDivision"),
    ):
        argv = [sys.executable, "-W", "error", "-c", code.format(body)]
        done = subprocess.run(argv, cwd=TREE, capture_output=True, text=True)
        assert said in done.stdout and not done.stderr, done.stderr


@pytest.mark.root
def test_root_is_refused(user: User) -> None:
    for program, word in (("udi-run", "x"), ("udi", "ps"), ("shifterimg", "images")):
        words: list[str | Path] = [TREE / "bin" / program, word]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == (1 if program == "shifterimg" else 125)
        assert "runs as an ordinary user, and this is root" in done.stderr
    group = ["setpriv", f"--reuid={user.uid}", "--regid=0", "--clear-groups"]
    done = subprocess.run([*group, TREE / "bin/udi-run", "x"], capture_output=True, text=True)
    assert done.returncode == 125 and "group 0" in done.stderr


@pytest.mark.root
def test_setuid_is_refused(user: User, tmp_path: Path) -> None:
    """A setuid interpreter is what a careless administrator could make."""
    python = tmp_path / "python3"
    python.write_bytes(Path("/usr/bin/python3").read_bytes())
    os.chown(python, 1, 1)
    python.chmod(0o6755)
    tmp_path.chmod(0o755)
    done = user.run(python, "-IS", TREE / "bin/udi-run", "x")
    assert done.returncode == 125 and "is setuid or setgid, and refuses" in done.stderr


@pytest.mark.root
def test_supplementary_groups_keep_their_access(user: User, tmp_path: Path) -> None:
    """[14]: they show as the overflow id, and open what they opened before."""
    folder = user.home / "shared"
    folder.mkdir()
    (folder / "file").write_text("for the group\n")
    os.chown(folder, 0, 54321)
    folder.chmod(0o750)
    box = user.home / "layout"
    images.busybox_layout(box)
    os.system(f"chmod -R a+rX {box}")
    words = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--groups=54321"]
    argv = [f"{TREE}/bin/udi-run", f"--volume={folder}:/data", f"oci:{box}:latest", "/bin/sh", "-c"]
    script = "/bin/cat /data/file; /bin/id -G; /bin/id -Gn"
    done = subprocess.run([*words, *argv, script], env=user.env, capture_output=True, text=True)
    out = done.stdout.splitlines()
    assert out[0] == "for the group" and "65534" in out[1] and "nogroup" in out[2]


@pytest.mark.root
def test_a_uid_without_an_account(user: User, tmp_path: Path) -> None:
    """[10]"""
    box = tmp_path / "layout"
    images.busybox_layout(box)
    home = tmp_path / "nobody"
    home.mkdir()
    os.chown(home, 123456, 123456)
    os.system(f"chmod -R a+rX {tmp_path}")
    words = ["setpriv", "--reuid=123456", "--regid=123456", "--clear-groups", TREE / "bin/udi-run"]
    env = {"PATH": user.env["PATH"], "HOME": str(home), "USER": "ghost"}
    argv = [*map(str, words), f"oci:{box}:latest", "/bin/sh", "-c", "/bin/id -un; /bin/id -u"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["ghost", "123456"], done.stderr


# profile and optimize


@pytest.mark.needs("fuse")
def test_profile_and_optimize(user: User, pulled: str) -> None:
    """The optimised layout is in the store under the same name and digest, and goes with it."""
    noted = user.home / "start.profile"
    words = ["udi", "profile", "-o", noted, pulled, "--", "/bin/cat", "/etc/group"]
    done = user.run(*words)
    assert done.returncode == 0 and "root:x:0:" in done.stdout, done.stderr
    done = user.run("udi", "optimize", pulled, noted)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    assert made.name.endswith(".optimized.sqfs")
    plan = json.loads(user.run("udi-run", "--explain=json", pulled).stdout)
    assert plan["root"]["path"] == str(made)
    assert made.name.removesuffix(".optimized.sqfs").replace("-", ":") == plan["digest"]
    assert user.run("udi-run", pulled, "/bin/echo", "x").stdout == "x\n"
    assert len(json.loads(user.run("udi", "images", "--json").stdout)) == 1
    user.run("udi", "rm", pulled)
    assert not made.exists()


@pytest.mark.needs("fuse")
def test_a_damaged_optimised_image_is_mended_by_a_pull(user: User, pulled: str) -> None:
    noted = user.home / "start.profile"
    user.run("udi", "profile", "-o", noted, pulled, "--", "/bin/cat", "/etc/group")
    made = Path(user.run("udi", "optimize", pulled, noted).stdout.strip())
    os.truncate(made, 4096)
    assert "it is cut off" in user.run("udi-run", pulled, "true").stderr
    assert user.run("udi", "pull", "-q", "--force", pulled).returncode == 0
    assert not made.exists()
    assert user.run("udi-run", pulled, "true").returncode == 0


def test_profile_needs_a_command(user: User, pulled: str) -> None:
    done = user.run("udi", "profile", pulled)
    assert done.returncode == 125 and "no command is given" in done.stderr
    done = user.run("udi", "optimize", pulled, "/nowhere")
    assert done.returncode == 125 and "Traceback" not in done.stderr
    done = user.run("udi", "optimize", "/some.sqfs", "/nowhere")
    assert done.returncode == 125 and "--output is missing" in done.stderr


@pytest.mark.needs("prctl")
def test_a_process_outside_shows_its_own_words_without_proc() -> None:
    """Where /proc is not there python-prctl knows where the command line lies."""
    code = (
        f"import sys; sys.path.insert(0, {str(TREE)!r}); from rootless_udi.serve import outside; "
        "outside._arguments = lambda: (0, 0); outside.title('udi-image'); "
        "print(open('/proc/self/cmdline').read().split(chr(0))[0], open('/proc/self/comm').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["udi-image", "udi-image"], done.stderr


def no_image(user: User) -> str:
    return f"no image is in {user.env['UDI_STORE']}: udi pull IMAGE brings one\n"


def test_nothing_is_imported_from_the_current_folder(user: User, tmp_path: Path) -> None:
    """Which may be /tmp: of a checkout, too, whose path may have a quote in it."""
    for name in ("argparse", "trio", "rich", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not yours')")
    odd = tmp_path / "it's odd"
    odd.symlink_to(TREE)
    for program in ("udi", "shifterimg"):
        done = user.run(odd / "bin" / program, "images", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr in ("", no_image(user))


def test_an_old_python_is_named(user: User, tmp_path: Path) -> None:
    """Or a newer one beside it taken, which there is none of here."""
    (tmp_path / "python3").write_text(
        "#!/bin/sh\nwhile case $1 in -I) shift ;; -X) shift 2 ;; *) false ;; esac; do :; done\n"
        f"exec {sys.executable} -c "
        "\"import sys; sys.version_info = (3, 9); sys.version = '3.9.18 (main)'; del sys.argv[0]; "
        '__file__ = sys.argv[0]; exec(open(__file__).read())" "$@"\n'
    )
    (tmp_path / "python3").chmod(0o755)
    for name in ("readlink", "dirname"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = user.run(TREE / "bin/udi", "doctor", env={"PATH": str(tmp_path)})
    assert done.returncode == 125
    assert done.stderr == "udi: Python 3.11 or newer is needed, and this is 3.9.18\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(user: User, tmp_path: Path, closed: str) -> None:
    """As cron and some daemons leave them."""
    images.busybox_layout(tmp_path / "layout")
    image = f"oci:{tmp_path}/layout:latest"
    for words in (f"udi pull {image}", f"udi-run {image} true", "shifterimg images"):
        done = user.run("sh", "-c", f"{words} {closed}")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    for words in ("udi login 127.0.0.1:9", "shifterimg login"):
        done = user.run("sh", "-c", f"{words} {closed}")
        assert done.returncode in (1, 125) and "Traceback" not in done.stderr, done.stderr


def test_profile_of_what_does_not_start_ends_at_once(user: User, tmp_path: Path) -> None:
    done = user.run("udi", "profile", "-o", tmp_path / "p", "./nothere.sqfs", "--", "ls")
    assert done.returncode == 125 and os.listdir(tmp_path) == ["home"]
    assert done.stderr.count("\n") == 1 and "nothere.sqfs failed: No such file" in done.stderr


def test_something_else_in_the_place_of_dev_fuse(user: User, pulled: str) -> None:
    """Some container engines put /dev/null over what they hide."""
    hidden = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    ordinary = f"unshare --user --map-user={user.uid} --map-group={user.gid}"
    script = f"mount --bind /dev/null /dev/fuse && exec {ordinary} "
    done = user.run(*hidden, script + "udi doctor")
    assert "warning /dev/fuse: something else is in its place" in done.stdout, done.stderr
    done = user.run(*hidden, script + f"udi-run --explain {pulled} true")
    assert "the image extracted to a directory" in done.stdout, done.stderr


def test_a_store_that_is_closed_to_the_caller_is_named(user: User, tmp_path: Path) -> None:
    images.busybox_layout(tmp_path / "layout")
    name = f"oci:{tmp_path}/layout:latest"
    site = tmp_path / "site"
    assert user.run("udi", "pull", "-q", name, env={"UDI_STORE": str(site)}).returncode == 0
    conf = tmp_path / "udi.toml"
    conf.write_text(f'[store]\nsite = ["{site}"]\n')
    env = {"UDI_CONFIG": str(conf)}
    assert user.run("udi-run", "--pull=never", name, "true", env=env).returncode == 0
    site.chmod(0)
    never = user.run("udi-run", "--pull=never", name, "true", env=env)
    inspected = user.run("udi", "inspect", name, env=env)
    missing = user.run("udi-run", name, "true", env=env)
    site.chmod(0o700)
    assert never.returncode == inspected.returncode == 125
    for done in (never, inspected, missing):
        assert f"; permission denied on {site}\n" in done.stderr
    assert missing.returncode == 0


def test_a_working_directory_that_has_been_removed(user: User, tmp_path: Path) -> None:
    for words in ("udi pull oci:box", "udi-run oci:box true"):
        script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {words}"
        done = user.run("sh", "-c", script)
        assert done.returncode == 125
        assert done.stderr.endswith(": the working directory has been removed\n")


def test_ps_says_which_state_directory_it_does_not_trust(user: User, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (user.home / "run/rootless_udi").symlink_to(tmp_path / "elsewhere")
    done = user.run("udi", "ps")
    assert done.returncode == 0 and f"{user.home}/run/rootless_udi" in done.stderr


# Run, shell, and words of other tools


@pytest.mark.needs("userns", "fuse", "busybox")
def test_udi_run_becomes_udi_run(user: User, box: Path) -> None:
    process = user.popen("udi", "run", "-it", "--rm", box, "sh", "-c", "echo $$", stdout=-1)
    out, _ = process.communicate(timeout=120)
    assert int(out) == process.pid and process.returncode == 0
    done = user.run("udi", "run", "--nosuch", box)
    assert done.returncode == 125 and done.stderr.startswith("udi-run: unknown option --nosuch")


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_shell_whose_prompt_shows_the_image(user: User, box: Path) -> None:
    """By PS1 for busybox's sh; what bash does with PROMPT_COMMAND is tried on the host's."""
    leader, follower = os.openpty()
    process = user.popen("udi", "shell", box, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    seen = b""
    while f"[{box}] ".encode() not in seen:
        seen += os.read(leader, 4096)
    os.write(leader, b"exit 7\n")
    assert process.wait(60) == 7
    os.close(leader)
    asked = user.run("udi", "shell", "--explain", box)
    assert asked.returncode == 0
    done = user.run("udi", "shell", box, "ls")
    assert done.returncode == 125 and f"hint: udi run {box} ls ..." in done.stderr
    assert "usage: udi-run" in user.run("udi", "shell", "--help").stdout


@pytest.mark.parametrize("own", ["host> ", ""])
def test_bash_keeps_its_own_prompt_behind_the_images_name(own: str) -> None:
    """Once, whether its start-up files set PS1 or not; and children inherit nothing."""
    for name in ("a/b:1", "odd$name`x`"):
        shown = shell.marks(name)[0].removeprefix("PS1=").removesuffix("$PWD $ ")
        env = dict(pair.split("=", 1) for pair in shell.marks(name))
        script = f"PS1='{own or env['PS1']}'"
        script += '; eval "$PROMPT_COMMAND"; echo "$PS1"; echo "[${PROMPT_COMMAND-}]"'
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
        first = own or "$PWD $ "
        assert done.stdout == f"{shown}{first}\n[]\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("rmi", "udi rm IMAGE"),
        ("build", "udi pull takes it"),
        ("pul", "did you mean pull"),
        ("docter", "did you mean doctor?"),
        ("ubuntu:24.04", "udi run ubuntu:24.04"),
        ("xyzzy", "see udi --help"),
    ],
)
def test_commands_that_udi_does_not_have(user: User, word: str, hint: str) -> None:
    done = user.run("udi", word, "ubuntu")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"udi: udi has no command {word}\nudi: hint: ")
    assert hint in done.stderr


def test_reports_as_json(user: User) -> None:
    """ps, images and inspect have theirs tested beside them."""
    found = json.loads(user.run("udi", "doctor", "--json").stdout)
    assert {"state", "what", "found", "remedy"} == set(found[0])
    (user.home / "site").mkdir()
    (user.home / "site/udi.toml").write_text('[user]\nhome = true\n[site]\nnme = "x"\n')
    done = user.run(
        "udi", "config", "show", "--json", env={"UDI_SITE_DIR": str(user.home / "site")}
    )
    shown = json.loads(done.stdout)
    assert shown["home"] is True and shown["origins"]["user.home"].endswith("udi.toml:2")
    assert shown["problems"][0]["line"] == 4 and done.returncode == 1 and done.stderr == ""
    done = user.run("udi", "gpu", "--json", "--gpu=none")
    assert json.loads(done.stdout)["steps"] == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("image ls", "udi images"),
        ("image rm alpine", "udi rm alpine"),
        ("image inspect alpine", "udi inspect alpine"),
        ("system df", "udi df"),
        ("system prune", "udi prune"),
        ("cache clean", "udi prune"),
        ("container ls", "udi ps"),
        ("cp a b", "--volume=SRC:DST"),
        ("top", "udi ps"),
        ("images -a", "see udi images --help"),
        ("images --digest-s", "did you mean --digests"),
        ("prune --all", "see udi prune --help"),
        ("config check x", "see udi config check --help"),
    ],
)
def test_words_of_other_tools_have_an_answer(user: User, words: str, hint: str) -> None:
    done = user.run("udi", *words.split())
    assert done.returncode == 2 and "udi: hint: " in done.stderr
    assert hint in done.stderr and "usage" not in done.stderr
