"""udi-run at its seam, the command: what it shows, keeps, refuses and returns.

The numbers in brackets are the items of "Semantics" in docs/semantics.md.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import plans, terminal
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return standard output's lines of a command that went well."""
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def environment(user: User, *argv: object, **more: str) -> dict[str, str]:
    """Return the variables that `env` prints in a container."""
    done = user.run("udi-run", *argv, "env", env=more)
    return dict(line.partition("=")[::2] for line in lines(done))


# Environment


def test_image_overrides_host_and_options_override_image(user: User, box: Path) -> None:
    """[1, 3]"""
    plain = environment(user, box, GREETING="host", OTHER="host")
    assert (plain["GREETING"], plain["OTHER"], plain["PATH"]) == ("image", "host", "/bin")
    assert "NOEQUALS" not in plain and "EMPTY" not in plain
    file = user.home / "vars"
    file.write_text("# comment\n\n  GREETING=file  \nQUOTED='a b'\n")
    filed = environment(user, f"--env-file={file}", box)
    assert (filed["GREETING"], filed["QUOTED"]) == ("file", "'a b'")
    both = environment(user, "--env=GREETING=option", f"--env-file={file}", "-eNONE=", box)
    assert (both["GREETING"], both["NONE"]) == ("option", "")


def test_loader_variables_of_the_host_stay_outside(user: User, box: Path) -> None:
    """[2]"""
    unsafe = {"LD_LIBRARY_PATH": "/x", "LD_PRELOAD": "", "TMPDIR": "/x", "GCONV_PATH": "/x"}
    found = environment(user, box, **unsafe)
    assert not set(unsafe) & set(found)
    assert environment(user, "--env=TMPDIR=/tmp", box, **unsafe)["TMPDIR"] == "/tmp"


def test_clearenv_keeps_image_and_options(user: User, box: Path) -> None:
    """[1]"""
    found = environment(user, "--clearenv", "--env=ONE=1", box, OTHER="host")
    assert found["ONE"] == "1" and found["GREETING"] == "image" and found["PATH"] == "/bin"
    assert "OTHER" not in found and "HOME" not in found


def test_marks_of_shifter(user: User, box: Path) -> None:
    """[1, 23]"""
    found = environment(user, box)
    assert found["SHIFTER_RUNTIME"] == "1"
    assert found["SHIFTER_IMAGEREQUEST"] == str(box)
    assert found["SHIFTER_IMAGE"] == box.stem.partition("-")[2]


def test_home_and_user_are_the_callers(user: User, box: Path) -> None:
    """[7]"""
    found = environment(user, box)
    assert (found["HOME"], found["USER"]) == (str(user.home), user.name)


@pytest.mark.parametrize("pair", ["NAME", "=value", ""])
def test_env_needs_name_and_equals(user: User, box: Path, pair: str) -> None:
    """[3]"""
    done = user.run("udi-run", "--env", pair, box, "true")
    assert done.returncode == 125
    assert "--env" in done.stderr and "NAME=VALUE" in done.stderr


def test_env_file_errors_name_the_line(user: User, box: Path) -> None:
    """[4]"""
    file = user.home / "vars"
    file.write_text("A=1\nexport\n")
    done = user.run("udi-run", f"--env-file={file}", box, "true")
    assert done.returncode == 125 and f"{file}, line 2" in done.stderr
    done = user.run("udi-run", "--env-file=/nowhere", box, "true")
    assert done.returncode == 125 and "--env-file /nowhere failed" in done.stderr


def test_an_empty_environment_stays_empty(user: User, box: Path) -> None:
    """What Python and sh put in does not reach the command."""
    user.env = {}
    done = user.run(TREE / "bin/udi-run", box, "/bin/env")
    names = {line.partition("=")[0] for line in lines(done)}
    marks = {"SHIFTER_RUNTIME", "SHIFTER_IMAGE", "SHIFTER_IMAGEREQUEST", "PATH", "GREETING"}
    assert names <= marks | {"PWD"}


# Command, folder


