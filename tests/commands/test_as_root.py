"""udi as root: what root writes itself, and that nothing of an image is read with root's rights."""

import argparse
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base import account
from rootless_udi.base.errors import UdiError
from rootless_udi.commands import udi
from rootless_udi.commands.common import as_root
from tests.conftest import SYSTEM_PATH, User
from tests.kit import images
from tests.kit.cage import reachable
from tests.kit.places import TREE
from tests.kit.terminal import shown

OTHER = 54321
WRITER = """#!/bin/sh
{ grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|NoNewPrivs):' /proc/self/status
  echo tty: $(cut -d ' ' -f 7 /proc/self/stat)
  echo fds: $(for fd in /proc/$PPID/fd/*; do readlink $fd; done | grep -c secret)
  env | sed 's/^/env: /'; } >$0.log
PATH=/usr/local/bin:/usr/bin:/bin exec tar2sqfs "$@"
"""


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the names of the functions that the parser's words lead to."""
    found = parser.get_default("command")
    if found:
        yield as_root.name_of(found)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from commands(one)


def test_of_every_command_it_is_decided_who_does_it_for_root() -> None:
    sets = (as_root.ITSELF, as_root.OWNER, as_root.NOBODY, as_root.REFUSED)
    decided = [name for one in sets for name in one]
    assert sorted(decided) == sorted(set(commands(udi.parser())))


def test_an_account_is_never_roots() -> None:
    with pytest.raises(UdiError, match="is root's"):
        account.account(0)
    with pytest.raises(UdiError, match="has no account"):
        account.account(OTHER)


def test_what_a_child_says_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    """The account's other processes may write there too: ptrace(2)."""
    reader, writer = os.pipe()
    os.write(writer, b"\x1b]0;title\x07 \xc2\x9b1m \xc3\xa9 \xff \xe2\x80\xae\n\xc3")
    os.close(writer)
    with open(tmp_path / "shown", "wb") as file:
        as_root._relay({reader: file.fileno()})
    shown = (tmp_path / "shown").read_bytes()
    assert shown == b"\\x1b]0;title\\x07 \\x9b1m \xc3\xa9 \xff \\u202e\n\xc3"


