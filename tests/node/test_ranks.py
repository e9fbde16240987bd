"""Ranks of one node and job step share one container; nobody else does.

Each test starts real ranks and looks at the namespaces that their commands are in. Afterwards
nothing may remain: no process, no mount, no file.
"""

import compileall
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images
from tests.kit.calls import calls_of
from tests.kit.nodes import SHOW, Leftovers, Rank, busybox, counted, servers, squashfs
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def ranks(user: User, count: int, *argv: object, env: dict[str, str] | None = None) -> list[Rank]:
    """Start `count` ranks at once and wait until all run; each gets RANK in its environment."""
    started = [Rank(user, *argv, env={"RANK": str(i), **(env or {})}) for i in range(count)]
    return [rank.ready() for rank in started]


def spaces(*all_ranks: Rank) -> set[tuple[str, str]]:
    return {rank.namespaces for rank in all_ranks}


def host() -> tuple[str, str]:
    return os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt")


def end(*all_ranks: Rank) -> None:
    for rank in all_ranks:
        assert rank.end()[0] == 0


# Who shares


def test_ranks_of_one_name_share_one_container_and_one_server(
    user: User, image: Path, left: Leftovers
) -> None:
    four = ranks(user, 4, "udi-run", "--share=job", image)
    (one,) = spaces(*four)
    assert one[0] != host()[0] and one[1] != host()[1]
    assert len(servers(left)) == 1
    end(*four)


def test_the_variable_stands_for_the_option_and_the_option_wins(
    user: User, image: Path, left: Leftovers
) -> None:
    env = {"UDI_SHARE": "job"}
    two = ranks(user, 2, "udi-run", image, env=env)
    alone = ranks(user, 1, "udi-run", "--share=off", image, env=env)
    other = ranks(user, 1, "udi-run", "--share=other", image, env=env)
    assert len(spaces(*two)) == 1
    assert len(spaces(*two, *alone, *other)) == 3
    end(*two, *alone, *other)


def test_without_a_launcher_each_run_is_alone(user: User, image: Path, left: Leftovers) -> None:
    three = ranks(user, 3, "udi-run", image)
    assert len(spaces(*three)) == 3
    end(*three)


@pytest.mark.parametrize("mark", ["PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"])
def test_ranks_of_one_mpi_launcher_share(
    user: User, image: Path, left: Leftovers, mark: str
) -> None:
    """The launcher is the process that started them: here the test."""
    both = [Rank(user, "udi-run", image, env={mark: str(i)}).ready() for i in range(2)]
    # `wait` keeps dash from becoming its last command, and so a process of its own above it.
    script = 'udi-run "$0" "$@" <&3 & wait $!'
    other = Rank(user, "sh", "-c", f"exec 3<&0; {mark}=1; export {mark}; {script}", image).ready()
    assert len(spaces(*both)) == 1
    assert len(spaces(*both, other)) == 2
    end(*both, other)


def test_ranks_behind_wrapper_scripts_share(user: User, image: Path, left: Leftovers) -> None:
    """Each rank has a shell of its own between it and the launcher (binding, tracing scripts)."""
    script = 'exec 3<&0; udi-run "$0" "$@" <&3 & wait $!'
    both = [
        Rank(user, "sh", "-c", script, image, env={"PMI_RANK": str(i)}).ready() for i in range(2)
    ]
    assert len(spaces(*both)) == 1
    end(*both)


@pytest.mark.parametrize(
    "job",
    [
        {"PBS_JOBID": "7.server"},
        {"JOB_ID": "7", "SGE_TASK_ID": "undefined"},
        {"LSB_JOBID": "7"},
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n0"},
    ],
    ids=["PBS", "Grid Engine", "LSF", "Slurm"],
)
def test_a_job_is_told_by_its_environment(
    user: User, image: Path, left: Leftovers, job: dict[str, str]
) -> None:
    same = ranks(user, 2, "udi-run", image, env=job)
    others = []
    for name in sorted(set(job) - {"SLURM_PROCID"}):
        other = {**job, name: "8"}
        others += ranks(user, 1, "udi-run", image, env=other)
    assert len(spaces(*same)) == 1
    assert len(spaces(*same, *others)) == 1 + len(others)
    end(*same, *others)


def test_slurm_ranks_differ_in_their_number_only(user: User, image: Path, left: Leftovers) -> None:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n0"}
    both = [
        Rank(user, "udi-run", image, env={**step, "SLURM_PROCID": str(i)}).ready() for i in range(2)
    ]
    assert len(spaces(*both)) == 1
    end(*both)