def test_the_command_is_looked_up_in_the_container(user: User, box: Path) -> None:
    """[6]"""
    tool = user.home / "bin"
    tool.mkdir()
    (tool / "onlyhost").write_text("#!/bin/sh\n")
    (tool / "onlyhost").chmod(0o755)
    done = user.run("udi-run", box, "onlyhost", env={"PATH": f"{user.env['PATH']}:{tool}"})
    assert done.returncode == 127
    assert "udi-run: onlyhost: not found on the container's PATH (/bin)" in done.stderr


def test_without_a_command_a_shell(user: User, box: Path) -> None:
    """[9]: the image's CMD is never used alone"""
    done = user.run("udi-run", box, input="echo from a shell\n")
    assert lines(done) == ["from a shell"]


def test_entrypoint(user: User, box: Path) -> None:
    """[9]"""
    assert lines(user.run("udi-run", "--entrypoint", box)) == ["entry from cmd"]
    assert lines(user.run("udi-run", "--entrypoint", box, "a", "b")) == ["entry a b"]
    assert lines(user.run("udi-run", "--entrypoint=/bin/basename", box, "/x/y")) == ["y"]
    assert lines(user.run("udi-run", box, "echo", "plain")) == ["plain"]


def test_options_end_at_the_image(user: User, box: Path) -> None:
    assert lines(user.run("udi-run", box, "echo", "--env=A=1", "-v")) == ["--env=A=1 -v"]
    assert lines(user.run("udi-run", f"--image={box}", "echo", "x")) == ["x"]
    assert lines(user.run("udi-run", "--", box, "echo", "x")) == ["x"]
    assert lines(user.run("udi-run", "echo", "x", env={"UDI_IMAGE": str(box)})) == ["x"]


def test_workdir(user: User, box: Path, tmp_path: Path) -> None:
    """[8]"""
    here = Path(os.path.realpath(tmp_path))
    assert lines(user.run("udi-run", box, "pwd", cwd=here)) == [str(here)]
    assert lines(user.run("udi-run", "--workdir", box, "pwd")) == ["/usr"]
    assert lines(user.run("udi-run", "--workdir=/etc", box, "pwd")) == ["/etc"]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("/nowhere", "No such file or directory"),
        ("/bin/busybox", "Not a directory"),
        ("/etc/passwd/x", "Not a directory"),
        ("relative", "No such file or directory"),
    ],
)
def test_a_workdir_that_is_not_inside_is_an_error(
    user: User, box: Path, folder: str, why: str
) -> None:
    """[8]: in a container of its own, in the one that builds and in the one that joins."""
    holder = user.popen(
        "udi-run", "--share=x", box, "sh", "-c", "echo up; read x", stdin=-1, stdout=-1
    )
    assert holder.stdout is not None and holder.stdout.readline() == "up\n"
    for share in ("off", "new", "x"):
        done = user.run("udi-run", f"--share={share}", f"--workdir={folder}", box, "pwd")
        said = f"udi-run: --workdir={folder} can't be entered in the container: {why}\n"
        assert done.returncode == 125 and done.stdout == "" and said in done.stderr
    holder.communicate("\n", timeout=120)
    done = user.run("shifter", f"--image={box}", f"--workdir={folder}", "pwd")
    assert lines(done) == ["/"]
    said = f"shifter: Failed to switch to working dir: {folder}, staying in /\n"
    assert done.stderr.replace("udi-run:", "shifter:") == said


def test_a_folder_whose_logical_name_is_not_inside(user: User, box: Path) -> None:
    """[8]: home directories that are links to where they are mounted."""
    for name in ("real/sub", "site"):
        (user.home / name).mkdir(parents=True)
    (user.home / "link").symlink_to("real")
    # Else all of it would be inside anyway.
    (user.home / "site/udi.toml").write_text(
        '[[mount]]\ndestination = "/tmp"\nenabled = false\n[user]\ncwd = false\n'
    )
    place = user.home / "link/sub"
    env = {"PWD": str(place), "UDI_SITE_DIR": str(user.home / "site")}
    for share in ("off", "x", "x"):
        for inside, wanted in (("real", os.path.realpath(place)), ("link", str(place)), ("no", "")):
            volume = f"--volume={user.home}/real:{user.home}/{inside}"
            argv = ["udi-run", f"--share={share}", volume, box, "sh", "-c", "pwd -P; echo $PWD"]
            done = user.run(*argv, cwd=place, env=env)
            message = f"udi-run: the folder {place} is not in the container; starting in /\n"
            assert done.stderr.startswith(message) if not wanted else done.stderr == ""
            assert lines(done) == [wanted or "/"] * 2


