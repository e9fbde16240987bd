"""Archives that come through a pipe, and images that other tools of the machine keep."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull import from_stream
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit import images
from tests.kit.pulling import HERE, content, noise

pytestmark = pytest.mark.needs("mksquashfs")


def saved(image: bytes = b"", names: tuple[str, ...] = ("my/app:2",), **other: object) -> bytes:
    """Return an archive as `docker save` writes it: layers first, manifest.json last."""
    layers = [images.tar([("etc", None, {}), ("etc/base", noise(1), {})]), image or images.tar([])]
    ids = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
    config = json.dumps(
        {
            "architecture": HERE.architecture,
            "os": "linux",
            "config": {"Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
            **other,
        }
    ).encode()
    entry = {"Config": "c.json", "RepoTags": list(names), "Layers": ["a/layer.tar", "b/layer.tar"]}
    return images.tar(
        [
            ("a/layer.tar", layers[0], {}),
            ("b/layer.tar", layers[1], {}),
            ("c.json", config, {}),
            ("manifest.json", json.dumps([entry]).encode(), {}),
        ]
    )


def piped(user: User, data: bytes, *words: str) -> "subprocess.CompletedProcess[bytes]":
    argv = user.argv("udi", "pull", "-q", "-", *words)
    return subprocess.run(argv, input=data, env=user.env, cwd=user.home, capture_output=True)


def test_an_archive_from_a_pipe(user: User) -> None:
    data = saved(images.tar([("top", noise(2), {})]))
    done = piped(user, data)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"it is my/app:2\n"
    digest = done.stdout.decode().strip()
    assert user.run("udi-run", "--explain", "my/app:2").returncode == 0
    # The same image by the file, and by another name: equal digests.
    (user.home / "x.tar").write_bytes(data)
    assert user.run("udi", "pull", "-q", "docker-archive:x.tar").stdout.strip() == digest
    done = piped(user, gzip.compress(data, 1), "other")
    assert (done.stdout.decode().strip(), done.stderr) == (digest, b"")
    names = user.run("udi", "images", "-q").stdout
    listed = user.run("udi", "images", "--json")
    assert "docker.io/library/other:latest" in listed.stdout + names
    assert not list((user.home / "store/blobs").iterdir())


def test_a_piped_image_is_not_asked_for_at_a_registry(user: User) -> None:
    assert piped(user, saved()).returncode == 0
    done = user.run("udi", "update", "--check")
    assert done.returncode == 0
    assert "0 of 0 tags moved" in done.stderr


def test_a_name_for_what_is_pulled(user: User) -> None:
    images.busybox_layout(user.home / "layout")
    done = user.run("udi", "pull", "-q", f"oci:{user.home}/layout:latest", "tools:1")
    assert done.returncode == 0, done.stderr
    assert user.run("udi-run", "tools:1", "echo", "in").returncode in (0, 125)
    done = user.run("udi", "pull", "-q", f"oci:{user.home}/layout:latest", "oci:x")
    assert done.returncode == 125
    assert "oci:x can't be given as a name" in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no whole tar: empty file"),
        (b"root:x:0:0\n" * 200, "is no whole tar: invalid header"),
        (saved()[:1_000_000], "is no whole tar: unexpected end of data"),
        (saved(names=()), "it does not name its image"),
        (saved(names=("UPPER:1", "x@sha256:1")), "it does not name its image"),
        (images.tar([("a", b"", {})]), "has neither manifest.json nor index.json"),
        (images.tar([("manifest.json", b"[" * 100_000, {})]), "is no JSON"),
        (saved(rootfs={"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 2}), "its digest is"),
        (saved(architecture="s390x"), "s390x"),
    ],
)
def test_what_is_no_archive(user: User, data: bytes, words: str) -> None:
    done = piped(user, data)
    assert done.returncode == 125
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("udi: reading the archive") and words in lines[0], lines
    assert all(line.startswith("udi: hint: ") for line in lines[1:])
    root = user.home / "store"
    assert content(Store(str(root))) == [] or not list((root / "images").iterdir())


def test_several_images_in_a_pipe(user: User) -> None:
    with tarfile.open(fileobj=io.BytesIO(saved())) as tar:
        file = tar.extractfile("manifest.json")
        assert file
        first = json.loads(file.read())[0]
    both = [first, {**first, "RepoTags": ["b:1"]}]
    one = saved()
    # A later member of a name counts.
    out = io.BytesIO(one[:-10240] if one.endswith(b"\0" * 10240) else one)
    with tarfile.open(fileobj=out, mode="a") as tar:
        info = tarfile.TarInfo("manifest.json")
        body = json.dumps(both).encode()
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    done = piped(user, out.getvalue())
    assert done.returncode == 125
    assert b"holds 2 images" in done.stderr


def test_a_terminal_is_no_pipe(user: User) -> None:
    parent, child = os.openpty()
    try:
        argv = user.argv("udi", "pull", "-q", "-")
        done = subprocess.run(
            argv, stdin=child, env=user.env, cwd=user.home, capture_output=True, text=True
        )
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 125
    assert "standard input is a terminal" in done.stderr
    assert "hint: pipe an archive: docker save NAME | udi pull -" in done.stderr


def test_killed_in_the_middle_leaves_nothing(user: User) -> None:
    """The layer's file has no name; the archive stops in it, so that the pull waits."""
    argv = user.argv("udi", "pull", "-q", "-")
    run = subprocess.Popen(argv, stdin=subprocess.PIPE, env=user.env, cwd=user.home)
    assert run.stdin
    run.stdin.write(saved()[:2_500_000])
    run.stdin.flush()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdin.close()
    blobs = user.home / "store/blobs"
    assert not blobs.exists() or not list(blobs.iterdir())


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo 'no such image: x' >&2; exit 1", "docker save: no such image: x"),
        ("exit 3", "docker save: it ended with status 3"),
        ("head -c 5000 /dev/zero | tr '\\0' x", "is no whole tar"),
    ],
)
def test_a_program_that_fails(user: User, script: str, words: str) -> None:
    """A stand-in for `docker`, which fails in ways that the real one can't be made to at will."""
    program(user.home / "bin", "docker", script)
    env = {"PATH": f"{user.home}/bin:{user.env['PATH']}"}
    done = user.run("udi", "pull", "-q", "docker-daemon:x", env=env)
    assert done.returncode == 125
    assert "udi: reading docker-daemon:x:latest failed on " in done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("storage", ["docker-daemon", "containers-storage"])