def test_another_request_is_another_container(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    second = tmp_path / "second.squashfs"
    second.write_bytes(image.read_bytes())
    one = ranks(user, 1, "udi-run", "--share=job", image)
    others = [
        *ranks(user, 1, "udi-run", "--share=job", second),
        *ranks(user, 1, "udi-run", "--share=job", "--writable", image),
        *ranks(user, 1, "udi-run", "--share=job", f"--volume={tmp_path}:/mnt", image),
    ]
    assert len(spaces(*one, *others)) == 4
    end(*one, *others)


def test_a_variable_of_the_rank_is_no_other_request(
    user: User, image: Path, left: Leftovers
) -> None:
    one = ranks(user, 1, "udi-run", "--share=job", "--env=A=1", image)
    two = ranks(user, 1, "udi-run", "--share=job", "--env=A=2", "--workdir=/", image)
    assert len(spaces(*one, *two)) == 1
    assert one[0].end("echo $A")[1] == "1\n"
    assert two[0].end("echo $A; pwd")[1] == "2\n/\n"


# What a rank's command has


def test_environment_folder_and_descriptors_are_the_ranks_own(
    user: User, image: Path, left: Leftovers
) -> None:
    builder = ranks(user, 1, "udi-run", "--share=job", image, env={"OF_BUILDER": "1"})
    reader, writer = os.pipe()
    env = {"PMI_RANK": "1", "SLURM_PROCID": "5", "PMI_FD": str(writer)}
    words = f"{SHOW}; echo $PMI_RANK $SLURM_PROCID ${{OF_BUILDER-none}}; pwd; echo hello >&$PMI_FD"
    with user.popen(
        *("udi-run", "--share=job", image, "sh", "-c", words),
        env=env,
        cwd="/tmp",
        pass_fds=[writer],
        stdout=subprocess.PIPE,
    ) as joiner:
        out, _ = joiner.communicate(timeout=120)
    os.close(writer)
    with open(reader) as said:
        assert said.read() == "hello\n"
    assert out.split("\n") == [*builder[0].namespaces, "1 5 none", "/tmp", ""]
    end(*builder)


def test_the_command_is_the_process_that_the_launcher_started(
    user: User, image: Path, left: Leftovers
) -> None:
    both = ranks(user, 2, "udi-run", "--share=job", image)
    for rank in both:
        status, out, _ = rank.end("echo $$; exit 7")
        assert (status, out) == (7, f"{rank.pid}\n")


def test_a_joined_command_that_is_missing_or_no_program(
    user: User, image: Path, left: Leftovers
) -> None:
    one = ranks(user, 1, "udi-run", "--share=job", image)
    for words, status in ((["nothing-here"], 127), (["/etc/passwd"], 126)):
        done = user.run("udi-run", "--share=job", image, *words)
        assert done.returncode == status
        assert done.stderr.startswith(f"udi-run: {words[0]}: not ")
    end(*one)


def test_every_rank_is_protected_alike(user: User, image: Path, left: Leftovers) -> None:
    """No new privileges, no capabilities, none that could come back."""
    both = ranks(user, 2, "udi-run", "--share=job", image)
    show = "grep -E '^(NoNewPrivs|Cap)' /proc/self/status; exit 0"
    seen = [rank.end(show)[1].split("\n")[:-1] for rank in both]
    assert seen[0] == seen[1]
    found = dict(line.split(":\t") for line in seen[0])
    assert found.pop("NoNewPrivs") == "1"
    assert set(found) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert {int(value, 16) for value in found.values()} == {0}


def test_ranks_may_look_into_each_other(user: User, image: Path, left: Leftovers) -> None:
    """/proc/PID/cwd asks what process_vm_readv(2) asks: the same user namespace (ptrace(2))."""
    both = ranks(user, 2, "udi-run", "--share=job", image)
    alone = ranks(user, 1, "udi-run", image)
    look = f"readlink /proc/{both[0].pid}/cwd"
    assert both[1].end(look)[0] == 0
    assert alone[0].end(look)[0] != 0
    end(both[0])


def test_what_one_rank_writes_the_others_see(user: User, image: Path, left: Leftovers) -> None:
    both = ranks(user, 2, "udi-run", "--share=job", "--writable", image)
    assert both[0].end("echo here > /var/word")[0] == 0
    assert both[1].end("cat /var/word")[1] == "here\n"


# Many


@pytest.mark.needs("strace")
def test_a_join_opens_at_most_45_files(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    """Counted on a copy with its bytecode beside it, as an installer leaves it."""
    copy = tmp_path / "installed"
    shutil.copytree(TREE / "bin", copy / "bin")
    shutil.copytree(TREE / "rootless_udi", copy / "rootless_udi")
    compileall.compile_dir(copy, quiet=2)
    argv = (copy / "bin/udi-run", "--share=job", image)
    one = ranks(user, 1, *argv)
    log = tmp_path / "log"
    done = user.run("strace", "-f", "-o", log, "-e", "trace=/open,execve", *argv, "true")
    assert done.returncode == 0, done.stderr
    calls = [line for _, line in calls_of(log)]
    last = max(i for i, line in enumerate(calls) if "execve(" in line and line.endswith("= 0"))
    opens = [line for line in calls[:last] if line.startswith("open")]
    assert len(opens) <= 45, "\n".join(opens)
    end(*one)


def test_64_ranks_at_once(user: User, image: Path, left: Leftovers) -> None:
    many = ranks(user, 64, "udi-run", "--share=job", image)
    assert len(spaces(*many)) == 1
    assert len(servers(left)) == 1
    assert sorted(rank.end("echo $RANK")[1] for rank in many) == sorted(f"{i}\n" for i in range(64))


def test_64_ranks_that_end_at_once_never_fail(user: User, image: Path, left: Leftovers) -> None:
    """The hard case for peers: most ranks arrive when the first has already gone."""
    for _ in range(3):
        argv = ("udi-run", "--share=job", image, "true")
        many = [user.popen(*argv, stderr=subprocess.PIPE) for _ in range(64)]
        failed = [(p.returncode, err) for p in many if (err := p.communicate(timeout=120)[1])]
        assert failed == []
        assert {p.returncode for p in many} == {0}


def test_ranks_that_arrive_one_after_the_other(user: User, image: Path, left: Leftovers) -> None:
    """Each starts when the one before the last has gone: the container goes from hand to hand."""
    old = Rank(user, "udi-run", "--share=job", image).ready()
    first = old.namespaces
    for _ in range(8):
        new = Rank(user, "udi-run", "--share=job", image).ready()
        assert new.namespaces == first
        assert old.end()[0] == 0
        old = new
    end(old)


# Where the record lies


def private_tmp(user: User, script: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a script with a /tmp of its own; it sees the image as /tmp/image."""
    outer = ["unshare", "-Urm", "--map-current-user", "--keep-caps", "--propagation=private"]
    return user.run(*outer, "sh", "-ec", script, env=env)


@pytest.mark.parametrize("runtime", ["", "/nonexistent", "not/absolute"])
def test_without_a_runtime_directory_tmp_is_used(
    user: User, image: Path, left: Leftovers, runtime: str
) -> None:
    """XDG_RUNTIME_DIR is often unset under a batch system, or names a folder that is not there."""
    script = f"""
        mount --rbind {TREE} /mnt; PATH=/mnt/bin:$PATH
        exec 5< {image}; mount -t tmpfs none /tmp; cat <&5 > /tmp/image.squashfs; mkfifo /tmp/said
        run="udi-run --share=job /tmp/image.squashfs sh -c"
        $run '{SHOW}; exec sleep 1000' > /tmp/said & first=$!
        {{ read user; read mnt; }} < /tmp/said
        test "$user $mnt" = "$($run 'echo $({SHOW})')"
        stat -c '%a %u' /tmp/udi-{user.uid}
        find /tmp/udi-{user.uid} -type f -name '*.2' | wc -l
        kill $first; wait $first || true
        for try in $(seq 100); do
            test "$(find /tmp/udi-{user.uid} -type f)" || exit 0
            sleep 0.1
        done
        exit 1
    """
    done = private_tmp(user, script, {"XDG_RUNTIME_DIR": runtime})
    assert (done.returncode, done.stdout) == (0, f"700 {user.uid}\n1\n"), done.stderr


def test_an_image_of_another_root_is_told_apart(
    user: User, left: Leftovers, tmp_path: Path
) -> None:
    """The record says which image it is for; the same name with another image is another's."""
    entries = [*images.busybox_entries(), ("word", b"second\n", {})]
    second = squashfs(tmp_path / "second.squashfs", [images.tar(entries)])
    first = busybox(tmp_path)
    one = ranks(user, 1, "udi-run", "--share=job", first)
    done = user.run("udi-run", "--share=job", second, "cat", "/word", check=True)
    assert done.stdout == "second\n"
    end(*one)


@pytest.mark.needs("strace")
def test_a_member_behind_many_dead_ones_is_found_once(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    """Who finds it repeats its line, so that the next one tries it first; it is counted once."""
    first, second = ranks(user, 2, "udi-run", "--share=job", image)
    (record,) = (user.home / "run/rootless_udi").glob("*.2")
    with open(record, "ab") as file:
        file.write(b"".join(b"%d 7\n" % pid for pid in range(4190000, 4190300)))
    # Not through the builder, who is tried at once.
    builder = int(record.read_bytes().rpartition(b"4190000 7\n")[0].split()[-4])
    others = [first, second]
    others.sort(key=lambda rank: rank.pid != builder)
    assert others[0].end()[0] == 0
    opens = []
    for number in range(2):
        log = tmp_path / f"log{number}"
        watch = ["strace", "-f", "-e", "trace=open,openat", "-o", log]
        done = user.run(*watch, "udi-run", "--share=job", image, "true")
        assert done.returncode == 0, done.stderr
        opens.append(log.read_text().count("/ns/user"))
    assert opens[0] > 300 and opens[1] < 5
    rows = user.run("udi", "ps").stdout.splitlines()
    assert len(rows) == 2 and rows[1].split()[4] == "1"
    end(others[1])
