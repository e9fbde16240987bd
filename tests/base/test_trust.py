"""Nothing is believed that another user may have written: each file that decides what runs.

Those marked `root` make files of another user, whom nobody needs to know.
"""

import json
import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rootless_udi.base import boot, trust
from rootless_udi.base import program as child
from rootless_udi.base.errors import UdiError
from rootless_udi.node.record import read_record
from rootless_udi.pull import credentials
from tests.conftest import User
from tests.kit import images
from tests.kit.places import TREE

OTHER = 54321
ACL = "system.posix_acl_access"
PLANTED = {"version": 1, "env": ["PATH=/bin", "PLANTED=yes"]}


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return linux/posix_acl_xattr.h's bytes for (tag, rights, id)."""
    words = [(2).to_bytes(4, "little")]
    for tag, rights, who in entries:
        words += [tag.to_bytes(2, "little"), rights.to_bytes(2, "little")]
        words += [(who & 0xFFFFFFFF).to_bytes(4, "little")]
    return b"".join(words)


def with_acl(path: Path, *named: tuple[int, int, int], group: int = 4) -> str:
    """Give a file an access control list; return what is said of it."""
    entries = [(1, 6, -1), *(n for n in named if n[0] == 2), (4, group, -1)]
    entries += [*(n for n in named if n[0] == 8), (0x10, 6, -1), (0x20, 4, -1)]
    os.setxattr(path, ACL, acl(*entries))
    assert path.stat().st_mode & 0o777 == 0o664
    return trust.refusal(str(path))


def test_the_mode_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for mode, why in ((0o644, ""), (0o600, ""), (0o664, "its group"), (0o646, "everybody")):
        path.chmod(mode)
        found = trust.refusal(str(path))
        assert found == (why and f"it may be written by {why}")
        with open(path) as file:
            assert trust.refusal(file.fileno()) == found


def test_of_an_access_control_list_its_entries_are_judged(tmp_path: Path) -> None:
    """The mode's middle bits are the list's mask, which says that somebody may, not who."""
    path, me = tmp_path / "file", os.getuid()
    path.touch()
    assert with_acl(path, (2, 4, OTHER), (8, 4, OTHER)) == ""
    assert with_acl(path, (2, 6, me)) == ""
    assert with_acl(path, (2, 6, OTHER)) == f"it may be written by user {OTHER}"
    assert with_acl(path, (8, 6, OTHER)) == f"it may be written by group {OTHER}"
    assert with_acl(path, (2, 4, OTHER), group=6) == "it may be written by its group"
    fd = os.open(path, os.O_PATH)
    assert trust.refusal(fd) == "it may be written by its group"
    os.close(fd)


def test_a_link_is_followed_where_it_is_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert trust.read(str(tmp_path / "c")) == b"a"
    assert trust.link(str(tmp_path / "b")) == "a"
    (tmp_path / "d").symlink_to("d")
    with pytest.raises(OSError, match="Too many levels"):
        trust.read(str(tmp_path / "d"))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(trust.Untrusted, match="it is no regular file"):
            trust.read(str(path))


@pytest.mark.needs("userns")
@pytest.mark.parametrize("root", [False, True])
def test_roots_files_in_a_user_namespace(user: User, root: bool) -> None:
    """They are nobody's there; that is believed where root has no id, and nobody else could."""
    code = f"import sys; sys.path.insert(0, {str(TREE)!r}); from rootless_udi.base import trust; "
    code += "trust._ROOTS = ('/etc/passwd',); "
    how = "--map-root-user" if root else "--map-current-user"
    argv = ("unshare", "--user", how, sys.executable, "-IS", "-c")
    done = user.run(*argv, code + "print(*map(trust.refusal, ('/etc/passwd', '/etc/group')))")
    said = "it belongs to a user who is not known here"
    both = "it belongs to user 65534 it belongs to user 65534\n"
    assert done.stdout == (both if root else f" {said}\n"), done.stderr