def test_no_program(user: User, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(user.home))
    with pytest.raises(UdiError, match=f"reading {storage}:a:1 failed: .*: not found") as caught:
        from_stream.command(storage, "a:1")
    assert "docker save NAME | udi pull -" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("docker-daemon:app", "docker-daemon:app:latest"),
        ("docker-daemon:app:1", "docker-daemon:app:1"),
        ("containers-storage:localhost/a/b:1", "containers-storage:localhost/a/b:1"),
        ("docker-daemon:sha256:" + "a" * 64, "docker-daemon:sha256:" + "a" * 64),
        ("docker-daemon:h:5000/app", "docker-daemon:h:5000/app:latest"),
    ],
)
def test_names_there(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "docker-daemon:",
        "docker-daemon:-o/x",
        "containers-storage:[overlay@/x]y",
        "docker-daemon:a b",
    ],
)
def test_no_names_there(text: str) -> None:
    with pytest.raises(UdiError, match="image reference"):
        parse(text)


@pytest.mark.needs("buildah", "userns", "fuse")
def test_of_podmans_storage(user: User) -> None:
    """buildah, podman and skopeo share one storage."""
    images.busybox_layout(user.home / "layout")
    env = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
    try:
        user.run("buildah", "pull", "-q", f"oci:{user.home}/layout:latest", env=env, check=True)
        found = user.run("buildah", "images", "-q", "--no-trunc", env=env, check=True).stdout
        image = found.split()[0].removeprefix("sha256:")
        user.run("buildah", "tag", image, "app:3", env=env, check=True)
        done = user.run("udi-run", "containers-storage:app:3", "echo", "in", env=env)
        assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
        done = user.run("udi", "pull", "-q", "containers-storage:localhost/nix:1", env=env)
        assert done.returncode == 125
        assert "reading containers-storage:localhost/nix:1 failed on buildah push" in done.stderr
        assert "hint: `buildah images` shows what is there for you" in done.stderr
        assert not list((user.home / "store/blobs").iterdir())
    finally:
        storage = user.home / ".local/share/containers"
        user.run("buildah", "unshare", "rm", "-rf", storage, env=env)


@pytest.fixture
def daemon(user: User) -> Iterator[str]:
    """Yield the address of a real dockerd, which the user's group may ask."""
    with tempfile.TemporaryDirectory(prefix="udi-docker-") as folder:
        # The user goes through it to the socket.
        os.chmod(folder, 0o755)
        address = f"unix://{folder}/docker.sock"
        # It leaves mounts on its folder (docker 26), which end with a mount namespace.
        argv = ["unshare", "--mount", "dockerd"]
        argv += [f"--data-root={folder}/data", f"--exec-root={folder}/exec"]
        argv += [f"--host={address}", f"--pidfile={folder}/pid", f"--group={user.gid}"]
        argv += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        argv += ["--storage-driver=vfs"]
        with open(f"{folder}/log", "wb") as log, subprocess.Popen(argv, stderr=log) as run:
            try:
                for _ in range(600):
                    done = subprocess.run(
                        ["docker", f"--host={address}", "version"], capture_output=True
                    )
                    if done.returncode == 0 or run.poll() is not None:
                        break
                assert done.returncode == 0, Path(f"{folder}/log").read_text()[-2000:]
                yield address
            finally:
                run.terminate()


@pytest.mark.root
@pytest.mark.needs("dockerd", "userns", "fuse")
def test_of_dockers_daemon(user: User, daemon: str) -> None:
    images.busybox_layout(user.home / "layout")
    archive = user.home / "x.tar"
    argv = ["skopeo", "copy", "-q", f"oci:{user.home}/layout:latest", f"docker-archive:{archive}"]
    subprocess.run([*argv[:-1], argv[-1] + ":app:3"], check=True, capture_output=True)
    docker = ["docker", f"--host={daemon}"]
    subprocess.run([*docker, "load", "-q", "-i", archive], check=True, capture_output=True)
    env = {"DOCKER_HOST": daemon}
    done = user.run("udi-run", "docker-daemon:app:3", "echo", "in", env=env)
    assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr
    again = user.run("udi", "pull", "-q", "docker-daemon:app:3", env=env)
    assert again.returncode == 0, again.stderr
    # The daemon's own archive through a pipe is the same image.
    with subprocess.Popen([*docker, "save", "app:3"], stdout=subprocess.PIPE) as save:
        argv = user.argv("udi", "pull", "-q", "-")
        pipe = subprocess.run(argv, stdin=save.stdout, env=user.env, capture_output=True, text=True)
    assert pipe.stdout == again.stdout
    done = user.run("udi", "pull", "-q", "docker-daemon:nix", env=env)
    assert done.returncode == 125
    assert "failed on docker save: Error response from daemon: " in done.stderr