def test_a_folder_that_is_gone(user: User, box: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec udi-run "$0" pwd'
    done = user.run("sh", "-c", script, box)
    assert lines(done) == ["/"]


def test_errors_say_rank_and_node(user: User, box: Path) -> None:
    """A hundred ranks speak to one terminal; without a launcher nobody needs that."""
    node = os.uname().nodename
    # A module that is left out is one of the notes; those also say whose they are.
    notes = user.home / "notes"
    notes.mkdir()
    (notes / "udi.toml").write_text('[modules]\ndefault = ["mpi"]\n')
    for mark, name in (
        ({"PMI_RANK": "3"}, node),
        ({"PMIX_RANK": "3"}, node),
        ({"OMPI_COMM_WORLD_RANK": "3"}, node),
        ({"SLURM_PROCID": "3", "SLURMD_NODENAME": "n7"}, "n7"),
    ):
        note = ["udi-run", "--verbose", box, "true"]
        for argv in (["udi-run", "--nosuch", box], ["udi-run", box, "nosuch"], note):
            done = user.run(*argv, env={**mark, "UDI_SITE_DIR": str(notes)})
            assert done.stderr.startswith(f"udi-run: rank 3 on {name}: ")
            assert all(f"rank 3 on {name}: " in line for line in done.stderr.splitlines())
    assert "rank" not in user.run("udi-run", box, "nosuch").stderr


def test_verbose_says_that_user_is_ignored_once(user: User, box: Path) -> None:
    """[9]"""
    done = user.run("udi-run", "--verbose", box, "true")
    assert done.stderr.count("the image's USER nobody is ignored: you are you") == 1
    assert "USER" not in user.run("udi-run", box, "true").stderr


def test_explain_fits_the_terminal(user: User, box: Path) -> None:
    wide = user.run("udi-run", "--explain=wide", box).stdout
    assert user.run("udi-run", "--explain", box).stdout == wide
    shown = {}
    for colour in ("", "1"):
        leader, follower = os.openpty()
        termios.tcsetwinsize(follower, (24, 80))
        env = {"NO_COLOR": colour, "TERM": "xterm"}
        process = user.popen("udi-run", "--explain", box, stdout=follower, env=env)
        os.close(follower)
        seen = terminal.shown(leader)
        assert process.wait(60) == 0
        shown[colour] = seen.decode().replace("\r", "")
    assert "\x1b[" in shown[""] and "\x1b" not in shown["1"]
    assert max(len(line) for line in shown["1"].splitlines()) <= 80
    assert "".join(wide.split()) == "".join(shown["1"].split())


# The process


def test_the_command_is_the_process_itself(user: User, box: Path) -> None:
    """[11]"""
    process = user.popen("udi-run", box, "sh", "-c", "echo $$", stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=120)
    assert int(out) == process.pid


def test_signals_reach_the_command(user: User, box: Path) -> None:
    """[11]"""
    process = user.popen("udi-run", box, "sh", "-c", "echo up; sleep 60", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == -signal.SIGTERM
    process.stdout.close()


def test_sigpipe_has_its_default_again(user: User, box: Path) -> None:
    done = user.run("udi-run", box, "grep", "SigIgn", "/proc/self/status")
    ignored = int(lines(done)[0].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


@pytest.mark.parametrize("shell", [(), ("dash",), ("bash", "--posix"), ("busybox", "sh")])
def test_signals_that_the_caller_ignores_stay_ignored(
    user: User, box: Path, shell: tuple[str, ...]
) -> None:
    """[11]: Python ignores two of its own accord. A blocked signal is as the caller had it."""
    program = TREE / "bin/udi-run"
    code = (
        "import os, signal, sys\n"
        "ignored = {*map(int, sys.argv[1].split())}\n"
        # A shell ignores 2 and 3 for what it runs in the background, these tests for one.
        "for s in {1, 2, 3, 13, 15, 25}:\n"
        "    signal.signal(s, signal.SIG_IGN if s in ignored else signal.SIG_DFL)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {*map(int, sys.argv[2].split())})\n"
        "os.execvp(sys.argv[3], sys.argv[3:])"
    )
    show = [*shell, program, box, "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]
    for ignored in ((), (13,), (25,), (13, 25), (1, 2, 15, 13)):
        for blocked in ((), (10,), tuple({13, 25} - {*ignored})):
            words = (" ".join(map(str, ignored)), " ".join(map(str, blocked)))
            done = user.run(sys.executable, "-c", code, *words, *show)
            # posix_spawn(3), as make uses it, ignores 32 and 33 in its child: the C library's own.
            found = [int(line.split()[1], 16) & ~(3 << 31) for line in lines(done)]
            assert found == [sum(1 << (s - 1) for s in group) for group in (blocked, ignored)]


def test_no_variable_of_the_caller_is_changed_by_the_launcher(user: User, box: Path) -> None:
    """A shell hands on what it assigns, if the caller had exported a variable of that name."""
    names = ("me", "here", "python", "name", "seen", "ignored", "signal")
    mine = dict.fromkeys(names, "mine")
    found = environment(user, box, **mine)
    assert {name: found.get(name) for name in mine} == mine


def test_descriptors_stay_open(user: User, box: Path) -> None:
    """[11]: PMI_FD"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        process = user.popen(
            "udi-run", box, "sh", "-c", f"echo hello >&{number}", pass_fds=[number]
        )
        assert process.wait(60) == 0
        assert ours.recv(10) == b"hello\n"


def test_standard_output_ends_with_the_command(user: User, box: Path) -> None:
    """The helper outside holds none of the caller's descriptors."""
    fifo = user.home / "fifo"
    os.mkfifo(fifo)
    inner = f"exec 2>&-; (exec >&-; read x <{fifo}) & echo done"
    done = user.run("sh", "-c", f"udi-run {box} sh -c '{inner}' | cat; echo $?")
    assert lines(done) == ["done", "0"]
    fifo.write_text("and the container ends\n")


def test_no_child_that_the_command_did_not_make(user: User, box: Path) -> None:
    done = user.run("udi-run", box, "sh", "-c", "cat /proc/$$/task/$$/children; true")
    assert done.stdout.split() == [] or len(done.stdout.split()) == 1


def test_names_that_the_kernel_refuses_say_nothing_of_the_image(
    user: User, box: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, why in ((str(tmp_path / "loop"), "symbolic links"), ("x" * 300, "name too long")):
        done = user.run("udi-run", box, name)
        assert done.returncode == 126 and why in done.stderr and "hint" not in done.stderr


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status_is_the_commands(user: User, box: Path, status: int) -> None:
    """[12]"""
    assert user.run("udi-run", box, "sh", "-c", f"exit {status}").returncode == status


def test_status_126_and_127(user: User, box: Path) -> None:
    """[12]"""
    done = user.run("udi-run", box, "/etc/passwd")
    assert done.returncode == 126 and "not executable: Permission denied" in done.stderr
    assert user.run("udi-run", box, "/etc").returncode == 126
    done = user.run("udi-run", box, "/no/such")
    assert done.returncode == 127 and "udi-run: /no/such: not found" in done.stderr


def test_a_script_without_interpreter_line_is_the_shells(user: User, box: Path) -> None:
    script = user.home / "script"
    script.write_text("echo shell $1\n")
    script.chmod(0o755)
    argv = ["udi-run", f"--volume={user.home}:/data", box, "/data/script", "x"]
    assert lines(user.run(*argv)) == ["shell x"]


def test_a_missing_interpreter_is_named(user: User, box: Path) -> None:
    script = user.home / "script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    done = user.run("udi-run", f"--volume={user.home}:/data", box, "/data/script")
    assert done.returncode == 127
    assert "its interpreter or dynamic loader is not in the image" in done.stderr


def test_umask_is_kept(user: User, box: Path) -> None:
    """[25]"""
    done = user.run("sh", "-c", f"umask 027; udi-run {box} sh -c umask")
    assert lines(done) == ["0027"]


def test_no_privilege_inside(user: User, box: Path) -> None:
    """[13]"""
    text = "\n".join(lines(user.run("udi-run", box, "cat", "/proc/self/status")))
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"


# Ids and /etc


def test_ids_are_the_callers(user: User, box: Path) -> None:
    """[14]"""
    script = "id -u; id -g; id -un; id -gn; cat /proc/self/uid_map"
    uid, gid, name, _group, one_map = lines(user.run("udi-run", box, "sh", "-c", script))
    assert (int(uid), int(gid), name) == (user.uid, user.gid, user.name)
    assert one_map.split()[0] == str(user.uid) and one_map.split()[2] == "1"


def test_image_files_belong_to_the_caller(user: User, box: Path) -> None:
    done = user.run("udi-run", box, "stat", "-c", "%u:%g", "/bin/busybox")
    assert lines(done) == [f"{user.uid}:{user.gid}"]


def test_etc_is_the_containers_own(user: User, box: Path) -> None:
    """[15]"""
    script = "cat /etc/passwd; wc -c </etc/shadow; readlink /etc/mtab; cat /etc/nsswitch.conf"
    out = lines(user.run("udi-run", box, "sh", "-c", script))
    assert any(line.startswith(f"{user.name}:x:{user.uid}:{user.gid}:") for line in out)
    assert {"0", "/proc/mounts", "passwd: files", "hosts: files dns"} <= set(out)
    for name in ("hosts", "resolv.conf"):
        host = Path("/etc", name)
        if host.exists():
            inside = user.run("udi-run", box, "cat", f"/etc/{name}").stdout
            assert inside == host.read_text()


# File systems


def test_host_file_systems_are_inside(user: User, box: Path) -> None:
    """[16]"""
    mark = Path("/tmp") / f"udi-test-{os.getpid()}"
    mark.write_text("shared")
    try:
        script = f"cat {mark}; test -e /proc/self -a -e /sys/kernel && echo x >/dev/null && echo ok"
        assert lines(user.run("udi-run", box, "sh", "-c", script)) == ["sharedok"]
    finally:
        mark.unlink()


def test_root_is_read_only(user: User, box: Path) -> None:
    """[17]"""
    for place in ("/x", "/etc/x", "/run/x", "/var/x", "/opt/udiImage/x"):
        done = user.run("udi-run", box, "touch", place)
        assert "Read-only file system" in done.stderr, place
    for place in ("/tmp", "/var/tmp"):
        done = user.run("udi-run", box, "sh", "-c", f"f=$(mktemp {place}/x.XXXXXX) && rm $f")
        assert done.returncode == 0, done.stderr


def test_run_is_fresh(user: User, box: Path) -> None:
    """[16]"""
    assert lines(user.run("udi-run", box, "ls", "-A", "/run", "/var/run")) == [
        "/run:",
        "",
        "/var/run:",
    ]


def test_writable_is_private_and_forgotten(user: User, box: Path) -> None:
    script = "echo changed >/bin/new && rm /bin/ls && echo x >>/bin/busybox2 && cat /bin/new"
    assert lines(user.run("udi-run", "--writable", box, "sh", "-c", script)) == ["changed"]
    done = user.run("udi-run", "--writable", box, "sh", "-c", "ls /bin/new; ls -d /bin/ls")
    assert done.stdout == "/bin/ls\n" and "No such file" in done.stderr


def test_an_images_own_file_can_be_changed_when_writable(user: User, box: Path) -> None:
    """Its owner is mapped, else the overlay could not copy it up."""
    script = "chmod 700 /usr && echo x >/usr/bin/file && stat -c %a /usr"
    assert lines(user.run("udi-run", "--writable", box, "sh", "-c", script)) == ["700"]


def test_the_accounts_can_be_replaced_when_writable(user: User, box: Path) -> None:
    script = "cd /etc && echo a:x:1:1::/:/bin/sh >new && mv new passwd && cat passwd"
    assert lines(user.run("udi-run", "--writable", box, "sh", "-c", script)) == [
        "a:x:1:1::/:/bin/sh"
    ]
    script = "echo x >>/etc/passwd; stat -c %a /etc /etc/shadow"
    done = user.run("udi-run", box, "sh", "-c", script)
    assert done.stdout == "755\n600\n" and "Read-only file system" in done.stderr


def test_mount_flags(user: User, box: Path) -> None:
    """[13, 19]"""
    mounts = lines(user.run("udi-run", f"-V{user.home}:/data", box, "cat", "/proc/mounts"))
    flags = {line.split()[1]: line.split()[3].split(",") for line in mounts}
    for place in ("/", "/proc", "/sys", "/tmp", "/etc/hosts", "/data"):
        assert {"nosuid", "nodev"} <= set(flags[place]), place
    assert "nosuid" in flags["/dev"] and "ro" in flags["/"]


# Volumes


def test_volumes(user: User, box: Path) -> None:
    """[18]"""
    (user.home / "file").write_text("content")
    (user.home / "link").symlink_to("file")
    argv = [
        f"--volume={user.home}:/deep/er/data",
        "-V",
        f"{user.home}/link:/single",
        f"--volume={user.home}:/ro:ro",
    ]
    script = "cat /deep/er/data/file /single; echo new >/deep/er/data/made; touch /ro/x"
    done = user.run("udi-run", *argv, box, "sh", "-c", script)
    assert done.stdout == "contentcontent" and "Read-only" in done.stderr
    assert (user.home / "made").read_text() == "new\n"


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        ("/nowhere:/data", "no such file or directory on the host"),
        ("{home}/fifo:/data", "it is a FIFO or a socket"),
        ("{home}:/etc/x", "/etc"),
        ("{home}:/proc", "/proc"),
        ("{home}:/usr:suid", "suid"),
        (
            "{home}:/bin/busybox",
            "it is a file in the image, and a directory is to be mounted there",
        ),
        ("/etc/passwd:/bin", "it is a directory in the image, and a file is to be mounted there"),
    ],
)
def test_volumes_refused(user: User, box: Path, volume: str, why: str) -> None:
    os.mkfifo(user.home / "fifo")
    done = user.run("udi-run", "--volume=" + volume.format(home=user.home), box, "true")
    assert done.returncode == 125 and why in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_no_link_of_the_image_leads_a_mount_outside(user: User, box: Path) -> None:
    tree = user.home / "tree"
    (tree / "usr").mkdir(parents=True)
    (tree / "bin").mkdir()
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    (tree / "up").symlink_to("../../../../../../usr")
    (user.home / "mark").touch()
    argv = ["udi-run", f"--volume={user.home}:/up/new", tree, "/bin/busybox", "ls", "/usr/new"]
    assert "mark" in lines(user.run(*argv))
    assert not Path("/usr/new").exists()


# Images


def test_a_directory_and_a_foreign_squashfs(user: User, box: Path) -> None:
    """Neither has the standard mount points; both are left as they were."""
    tree = user.home / "tree"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tree, box], check=True, capture_output=True)
    for name in ("proc", "sys", "dev", "run", "opt/udiImage", "etc/passwd", "etc/hosts"):
        path = tree / name
        path.rmdir() if path.is_dir() else path.unlink()
    before = sorted(os.listdir(tree))
    assert lines(user.run("udi-run", tree, "id", "-un")) == [user.name]
    assert sorted(os.listdir(tree)) == before
    foreign = user.home / "foreign.sqfs"
    subprocess.run(["mksquashfs", tree, foreign, "-quiet", "-no-progress"], check=True)
    assert lines(user.run("udi-run", foreign, "id", "-un")) == [user.name]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is an empty file"),
        (b"not a squashfs file" * 100, "squashfs's magic number"),
        (None, "it is cut off"),
    ],
)
def test_a_damaged_image_is_refused(user: User, box: Path, content: bytes | None, why: str) -> None:
    broken = user.home / "broken.sqfs"
    broken.write_bytes(box.read_bytes()[:-10000] if content is None else content)
    done = user.run("udi-run", broken, "true")
    assert done.returncode == 125 and why in done.stderr


