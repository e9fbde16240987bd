"""The store: locks, commit by rename, names, removal, what killed pulls leave."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rootless_udi.base import superblock
from rootless_udi.base.errors import UdiError
from rootless_udi.base.trees import remove_tree
from rootless_udi.plan import reference
from rootless_udi.plan.reference import parse
from rootless_udi.store import adding, find, locks
from rootless_udi.store.find import StoredImage
from rootless_udi.store.locks import Holder, Lock
from rootless_udi.store.store import Store
from tests.kit.places import TREE
from tests.launch.test_run import wait_for

A, B = ("sha256:" + letter * 64 for letter in "ab")
AMD64, ARM64 = reference.platform_of("x86_64"), reference.platform_of("aarch64")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    one = Store(str(tmp_path / "store"))
    one.create()
    return one


def squashfs(content: bytes) -> bytes:
    """Return what passes for a squashfs: a superblock that says its size, and `content`."""
    head = superblock.MAGIC.to_bytes(4, "little").ljust(superblock.USED.start, b"\0")
    head += (superblock.SIZE + len(content)).to_bytes(8, "little")
    return head.ljust(superblock.SIZE, b"\0") + content


def commit(store: Store, digest: str, *names: str, content: bytes = b"image") -> StoredImage:
    temporary = store.temporary("images", digest)
    Path(temporary).write_bytes(squashfs(content))
    image = adding.add(store, digest, temporary, {"version": 1, "digest": digest})
    for name in names:
        store.set_name(find.name_of(parse(name)), AMD64, digest)
    return image


def everything(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in Path(store.root).rglob("*.*"))


def test_commit_and_find(store: Store) -> None:
    image = commit(store, A, "alpine")
    found = find.find((store.root,), parse("alpine"), AMD64)
    assert found == image.replace(name="docker.io/library/alpine:latest")
    assert find.find((store.root,), parse("alpine"), ARM64) is None
    facts = store.facts(image)
    assert facts.pop("windows")[0].startswith("sha256:")
    assert facts == {"version": 1, "digest": A}
    assert os.readlink(f"{store.root}/names/amd64/docker.io%2flibrary%2falpine:latest") == (
        "sha256-" + "a" * 64
    )
    assert not [path for path in everything(store) if "tmp" in path]
    assert Path(store.root).stat().st_mode & 0o777 == 0o700


def test_a_name_moves_and_its_old_image_stays(store: Store) -> None:
    commit(store, A, "alpine")
    commit(store, B, "alpine")
    assert find.find((store.root,), parse("alpine"), AMD64).digest == B  # type: ignore[union-attr]
    entries = {entry.image.digest: entry.names for entry in store.images()}
    assert entries == {B: (("amd64", "docker.io/library/alpine:latest"),), A: ()}


def test_names_of_older_states_of_a_layout_go(store: Store, tmp_path: Path) -> None:
    index = tmp_path / "layout/index.json"
    index.parent.mkdir()
    index.write_text("{}")
    commit(store, A, f"oci:{index.parent}:1", f"oci:{index.parent}:2")
    index.write_text("{  }")
    commit(store, B, f"oci:{index.parent}:1")
    names = {name.partition("#")[0] for e in store.images() for _, name in e.names}
    assert names == {f"oci:{index.parent}:1", f"oci:{index.parent}:2"}
    by_digest = {entry.image.digest: len(entry.names) for entry in store.images()}
    assert by_digest == {A: 1, B: 1}


def test_images_of_long_names(store: Store, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["long" * 40] * 4, "Öl")
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    commit(store, A, f"oci:{folder}")
    (entry,) = store.images()
    assert entry.names[0][1].startswith(f"oci:{folder}#")
    assert store.remove(parse(f"oci:{folder}"), AMD64)[1] == [A]
    assert store.images() == []


def test_remove(store: Store, tmp_path: Path) -> None:
    commit(store, A, "alpine", "alpine:3", "other/thing")
    store.set_name("docker.io/library/alpine:3", ARM64, A)
    assert store.remove(parse("alpine"), AMD64) == (["docker.io/library/alpine:latest"], [])
    names, images = store.remove(parse(A), AMD64)
    assert sorted(names) == [
        "docker.io/library/alpine:3",
        "docker.io/library/alpine:3",
        "docker.io/other/thing:latest",
    ]
    assert images == [A]
    assert everything(store) == []
    commit(store, B)
    assert store.remove(parse(B), AMD64) == ([], [B])
    for name in ("alpine", B, f"oci:{tmp_path}/gone"):
        with pytest.raises(UdiError, match=f"removing .* failed on {store.root}: no such image"):
            store.remove(parse(name), AMD64)


def test_remove_a_layout_that_is_gone(store: Store, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    index.write_text("{}")
    commit(store, A, f"oci:{tmp_path}:1")
    name = store.images()[0].names[0][1]
    index.unlink()
    assert store.remove(parse(name), AMD64)[1] == [A]


def test_remove_the_extracted_tree_too(store: Store) -> None:
    image = commit(store, A, "alpine")
    locked = Path(image.directory) / "usr/locked"
    locked.mkdir(parents=True)
    (locked / "file").write_text("x")
    (locked / "link").symlink_to("/")
    locked.chmod(0o555)
    locked.parent.chmod(0)
    store.remove(parse("alpine"), AMD64)
    assert os.listdir(store.path("dirs")) == []


def test_an_open_image_stays_readable(store: Store) -> None:
    image = commit(store, A, "alpine")
    with open(image.squashfs, "rb") as file:
        store.remove(parse("alpine"), AMD64)
        assert file.read().startswith(squashfs(b"image"))


def test_damaged_facts_are_told(store: Store) -> None:
    image = commit(store, A)
    Path(image.facts).write_text("[]")
    with pytest.raises(UdiError, match=r"facts of sha256:a+ failed on .*json: is no JSON object"):
        store.facts(image)
    Path(image.facts).write_text("{")
    with pytest.raises(UdiError, match="is no JSON: ") as caught:
        store.facts(image)
    assert "--force" in caught.value.hint
    os.unlink(image.facts)
    with pytest.raises(UdiError, match="No such file"):
        store.facts(image)


@pytest.mark.parametrize("where", ["missing/parent", "file", "readonly", "readonly/store"])
def test_a_store_that_cannot_be_made(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "missing").symlink_to("/proc/nothing")
    (tmp_path / "readonly").mkdir(mode=0o555)
    with pytest.raises(UdiError) as caught:
        Store(str(tmp_path / where)).create()
    assert caught.value.message.startswith(f"making the image store failed on {tmp_path}/")
    assert "set UDI_STORE" in caught.value.hint


def test_quota_and_full_disk_are_told_apart(store: Store) -> None:
    full = store.refused("storing x", OSError(errno.ENOSPC, "", "/a/b"))
    assert full.message == "storing x failed on /a/b: No space left on device"
    assert "make room on /" in full.hint and "set UDI_STORE" in full.hint
    quota = store.refused("storing x", OSError(errno.EDQUOT, ""))
    assert quota.message == f"storing x failed on {store.root}: Disk quota exceeded"
    assert "your quota on /" in quota.hint


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EACCES, "you may not write there"),
        (errno.EIO, "tell the site"),
        (errno.ENOTDIR, "set UDI_STORE to a directory that you can write"),
    ],
)
def test_each_refusal_of_a_file_system_has_its_own_hint(
    store: Store, number: int, hint: str
) -> None:
    assert hint in store.refused("storing x", OSError(number, "")).hint


HOLDER = """
import sys
sys.path[:0] = [sys.argv[1]]
from rootless_udi.store.locks import Lock, by_flock, by_fcntl
lock = Lock(sys.argv[2], (by_fcntl,) if sys.argv[3] == "fcntl" else (by_flock,))
assert lock.acquire(shared=sys.argv[4] == "shared")
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def holder(path: str, method: str, shared: bool) -> "subprocess.Popen[str]":
    tree = str(TREE)
    argv = [sys.executable, "-c", HOLDER, tree, path, method, "shared" if shared else "alone"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("method", ["flock", "fcntl"])
def test_locks_between_processes(tmp_path: Path, method: str) -> None:
    path = str(tmp_path / "lock")
    methods = (locks.by_fcntl if method == "fcntl" else locks.by_flock,)
    child = holder(path, method, shared=False)
    assert not Lock(path, methods).acquire()
    assert not Lock(path, methods).acquire(shared=True)
    assert Holder(Lock(path, methods)).name().endswith(f", process {child.pid}")
    # A killed holder holds nothing.
    child.kill()
    child.communicate()
    ours = Lock(path, methods)
    assert ours.acquire() and ours.works
    ours.release()
    assert not os.path.exists(path)

    child = holder(path, method, shared=True)
    assert not ours.acquire()
    assert ours.acquire(shared=True)
    ours.release()
    # The other one still shares it.
    assert os.path.exists(path)
    child.communicate("")
    assert not os.path.exists(path)


def test_a_waiter_gets_the_lock_that_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first, second, third = Lock(path), Lock(path), Lock(path)
    assert first.acquire()
    thread = threading.Thread(target=second.wait)
    thread.start()
    # Removes the file that the second may wait for already.
    first.release()
    thread.join()
    assert os.path.exists(path)
    assert not third.acquire()
    second.release()


def test_who_holds_a_lock_is_named_where_he_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ours = Lock(str(path))
    assert ours.acquire() and path.stat().st_mode & 0o777 == 0o600
    name = f"{socket.gethostname()}, process {os.getpid()}"
    assert Holder(ours).name() == name
    path.write_text(f"{name}\n1\n")
    assert Holder(ours).name() == "", "another process had this number"
    path.write_text("elsewhere, process 1\n1\n")
    holder = Holder(ours)
    assert holder.name() == "" and not holder.gone()
    os.utime(path, (1, 1))
    assert not holder.gone() and holder.name() == "elsewhere, process 1"
    ours.release()


@pytest.mark.parametrize("shared", [False, True])
def test_nobody_waits_for_one_who_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """As a process that was stopped, or the lock of a node that has crashed."""
    path = tmp_path / "lock"
    path.touch(0o600)
    with open(path) as theirs:
        fcntl.flock(theirs, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        ours, holder = Lock(str(path)), Holder(Lock(str(path)))
        assert not ours.acquire()
        monkeypatch.setattr(locks, "PATIENCE", 0)
        os.utime(path, (1, 1))
        ours.wait()
        assert not ours.works and path.exists()
        monkeypatch.setattr(locks, "PATIENCE", 60)
        assert not holder.gone()


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.001)
    path = tmp_path / "lock"
    ours = Lock(str(path))
    for _ in range(2):
        assert ours.acquire()
        os.utime(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1)
        ours.release()
    assert not path.exists()


def test_a_lock_that_others_may_open_is_replaced(tmp_path: Path) -> None:
    """Who may read a file may lock it, and stop its owner's pulls for ever."""
    path = tmp_path / "lock"
    path.touch(0o644)
    path.chmod(0o644)
    with open(path) as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        ours = Lock(str(path))
        assert ours.acquire() and ours.works
        assert path.stat().st_mode & 0o777 == 0o600
        ours.release()


def refuse(number: int) -> Callable[[int, bool, bool], None]:
    def method(fd: int, shared: bool, wait: bool) -> None:
        raise OSError(number, os.strerror(number))

    return method


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_flock(tmp_path: Path, number: int) -> None:
    path = str(tmp_path / "lock")
    one = Lock(path, (refuse(number), locks.by_fcntl))
    assert one.acquire() and one.works
    assert not Lock(path, (locks.by_fcntl,)).acquire()
    one.release()
    none = Lock(path, (refuse(number), refuse(number)))
    assert none.acquire() and not none.works
    none.release()
    with pytest.raises(OSError, match="Input/output"):
        Lock(path, (refuse(errno.EIO),)).acquire()


def test_sweep_removes_what_the_dead_left(store: Store) -> None:
    commit(store, A, "alpine")
    dead = Path(store.temporary("images", B))
    dead.write_bytes(b"half an image")
    tree = Path(store.temporary("dirs", B))
    (tree / "usr").mkdir(parents=True)
    (tree / "usr").chmod(0o555)
    old, young = (Path(store.path("blobs", f"sha256-{c * 64}.part")) for c in "cd")
    kept = Path(store.path("blobs", "sha256-" + "e" * 64))
    for path in (old, young, kept):
        path.write_bytes(b"half a blob")
    link = Path(store.path("names/amd64/.x.tmp"))
    link.symlink_to("nowhere")
    for path in (old, kept, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    alive = Path(store.temporary("images", A))
    alive.write_bytes(b"being made")
    lock = store.lock(A)
    lock.acquire()
    assert sorted(store.sweep()) == sorted(map(str, (dead, tree, old, link)))
    assert alive.exists() and young.exists() and kept.exists()
    assert find.find((store.root,), parse("alpine"), AMD64) is not None
    lock.release()
    assert store.sweep() == [str(alive)]
    assert os.listdir(store.path("locks")) == []


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o555)
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a/link").symlink_to(outside)
    (tree / "a").chmod(0)
    remove_tree(str(tree))
    assert not tree.exists()
    assert outside.stat().st_mode & 0o777 == 0o555


@pytest.mark.needs("strace")
def test_a_server_that_does_not_answer_is_no_missing_folder(tmp_path: Path) -> None:
    """As a soft mount of NFS has it (tests/kernels has a real one)."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    script = f"""
from rootless_udi.base.errors import UdiError
from rootless_udi.store.store import Store
try:
    Store({str(folder)!r}).create()
except UdiError as error:
    print(error.message, "|", error.hint)
"""
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(folder), "-e", "trace=newfstatat"]
    words += ["-e", "inject=newfstatat:error=ETIMEDOUT", sys.executable, "-c", script]
    done = subprocess.run(words, cwd=TREE, capture_output=True, text=True)
    said, _, hint = done.stdout.partition(" | ")
    assert said == f"making the image store failed on {folder}: Connection timed out", done
    assert hint.startswith("the file system's server does not answer")