@pytest.mark.root
@pytest.mark.needs("userns")
@pytest.mark.parametrize("how", ["XDG_CONFIG_HOME", "UDI_CONFIG", "UDI_SITE_DIR", "beside"])
def test_others_files_in_a_user_namespace(
    user: User, plain: Path, tmp_path: Path, how: str
) -> None:
    """They show as root's do, and so does his folder, of any mode: no name of a variable's or of a
    folder that is not root's alone makes them root's."""
    folder = tmp_path / "his"
    (folder / "rootless_udi").mkdir(parents=True)
    text = '[env.set]\nPLANTED = "yes"\n'
    for name in ("rootless_udi/config.toml", "udi.toml"):
        (folder / name).write_text(text)
    shutil.copy(plain, folder / "my.sqfs")
    (folder / "my.json").write_text(json.dumps(PLANTED))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER)
        path.chmod(0o755 if path.is_dir() else 0o644)
    # Root's image, which he linked into his folder.
    os.chown(folder / "my.sqfs", 0, 0)
    image = folder / "my.sqfs" if how == "beside" else plain
    value = f"{folder}/udi.toml" if how == "UDI_CONFIG" else str(folder)
    argv = ("unshare", "--user", "--map-current-user", "udi-run", image, "/bin/env")
    done = user.run(*argv, env={} if how == "beside" else {how: value})
    assert "PLANTED" not in done.stdout
    assert "it belongs to a user who is not known here" in done.stderr
    assert done.returncode == (0 if how == "beside" else 125), done.stderr


# The facts beside an image


@pytest.fixture
def plain(user: User, tmp_path: Path) -> Path:
    """An image in a folder of its own, without facts."""
    images.busybox_layout(tmp_path / "layout", config={})
    user.run("udi", "pull", "-q", f"oci:{tmp_path}/layout:latest", check=True)
    (image,) = Path(user.env["UDI_STORE"]).glob("images/*.sqfs")
    path = tmp_path / "shared" / "my.sqfs"
    path.parent.mkdir(mode=0o755)
    shutil.copy(image, path)
    return path