@pytest.mark.parametrize("server", ["udi", "squashfuse_ll"])
def test_an_image_with_damaged_tables(user: User, box: Path, server: str) -> None:
    """The superblock is good, the tables are not: no hang, no traceback."""
    data = bytearray(box.read_bytes())
    data[96 : len(data)] = bytes(len(data) - 96)
    broken = user.home / "broken.sqfs"
    broken.write_bytes(data)
    done = user.run("udi-run", f"--fuse={server}", broken, "true")
    assert done.returncode in (125, 126, 127)
    assert done.stderr.startswith("udi-run: ") and "Traceback" not in done.stderr


@pytest.mark.needs("mksquashfs", "squashfuse")
@pytest.mark.parametrize("server", ["udi", "squashfuse_ll"])
def test_a_root_directory_that_can_only_be_searched(user: User, box: Path, server: str) -> None:
    """Its owner is in no id map where the server shows the image's owners."""
    tree, image = user.home / "tree", user.home / "image.sqfs"
    assert user.run("unsquashfs", "-q", "-n", "-d", tree, box).returncode == 0
    words = ("-root-mode", "0711", "-force-uid", "4321", "-noappend", "-quiet")
    assert user.run("mksquashfs", tree, image, *words).returncode == 0
    argv = ("udi-run", "--env=PATH=/bin", f"--fuse={server}", image, "echo", "ok")
    assert lines(user.run(*argv)) == ["ok"]


