"""ssh's texts and places: keys that are let in, names, and what is refused."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.commands import sshd, sshd_peers
from rootless_udi.ssh import folder, place, texts

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxRQxrt77gTAx"
NODE = texts.SshNode("7", ("n0",), "n0.here", 22, "me", KEY, 0, 12, 345)


def test_a_block_tells_who_serves() -> None:
    text = texts.block(NODE, "/f")
    assert texts.read(text) == (0, 12, 345, "n0.here", "n0")
    assert "Host n0 udi-7-n0\n" in text and "StrictHostKeyChecking yes\n" in text


@pytest.mark.parametrize(
    "text", ["", "Host x", "# udi 1 2 3", "# udi a 2 3 h n\n", "# udi 1 2 3 h n x"]
)
def test_what_is_no_block(text: str) -> None:
    assert texts.read(text) is None


def test_keys_that_are_let_in() -> None:
    assert [*texts.keys(f"# mine\n\n{KEY} me@laptop\n", "f")] == [KEY]
    for text in (f'command="x" {KEY}', "ssh-ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----"):
        with pytest.raises(UdiError, match="--authorize=f: line 1 is no public key without"):
            [*texts.keys(text, "f")]
    with pytest.raises(UdiError, match="no public key is in it"):
        [*texts.keys("\n", "f")]


@pytest.mark.parametrize("path", ["/a b", "/a'b", "/a%h", "/a\nb", "/~me", '/a"b', "/ä"])
def test_paths_that_openssh_cant_name(path: str) -> None:
    with pytest.raises(UdiError, match="OpenSSH's configuration can't name a path with"):
        texts.plain(path, "the folder")


@pytest.mark.parametrize(
    ("environ", "job", "node", "rank", "size"),
    [
        ({}, "", "", 0, 1),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "7", "", 0, 1),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURMD_NODENAME": "n1",
            },
            *("7", "n1", 1, 2),
        ),
        ({"PBS_JOBID": "12[3].server", "PMI_RANK": "3", "PMI_SIZE": "4"}, "12-3-.server", "", 3, 4),
        ({"JOB_ID": "../x", "PMI_RANK": "9", "PMI_SIZE": "4"}, "x", "", 0, 1),
    ],
)
def test_where_it_runs(environ: dict[str, str], job: str, node: str, rank: int, size: int) -> None:
    host = os.uname().nodename
    found = place.here(environ)
    assert (found.job.lstrip("-"), found.rank, found.size) == (job or found.node, rank, size)
    assert found.node == (node or host.partition(".")[0])
    assert (host in found.names) == (not node)


def test_no_home(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="since HOME is not set"):
        folder.parent({}, None)
    assert folder.parent({}, "/x") == "/x"
    assert folder.parent({"HOME": "/h"}, None) == "/h/.local/state/rootless_udi/ssh-jobs"


def test_a_folder_that_others_may_enter(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7").chmod(0o755)
    with pytest.raises(UdiError, match="is open to others, or somebody else's"):
        folder.job(str(tmp_path), "7")
    (tmp_path / "8").symlink_to(tmp_path / "7")
    with pytest.raises(UdiError, match="is open to others, or somebody else's"):
        folder.job(str(tmp_path), "8")


@pytest.fixture
def readonly(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("")
    yield tmp_path / "file"


def test_a_folder_that_cant_be_made(readonly: Path) -> None:
    with pytest.raises(UdiError, match="making "):
        folder.job(str(readonly), "7")


def test_what_a_killed_one_left_is_swept(tmp_path: Path) -> None:
    job = folder.job(str(tmp_path / "jobs"), "7")
    dead = NODE.replace(host=os.uname().nodename, pid=1, start=1)
    folder.register(job, dead)
    other = NODE.replace(names=("n1",), host="elsewhere")
    folder.register(job, other)
    folder.sweep(str(tmp_path / "jobs"))
    assert [*folder.nodes(job)] == [(0, "n1")]
    folder.leave(job, "n1", (12, 346))
    assert [*folder.nodes(job)] == [(0, "n1")]
    folder.leave(job, "n1", (12, 345))
    assert not (tmp_path / "jobs").exists()


def test_a_machine_without_openssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sshd, "_PATH", "/nowhere")
    with pytest.raises(UdiError, match="this machine has no sshd"):
        sshd._program("sshd")
    with pytest.raises(UdiError, match="starting /nowhere/keygen failed"):
        folder.generate("/nowhere/key", "/nowhere/keygen")


@pytest.mark.needs("sshd")
def test_a_key_that_cant_be_made(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="making a key failed on "):
        folder.generate("/nowhere/key", sshd._program("ssh-keygen"))


def test_accounts_that_sshd_lets_in_nobody_of(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwuid(os.getuid())
    for shell in ("/usr/sbin/nologin", "/bin/false", "/no/such/shell"):
        changed = pwd.struct_passwd((*entry[:6], shell))
        monkeypatch.setattr(pwd, "getpwuid", lambda _, one=changed: one)
        with pytest.raises(UdiError, match=f"your login shell on this node is {shell}"):
            sshd._account()

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UdiError, match="has no name on this node"):
        sshd._account()


def test_mpis_launchers_are_told_to_use_ssh() -> None:
    """Also where Slurm has told them to use srun; not where the user has."""
    made = sshd_peers.by_ssh(
        {
            "HYDRA_BOOTSTRAP": "slurm",
            "HYDRA_LAUNCHER_EXTRA_ARGS": "--external-launcher",
            "A": "slurm",
        }
    )
    assert made["A"] == "slurm" and made["HYDRA_LAUNCHER"] == "ssh"
    assert not {"HYDRA_BOOTSTRAP", "HYDRA_LAUNCHER_EXTRA_ARGS"} & set(made)
    assert sshd_peers.by_ssh({"OMPI_MCA_plm": "isolated"})["OMPI_MCA_plm"] == "isolated"


@pytest.mark.parametrize("text", ["0", "x", "5-4", "70000", "-5", "5-"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UdiError, match=f"--port={text}: not a port"):
        sshd._listen(text)