def planted(user: User, image: Path | str, cwd: Path | None = None) -> tuple[str, str]:
    """Return what PLANTED is in a container of `image`, and what was said."""
    done = user.run("udi-run", image, "/bin/sh", "-c", "echo $PLANTED", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.needs("userns", "fuse", "busybox")
def test_facts_that_others_may_write_are_left_aside(user: User, plain: Path) -> None:
    facts = plain.with_suffix(".json")
    facts.write_text(json.dumps(PLANTED))
    assert planted(user, plain) == ("yes", "")
    for mode, why in ((0o666, "may be written by everybody"), (0o664, "may be written by its")):
        facts.chmod(mode)
        found, said = planted(user, plain)
        assert found == "" and f"udi-run: {facts} is not trusted: it {why}" in said
        assert said.endswith(f"udi-run: hint: as its owner: chmod go-w {facts}\n")


@pytest.mark.needs("userns", "fuse", "busybox")
@pytest.mark.parametrize("how", ["pipe", "folder", "unreadable", "dangling", "loop"])
def test_what_lies_beside_an_image_stops_nobody(user: User, plain: Path, how: str) -> None:
    facts = plain.with_suffix(".json")
    if how == "pipe":
        os.mkfifo(facts)
    elif how == "folder":
        facts.mkdir()
    elif how == "unreadable":
        facts.touch(0)
    else:
        facts.symlink_to(facts.name if how == "loop" else "nowhere")
    found, said = planted(user, plain)
    assert found == "" and said.count("\n") <= 2
    assert ("" if how == "dangling" else str(facts)) in said


@pytest.mark.needs("userns", "fuse", "busybox")
def test_the_facts_are_those_of_the_files_own_name(user: User, plain: Path) -> None:
    """An image's name without a dot, or with a leading one, has no other folder's facts."""
    folder = plain.parent / "v1.2"
    folder.mkdir()
    for name, wrong in (("plain", "v1.json"), ("plain", "v1.2/.json"), (".plain", "v1.2/.json")):
        path = folder / name
        if not path.exists():
            path.hardlink_to(plain)
        (plain.parent / wrong).write_text(json.dumps(PLANTED))
        assert planted(user, path, folder) == ("", ""), wrong
        assert planted(user, f"./{name}", folder) == ("", ""), wrong
    (folder / "plain.json").write_text(json.dumps(PLANTED))
    assert planted(user, folder / "plain") == ("yes", "")


@pytest.mark.root
@pytest.mark.needs("userns", "fuse", "busybox")
@pytest.mark.parametrize("how", ["file", "link", "image's owner"])
def test_another_users_facts(user: User, plain: Path, how: str) -> None:
    """In a sticky folder, as /tmp; the owner of the image could have changed that as well."""
    facts = plain.with_suffix(".json")
    plain.parent.chmod(0o1777)
    os.chown(plain, user.uid, user.gid)
    if how == "link":
        (user.home / "own.json").write_text(json.dumps(PLANTED))
        os.chown(user.home / "own.json", user.uid, user.gid)
        facts.symlink_to(user.home / "own.json")
    else:
        facts.write_text(json.dumps(PLANTED))
    os.chown(facts, OTHER, OTHER, follow_symlinks=False)
    if how == "image's owner":
        os.chown(plain, OTHER, OTHER)
        assert planted(user, plain) == ("yes", "")
    else:
        found, said = planted(user, plain)
        # Where the kernel itself refuses to follow the link (fs.protected_symlinks), it says so.
        assert found == "" and str(facts) in said
        assert f"it belongs to user {OTHER}" in said or "Permission denied" in said


# The store


@pytest.fixture
def store(user: User, tmp_path: Path) -> Path:
    """A store with an image, opened to readers, all made under a umask that forbids nothing."""
    images.busybox_layout(tmp_path / "layout", config={"Env": ["PATH=/bin"]})
    pull = f"umask 0; udi pull -q oci:{tmp_path}/layout:latest"
    user.run("sh", "-c", pull, check=True)
    path = Path(user.env["UDI_STORE"])
    path.chmod(0o755)
    user.env["NAME"] = f"oci:{tmp_path}/layout:latest"
    return path


def start(user: User) -> "subprocess.CompletedProcess[str]":
    return user.run("udi-run", "--pull=never", user.env["NAME"], "echo", "ok")


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_store_gives_no_rights_that_only_the_umask_allows(user: User, store: Path) -> None:
    for path in store.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o022, path
    assert (store / "locks").stat().st_mode & 0o777 == 0o700
    assert start(user).stdout == "ok\n"
    (store / "images").chmod(0o777)
    (store / "locks").chmod(0o777)
    user.run("udi", "pull", "-q", user.env["NAME"], check=True)
    assert (store / "images").stat().st_mode & 0o777 == 0o755
    assert (store / "locks").stat().st_mode & 0o777 == 0o700


@pytest.mark.needs("userns", "fuse", "busybox")
@pytest.mark.parametrize("what", [".", "images", "names", "names/*", "images/*.json", "images/*s"])
def test_a_store_that_others_may_write_is_refused(user: User, store: Path, what: str) -> None:
    (one,) = [store] if what == "." else store.glob(what)
    one.chmod(0o777)
    done = start(user)
    assert done.returncode == 125 and done.stdout == ""
    assert f"{one}" in done.stderr and "may be written by everybody" in done.stderr
    assert "udi-run: hint: as its owner: chmod " in done.stderr
    # Behind a door that is closed to all others nobody gets at it.
    if one != store:
        store.chmod(0o700)
        assert start(user).stdout == "ok\n" or one.is_file()


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_pull_into_a_store_that_others_may_write_is_refused(user: User, store: Path) -> None:
    store.chmod(0o1777)
    done = user.run("udi", "pull", "--force", user.env["NAME"])
    assert done.returncode == 125 and "may be written by everybody" in done.stderr


@pytest.mark.root
@pytest.mark.needs("userns", "fuse", "busybox")
@pytest.mark.parametrize("what", ["names/*/*", "images/*.json", "images/*.sqfs"])
def test_what_is_another_users_in_a_store(user: User, store: Path, what: str) -> None:
    (one,) = store.glob(what)
    os.chown(one, OTHER, OTHER, follow_symlinks=False)
    done = start(user)
    assert done.returncode == 125
    assert f"{one} is not trusted: it belongs to user {OTHER}\n" in done.stderr
    # All of it another's: it is not the caller's store, whatever names it.
    give(store)
    for argv in (("udi-run", user.env["NAME"], "x"), ("udi", "pull", "a"), ("udi", "rm", "a")):
        said = user.run(*argv)
        assert said.returncode == 125, said
        assert f"{store}: it belongs to user {OTHER}\nudi" in said.stderr
        assert "hint: set UDI_STORE to a folder of your own" in said.stderr


def give(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)


def configured(user: User, text: str) -> None:
    path = user.home / ".config/rootless_udi/config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for one in (path, path.parent, path.parent.parent):
        os.chown(one, user.uid, user.gid)


@pytest.mark.root
@pytest.mark.needs("userns", "fuse", "busybox")
def test_who_makes_a_store_first_does_not_own_it(user: User, store: Path, tmp_path: Path) -> None:
    """The site names a path below a folder as /scratch is, and nothing is there yet."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scratch.chmod(0o1777)
    store.rename(scratch / user.name)
    give(scratch / user.name)
    user.env.pop("UDI_STORE")
    configured(user, f'[store]\npath = "{scratch}/$USER"\n')
    done = start(user)
    assert done.returncode == 125 and f"it belongs to user {OTHER}\n" in done.stderr
    configured(user, f'[store]\nsite = ["{scratch}/{user.name}"]\n')
    done = start(user)
    assert done.returncode == 125 and "is in no image store" in done.stderr
    assert f"it belongs to user {OTHER}; passed over\n" in done.stderr
    (image,) = scratch.glob("*/images/*.sqfs")
    digest = image.name.removesuffix(".sqfs").replace("-", ":")
    done = user.run("udi-run", "--pull=never", digest, "echo", "ok")
    assert done.returncode == 125 and "is in no image store" in done.stderr
    # Nobody is stopped by it: the image is pulled, into a store of one's own.
    done = user.run("udi-run", user.env["NAME"], "echo", "ok")
    assert done.stdout == "ok\n" and "passed over" in done.stderr
    shutil.rmtree(user.home / ".local")
    # What only root could put there may be a third user's: who fills the site's store.
    mount = f"mount --bind {scratch}/{user.name} /mnt && "
    configured(user, '[store]\nsite = ["/mnt"]\n')
    argv = user.argv("udi-run", "--pull=never", user.env["NAME"], "echo", "ok")
    script = mount + 'exec "$@"'
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*private, *argv], env=user.env, cwd=user.home, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.root
def test_a_sites_store_may_be_the_configurations_owners(user: User, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    code = (
        f"import sys; sys.path.insert(0, {str(TREE)!r}); from rootless_udi.store import find; "
        f"find.judge(find.SiteStore({str(folder)!r}, int(sys.argv[1])))"
    )
    for keeper, said in ((OTHER, ""), (OTHER + 1, f"it belongs to user {OTHER}")):
        done = user.run(sys.executable, "-ISc", code, keeper)
        assert (said in done.stderr) if said else done.returncode == 0, done.stderr


@pytest.mark.root
def test_a_sites_folder_that_a_variable_names(user: User, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "udi.toml").write_text("")
    os.chown(site, OTHER, OTHER)
    done = user.run("udi", "config", "show", env={"UDI_SITE_DIR": str(site)})
    assert done.returncode == 125
    assert f"configuration {site} is not trusted: it belongs to user {OTHER}\n" in done.stderr


def test_a_store_of_a_group_says_what_to_do(user: User, store: Path) -> None:
    store.chmod(0o770)
    done = start(user)
    assert done.returncode == 125 and "may be written by its group" in done.stderr
    assert f"chmod -R go-w {store}; a project's members read it so" in done.stderr


def test_the_way_to_a_file(tmp_path: Path) -> None:
    """Each folder counts, also those that links on the way lead through."""
    for name in ("a/b", "sticky/c", "d"):
        (tmp_path / name).mkdir(parents=True)
    base = len(list(trust._folders(str(tmp_path)))) + 1
    (tmp_path / "sticky/e").symlink_to("../d")
    (tmp_path / "a/through").symlink_to(tmp_path / "sticky/e/../a/b")
    (tmp_path / "a/loop").symlink_to("loop")
    assert [*trust._folders(f"{tmp_path}/a/b/f")][base:] == [f"{tmp_path}/a", f"{tmp_path}/a/b"]
    way = [*trust._folders(f"{tmp_path}/a/through/f")]
    assert f"{tmp_path}/sticky" in way and way[-1] == f"{tmp_path}/a/b"
    with pytest.raises(OSError, match="Too many levels"):
        list(trust._folders(f"{tmp_path}/a/loop/f"))
    assert trust.above("/etc/passwd") == ""
    (tmp_path / "sticky").chmod(0o1777)
    assert "may be written by everybody" in trust.above(f"{tmp_path}/sticky/c/f")


# Records, credentials, profiles


def test_a_record_that_others_may_write(tmp_path: Path) -> None:
    path = tmp_path / "name.2"
    path.write_text("udi 2 17\n6:user=1\n5:mnt=1\n")
    directory = os.open(tmp_path, os.O_RDONLY)
    record, fd = read_record(directory, "name")
    os.close(fd)
    assert record is not None
    path.chmod(0o666)
    with pytest.raises(UdiError, match=r"name\.2 is not trusted: it may be written by everybody"):
        read_record(directory, "name")
    os.close(directory)


def test_credentials_that_others_may_write(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They name a program to be run. The next file is asked; where one is named, nothing is."""
    program = tmp_path / "docker-credential-planted"
    program.write_text("#!/bin/sh\necho RUN; exit 1\n")
    program.chmod(0o755)
    path = tmp_path / ".docker/config.json"
    path.parent.mkdir()
    path.write_text('{"credsStore": "planted"}')
    environ = {"PATH": f"{tmp_path}:/bin", "HOME": str(tmp_path)}
    with pytest.raises(UdiError, match="RUN"):
        credentials.find("example.org", "", environ)
    path.chmod(0o666)
    assert credentials.find("example.org", "", environ) is None
    assert f"udi: the credentials file {path} is not trusted: it may" in capfd.readouterr().err
    with pytest.raises(trust.Untrusted):
        credentials.find("example.org", "", {**environ, "REGISTRY_AUTH_FILE": str(path)})


@pytest.mark.root
@pytest.mark.parametrize("how", ["link", "dangling", "link to one's own", "file", "folder"])
@pytest.mark.parametrize("where", ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"])
def test_logins_write_nothing_where_others_lead(
    user: User, tmp_path: Path, how: str, where: str
) -> None:
    """Of a file that is passed over when it is read nothing is kept, and it is not replaced."""
    folder, mine = tmp_path / "sticky", user.home / "mine"
    folder.mkdir()
    folder.chmod(0o1777)
    path = folder / "containers/auth.json"
    path.parent.mkdir()
    path.parent.chmod(0o755 if how == "folder" else 0o1777)
    if how != "dangling":
        mine.write_text('{"auths": {"example.org": {"auth": "YTpi"}}}')
        os.chown(mine, user.uid, user.gid)
    if how in ("file", "folder"):
        path.write_text('{"auths": {"example.org": {"auth": "YTpi"}}}')
    elif how == "link to one's own":
        (folder / "second").symlink_to(mine)
        path.symlink_to("../second")
        os.chown(folder / "second", OTHER, OTHER, follow_symlinks=False)
    else:
        path.symlink_to(mine)
    owner = user.uid if how in ("folder", "link to one's own") else OTHER
    os.chown(path, owner, owner, follow_symlinks=False)
    if how == "folder":
        os.chown(path.parent, OTHER, OTHER)
    before = {p: (p.lstat().st_ino, p.is_file() and p.read_bytes()) for p in tmp_path.rglob("*")}
    env = {where: str(path if where == "REGISTRY_AUTH_FILE" else folder), "HOME": str(user.home)}
    for words in (("login", "-u", "me", "--password-stdin"), ("logout",)):
        if how == "dangling" and where == "XDG_RUNTIME_DIR":
            # Nothing is there, so another place is chosen.
            break
        done = user.run("udi", *words, "example.org", env=env, input="pw\n")
        assert done.returncode == 125, done
        # Where the kernel itself refuses to follow the link (fs.protected_symlinks), it says so.
        assert "is not trusted: it belongs to user" in done.stderr or "denied" in done.stderr
    after = {p: (p.lstat().st_ino, p.is_file() and p.read_bytes()) for p in tmp_path.rglob("*")}
    assert after == before


def test_a_profile_that_others_may_write(user: User, box: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile"
    path.write_text("udi profile 1\n")
    path.chmod(0o666)
    done = user.run("udi", "optimize", f"--output={tmp_path}/new", box, path)
    assert done.returncode == 125 and f"the profile {path} is not trusted" in done.stderr


# Code


@pytest.fixture
def copy(user: User) -> Path:
    """A checkout of the user's own without compiled modules."""
    prefix = user.home / "tree"
    prefix.mkdir()
    for name in ("bin", "rootless_udi", "fuse", "idmap", "mpi_inject"):
        subprocess.run(["cp", "-a", TREE / name, prefix / name], check=True)
    for path in prefix.rglob("__pycache__"):
        shutil.rmtree(path)
    return prefix


def poison(source: str) -> Callable[[Path], None]:
    """Return what replaces the code of a compiled module, keeping the header that fits."""

    def change(path: Path) -> None:
        code = compile(source, str(path), "exec")
        path.write_bytes(path.read_bytes()[:16] + marshal.dumps(code))

    return change


@pytest.mark.needs("userns", "fuse", "busybox")
def test_bundles_and_compiled_modules_that_others_may_write(
    user: User, box: Path, copy: Path
) -> None:
    """They are code; a umask that forbids nothing must not give them away, nor their folder."""
    run = f"umask 0; {copy}/bin/udi-run {box} echo ok && {copy}/bin/udi --version"
    for _ in range(2):
        assert user.run("sh", "-c", run).stdout.startswith("ok\n")
    bundles = sorted((copy / "rootless_udi/__pycache__").glob("*.bundle"))
    assert len(bundles) == 3
    assert not any(bundle.stat().st_mode & 0o022 for bundle in bundles)
    fatal = poison("raise SystemExit('PLANTED')")
    compiled = list(copy.rglob("*.pyc"))
    assert {"udi", "errors"} <= {path.name.partition(".")[0] for path in compiled}
    for path in compiled:
        fatal(path)
    assert "PLANTED" in user.run(copy / "bin/udi", "--version").stderr
    for path in compiled:
        path.chmod(0o666)
    assert user.run(copy / "bin/udi", "--version").stderr == ""
    code = compile("raise SystemExit('PLANTED')", "x", "exec")
    for bundle in bundles:
        bundle.write_bytes(marshal.dumps((boot.FORMAT, code, {}, (), {})))
        bundle.chmod(0o666)
    done = user.run(copy / "bin/udi-run", box, "echo", "ok")
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.root
def test_a_package_that_another_put_into_the_prefix(user: User, tmp_path: Path) -> None:
    """An installation whose prefix is a folder like /scratch: what it lacks anybody can add."""
    prefix = tmp_path / "prefix"
    site = prefix / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    (prefix / "bin").mkdir()
    for name in ("udi", "udi-run"):
        shutil.copy(TREE / "bin" / name, prefix / "bin")
    shutil.copytree(TREE / "rootless_udi", site / "rootless_udi")
    fatal = compile("raise SystemExit('PLANTED')", "x", "exec")
    for name in ("rootless_udi", "lib/python3.99/site-packages/rootless_udi"):
        planted = prefix / name
        (planted / "commands").mkdir(parents=True)
        (planted / "__pycache__").mkdir()
        for module in ("__init__.py", "run.py", "commands/__init__.py", "commands/udi.py"):
            (planted / module).write_text("raise SystemExit('PLANTED')")
        bundle = planted / f"__pycache__/udi-run.{sys.implementation.cache_tag}.bundle"
        bundle.write_bytes(marshal.dumps((boot.FORMAT, fatal, {}, (), {})))
        for path in (planted, *planted.rglob("*")):
            os.chown(path, OTHER, OTHER)
    for program in ("udi", "udi-run"):
        done = user.run(prefix / "bin" / program, "--version")
        assert done.returncode == 0 and "PLANTED" not in done.stdout + done.stderr, done
    for path in (prefix / "rootless_udi").rglob("*"):
        os.chown(path, 0, 0)
    os.chown(prefix / "rootless_udi", 0, 0)
    assert "PLANTED" in user.run(prefix / "bin/udi", "--version").stderr


@pytest.mark.parametrize("left", [0, 10, 16, 17, 200, -1])
def test_a_damaged_compiled_module_is_left_aside(user: User, copy: Path, left: int) -> None:
    """As `ulimit -f` and a full disk leave them."""
    argv = (copy / "bin/udi", "--version")
    said = user.run(*argv).stdout
    compiled = list(copy.rglob("*.pyc"))
    assert len(compiled) > 2
    for path in compiled:
        path.write_bytes(path.read_bytes()[:left])
    done = user.run(*argv)
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)
    for bundle in copy.rglob("*.bundle"):
        bundle.unlink()
    done = user.run(copy / "bin/udi-run", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    code = child.argv("from rootless_udi.commands.udi import main; main()", "--version")
    code[4 if "-S" in code else 3] = code[4 if "-S" in code else 3].replace(str(TREE), str(copy))
    done = user.run(*code)
    assert (done.stdout, done.stderr) == (said, "")


def test_the_programs_that_start_without_a_bundle_check_alike() -> None:
    for program in ("udi", "udi-run"):
        assert child.CHECKED in (TREE / "bin" / program).read_text()