def test_missing_images(user: User) -> None:
    done = user.run("udi-run", "--pull=never", "nosuch:1", "true")
    assert done.returncode == 125
    assert "image nosuch:1 is in no image store" in done.stderr
    assert "udi pull nosuch:1" in done.stderr
    done = user.run("udi-run", "/no/such.sqfs", "true")
    assert done.returncode == 125 and "opening image /no/such.sqfs failed" in done.stderr
    done = user.run("udi-run", user.home, "true")
    assert done.returncode == 125 and "is no root file system" in done.stderr


def test_a_job_of_several_ranks_never_pulls(user: User) -> None:
    done = user.run("udi-run", "nosuch:1", "true", env={"PMI_RANK": "0"})
    assert done.returncode == 125 and "a job of several ranks never pulls" in done.stderr


def test_an_image_that_is_missing_is_pulled_first(user: User, tmp_path: Path) -> None:
    from tests.kit import images

    images.busybox_layout(tmp_path / "layout")
    argv = ["udi-run", f"oci:{tmp_path}/layout:latest", "/bin/echo", "ran"]
    first, second = user.run(*argv), user.run(*argv)
    assert first.stdout == second.stdout == "ran\n"
    assert "merging the layers" in first.stderr and second.stderr == ""


# The ladder


@pytest.mark.parametrize(
    "server",
    [
        "udi",
        "squashfuse_ll",
        "directory",
        pytest.param("pyfuse3", marks=pytest.mark.needs("pyfuse3")),
        pytest.param("fuse-python", marks=pytest.mark.needs("fuse-python")),
    ],
)
def test_every_rung(user: User, tmp_path: Path, server: str) -> None:
    from tests.kit import images

    images.busybox_layout(tmp_path / "layout")
    argv = ["udi-run", f"--fuse={server}", f"oci:{tmp_path}/layout:latest", "/bin/busybox", "id"]
    assert user.run(*argv).stdout.startswith(f"uid={user.uid}")
    assert user.run(*argv).stdout.startswith(f"uid={user.uid}")