class Site:
    """A machine's site as root has it: a store with an account of its own, and an image to pull."""

    def __init__(self, user: User, folder: Path) -> None:
        self.user = user
        self.store = folder / "store"
        self.image = f"oci:{folder}/layout:latest"
        images.busybox_layout(folder / "layout")
        self.store.mkdir(0o755)
        os.chown(self.store, user.uid, user.gid)
        self.env = {
            "HOME": "/root",
            "PATH": f"{user.env['PATH'].partition(':')[2]}:{SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "UDI_STORE": str(self.store),
            "UDI_SITE_DIR": str(folder / "etc"),
        }

    def root(
        self, *words: object, cwd: str | Path = "/", fds: tuple[int, ...] = (), **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run udi as root."""
        return subprocess.run(
            [TREE / "bin/udi", *map(str, words)],
            env={**self.env, **env},
            cwd=cwd,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def site(user: User, tmp_path: Path) -> Site:
    return Site(user, reachable(tmp_path))


def writer(folder: Path, user: User) -> Path:
    """A tar2sqfs that notes with whose rights it runs; returns the note's path."""
    folder.mkdir()
    path = folder / "tar2sqfs"
    path.write_text(WRITER)
    path.chmod(0o755)
    os.chown(folder, user.uid, user.gid)
    return folder / "tar2sqfs.log"


@pytest.mark.root
@pytest.mark.needs("busybox", "tar2sqfs")
def test_a_pull_is_the_stores_owners(site: Site, user: User, tmp_path: Path) -> None:
    """Not of whom sudo names; with nothing of root's but what is public."""
    log = writer(tmp_path / "bin", user)
    site.env["PATH"] = f"{log.parent}:{site.env['PATH']}"
    (tmp_path / "secret").write_text("")
    secret = os.open(tmp_path / "secret", os.O_RDONLY)
    proxies = {"https_proxy": "http://me:password@proxy:1", "HTTP_PROXY": "http://proxy:1"}
    sudo = {"SUDO_UID": "1", "SUDO_GID": "1", "SUDO_USER": "daemon", "USER": "daemon"}
    done = site.root(
        "pull", site.image, "--writer=tar2sqfs", fds=(secret,), SECRET="x", **sudo, **proxies
    )
    os.close(secret)
    assert done.returncode == 0 and done.stdout.startswith("sha256:"), done.stderr
    assert f"as user {user.name}, who owns the image store {site.store}" in done.stderr
    assert "https_proxy holds a password" in done.stderr
    noted = [line.partition(":") for line in log.read_text().splitlines()]
    found = {name: text.split() for name, _, text in noted if name != "env"}
    environ = [text.strip() for name, _, text in noted if name == "env"]
    assert found["Uid"] == [str(user.uid)] * 4 and found["Gid"] == [str(user.gid)] * 4
    assert "0" not in found["Groups"] and found["NoNewPrivs"] == ["1"]
    assert {*found["CapEff"], *found["CapPrm"]} == {"0" * 16}
    assert (found["tty"], found["fds"]) == (["0"], ["0"])
    assert "HTTP_PROXY=http://proxy:1" in environ and f"USER={user.name}" in environ
    assert not [one for one in environ if "SECRET" in one or "SUDO" in one or "password" in one]
    for path in (site.store, *site.store.rglob("*")):
        assert (path.lstat().st_uid, path.name) == (user.uid, path.name)


@pytest.mark.root
@pytest.mark.needs("busybox")
def test_roots_terminal_is_out_of_reach(site: Site, user: User, tmp_path: Path) -> None:
    """A process may type into the terminal that controls it (TIOCSTI)."""
    log = writer(tmp_path / "bin", user)
    site.env["PATH"] = f"{log.parent}:{site.env['PATH']}"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", TREE / "bin/udi", "pull", "--writer=tar2sqfs", site.image],
        env=site.env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = shown(ours)
    assert process.wait() == 0, text
    assert "tty: 0\n" in log.read_text()


@pytest.mark.root
@pytest.mark.needs("busybox")
def test_what_keeps_a_store_works_for_root(site: Site, user: User, tmp_path: Path) -> None:
    digest = site.root("pull", "-q", site.image).stdout.strip()
    assert digest in site.root("images", "--digests").stdout
    assert site.root("tag", digest, "site/tool:1").returncode == 0
    user.home.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, user.uid, user.gid)
    done = site.root("export", "site/tool:1", "tool.sqfs", cwd=out)
    assert done.returncode == 0, done.stderr
    assert (out / "tool.sqfs").stat().st_uid == user.uid
    for words in (["inspect", digest], ["history", digest], ["df"], ["prune"], ["extract", digest]):
        done = site.root(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert site.root("rm", digest).returncode == 0
    assert site.root("import", out / "tool.sqfs", "site/tool:2").returncode == 0
    assert "site/tool:2" in site.root("images", "--names").stdout


@pytest.mark.root
@pytest.mark.needs("busybox", "skopeo")
def test_an_archive_through_roots_pipe(site: Site, user: User, tmp_path: Path) -> None:
    """root, who may ask Docker's daemon, pipes what the store's owner may not ask for."""
    images.busybox_layout(tmp_path / "layout")
    copy = ["skopeo", "copy", "-q", f"oci:{tmp_path}/layout:latest"]
    archive = tmp_path / "x.tar"
    subprocess.run([*copy, f"docker-archive:{archive}:app:1"], check=True, capture_output=True)
    archive.chmod(0o600)
    argv = [str(TREE / "bin/udi"), "pull", "-"]
    with open(archive, "rb") as file:
        done = subprocess.run([*argv, "app:1"], stdin=file, env=site.env, capture_output=True)
    assert done.returncode == 0, done.stderr
    data = archive.read_bytes()
    done = subprocess.run([*argv, "app:2"], input=data, env=site.env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert {"app:1", "app:2"} <= set(site.root("images", "--names").stdout.split())


@pytest.mark.root
@pytest.mark.needs("busybox")
def test_no_image_is_read_with_roots_rights(site: Site, user: User, tmp_path: Path) -> None:
    os.chown(site.store, 0, 0)
    for words in (["pull", site.image], ["images"], ["inspect", "x"], ["export", "x", "y"]):
        done = site.root(*words)
        assert done.returncode == 125 and "no image is ever read with root's rights" in done.stderr
    os.chown(site.store, OTHER, OTHER)
    assert f"uid {OTHER} has no account" in site.root("pull", site.image).stderr
    os.rmdir(site.store)
    assert "install -d -m 755 -o ACCOUNT" in site.root("pull", site.image).stderr
    del site.env["UDI_STORE"]
    assert "names no store.site" in site.root("images").stderr
    for words in (["profile", "x"], ["run", "x"], ["shell", "x"], ["ps"], ["login"]):
        done = site.root(*words)
        assert done.returncode == 125 and "and this is root" in done.stderr
    assert not list(tmp_path.glob("store"))


@pytest.mark.root
@pytest.mark.needs("busybox")
def test_the_sites_first_store_is_roots_choice(site: Site, user: User, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    text = f'[store]\nsite = ["{site.store}", "/nosuch"]\n[image]\ncompression = "gzip"\n'
    (tmp_path / "etc/udi.toml").write_text(text)
    del site.env["UDI_STORE"]
    done = site.root("pull", site.image)
    assert done.returncode == 0, done.stderr
    # Every user has it; for its owner it is one store, not his own and the site's.
    etc = {"UDI_SITE_DIR": str(tmp_path / "etc")}
    for text in (user.run("udi", "images", env=etc).stdout, site.root("images").stdout):
        assert text.count("oci:") == 1, text


@pytest.mark.root
@pytest.mark.needs("busybox")
def test_another_users_store_leads_root_nowhere(site: Site, user: User, tmp_path: Path) -> None:
    """In a sticky folder anybody may be first; what he plants he can do himself already."""
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    for path, mode in ((shared, 0o1777), (mine, 0o700)):
        path.mkdir()
        path.chmod(mode)
    (mine / "file").write_text("root's")
    trap = shared / "store"
    user.run("sh", "-c", f"mkdir {trap} && ln -s {mine} {trap}/images && ln -s /etc {trap}/names")
    done = site.root("pull", site.image, UDI_STORE=str(trap))
    assert done.returncode == 125 and "Permission denied" in done.stderr, done.stderr
    assert [path.name for path in mine.iterdir()] == ["file"]
    gone = site.root("rm", "x", UDI_STORE=str(trap))
    assert gone.returncode == 125 and (mine / "file").read_text() == "root's"


@pytest.mark.root
def test_another_users_home_is_left_alone(site: Site, user: User, tmp_path: Path) -> None:
    """sudo and su may leave it in the environment."""
    folder = user.home / ".config/rootless_udi"
    user.run("mkdir", "-p", folder, check=True)
    user.run("sh", "-c", f"echo nonsense >{folder}/config.toml", check=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/udi.toml").write_text("")
    before = sorted(user.home.rglob("*"))
    for name, folder in (("HOME", user.home), ("XDG_CONFIG_HOME", user.home / ".config")):
        site.env[name] = str(folder)
    site.env["XDG_CACHE_HOME"] = str(user.home / ".cache")
    for words in (["config", "check"], ["config", "show"], ["config", "compile"]):
        done = site.root(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tmp_path / "etc/udi.cache").stat().st_uid == 0
    assert sorted(user.home.rglob("*")) == before


@pytest.mark.root
def test_root_writes_no_file_by_anothers_link(site: Site, user: User, tmp_path: Path) -> None:
    shared, target = tmp_path / "shared", tmp_path / "target"
    shared.mkdir()
    shared.chmod(0o1777)
    target.write_text("root's")
    (tmp_path / "udiRoot.conf").write_text("imagePath=/images\n")
    words = ("config", "import", tmp_path / "udiRoot.conf", f"--to={shared}/site")
    # A folder of his; then a folder of root's in which he was before.
    user.run("mkdir", shared / "site", check=True)
    user.run("ln", "-s", target, shared / "site/udi.toml", check=True)
    done = site.root(*words)
    assert done.returncode == 125 and "is not trusted" in done.stderr, done.stderr
    (shared / "site").rename(shared / "old")
    assert site.root(*words).returncode == 0
    (shared / "site/udi.toml").unlink()
    (shared / "old/udi.toml").rename(shared / "site/udi.toml")
    assert "is not trusted" in site.root(*words).stderr
    assert target.read_text() == "root's"


@pytest.mark.root
@pytest.mark.needs("userns", "fuse")
def test_doctor_asks_as_nobody(site: Site, user: User, tmp_path: Path) -> None:
    del site.env["UDI_STORE"]
    done = site.root("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "user and mount namespaces: works" in done.stdout
    assert "nonexistent" not in done.stdout and "state directory" not in done.stdout
    named = site.root("doctor", f"--user={user.name}")
    assert "state directory" in named.stdout
    assert "is root's" in site.root("doctor", "--user=root").stderr


def test_only_root_is_the_doctor_of_others(user: User) -> None:
    done = user.run("udi", "doctor", "--user=daemon")
    assert done.returncode == 125 and "only root" in done.stderr


@pytest.mark.root
def test_root_prints_completion_and_writes_bundles(site: Site) -> None:
    assert "complete -F" in site.root("completion", "bash").stdout
    assert "udi-run" in site.root("bundle").stdout