def without_fuse(user: User) -> list[str]:
    """Return words that run a command where /dev/fuse may not be opened, as the same user."""
    sealed = user.home / "sealed"
    sealed.touch(mode=0)
    script = (
        f'mount --bind {sealed} /dev/fuse && exec setpriv --ambient-caps=-all --inh-caps=-all "$@"'
    )
    unshare = ["unshare", "--user", "--map-current-user", "--mount", "--keep-caps"]
    return [*unshare, "sh", "-c", script, "sh"]


def test_without_fuse_the_image_is_extracted(user: User, tmp_path: Path) -> None:
    from tests.kit import images

    images.busybox_layout(tmp_path / "layout")
    image = f"oci:{tmp_path}/layout:latest"
    argv = [*without_fuse(user), "udi-run", image, "/bin/echo", "no fuse"]
    assert user.run(*argv).stdout == "no fuse\n"
    explained = user.run(*without_fuse(user), "udi-run", "--explain", image)
    assert "not udi: /dev/fuse is missing or may not be opened" in explained.stdout


def test_without_any_rung_doctor_is_named(user: User, box: Path) -> None:
    done = user.run(*without_fuse(user), "udi-run", "--fuse=udi", box, "true")
    assert done.returncode == 125 and "udi doctor" in done.stderr
    assert "there is no way to mount" in done.stderr


# Explain, errors


def test_explain_is_a_plan_that_reads_back(user: User, box: Path) -> None:
    from rootless_udi.launch import explain

    done = user.run("udi-run", "--explain=json", f"-V{user.home}:/data", box, "true")
    plan = plans.from_json(done.stdout)
    assert explain.as_json(plan) == done.stdout
    assert plan.uid == user.uid and plan.root.path == os.path.realpath(box)
    assert any(step.target == "/data" and "--volume" in step.reason for step in plan.steps)
    assert json.loads(done.stdout)["type"] == "Plan"
    text = user.run("udi-run", "--explain", box).stdout
    assert "default: the caller's accounts" in text and "overlay" in text


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "no image is given"),
        (["--nosuch"], "unknown option --nosuch"),
        (["--volum=/a:/b", "x"], "did you mean --volume"),
        (["--env"], "needs a value"),
        (["--writable=yes", "x"], "takes no value"),
        (["--pull=sometimes", "x"], "missing, lazy, never, always"),
        (["--fuse=nosuch", "{box}", "true"], "nosuch"),
        (["UPPER/Case", "true"], "UPPER"),
        (["--workdir", "{plain}", "true"], "no WORKDIR"),
        (["--entrypoint", "{plain}", "true"], "no ENTRYPOINT"),
    ],
)
def test_words_that_are_refused(user: User, box: Path, argv: list[str], why: str) -> None:
    plain = user.home / "plain.sqfs"
    plain.write_bytes(box.read_bytes())
    done = user.run("udi-run", *(word.format(box=box, plain=plain) for word in argv))
    assert done.returncode == 125
    assert done.stderr.startswith("udi-run: ") and why in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(user: User) -> None:
    assert "--volume" in user.run("udi-run", "--help").stdout
    assert lines(user.run("udi-run", "--version")) == ["udi-run 0.1.0"]


def test_odd_surroundings(user: User, box: Path) -> None:
    """A read-only folder, HOME unset, closed descriptors, a symbolic link to the launcher."""
    locked = user.home / "locked"
    locked.mkdir(mode=0o555)
    del user.env["HOME"]
    assert lines(user.run("udi-run", box, "echo", "ok", cwd=locked)) == ["ok"]
    done = user.run("sh", "-c", f"udi-run {box} sh -c 'exit 7' <&- >&- 2>&-")
    assert done.returncode == 7
    link = user.home / "linked"
    link.symlink_to(TREE / "bin/udi-run")
    assert lines(user.run(link, box, "echo", "ok")) == ["ok"]


def test_nothing_remains(user: User, box: Path) -> None:
    assert user.run("udi-run", box, "true").returncode == 0
    state = user.home / "run/rootless_udi"
    wait_for(lambda: not list(state.iterdir()))
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def wait_for(condition: "object", seconds: float = 60) -> None:
    """Wait until `condition()` is true: what the kernel does after the last exit takes a moment."""
    import time

    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
