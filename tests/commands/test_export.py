"""udi export, import and history: one file that has all that is known of an image."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.store import inside, resolve
from tests.conftest import User
from tests.kit import fuseimages, images

pytestmark = pytest.mark.needs("userns", "busybox")

CONFIG = {
    "Env": ["PATH=/bin", "GREETING=image"],
    "Entrypoint": ["/bin/echo", "entry"],
    "Cmd": ["of", "image"],
    "WorkingDir": "/usr",
    "Labels": {"l": "v"},
    "User": "nobody",
}


@pytest.fixture
def named(user: User, tmp_path: Path) -> str:
    """`my/app:1` in the user's store; its digest."""
    images.busybox_layout(tmp_path / "layout", config=CONFIG)
    source = f"oci:{tmp_path}/layout:latest"
    done = user.run("udi", "pull", "-q", source)
    assert done.returncode == 0, done.stderr
    assert user.run("udi", "tag", source, "my/app:1").returncode == 0
    assert user.run("udi", "rm", source).returncode == 0
    return done.stdout.strip()


def exported(user: User, *words: str, name: str = "app.sqfs") -> Path:
    path = user.home / name
    done = user.run("udi", "export", "my/app:1", path, *words)
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    return path


def facts(user: User, image: object) -> dict[str, object]:
    done = user.run("udi", "inspect", image)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {k: v for k, v in found.items() if k not in ("squashfs", "store", "size")}


@pytest.mark.needs("fuse")
def test_one_copied_file_has_it_all(user: User, named: str, tmp_path: Path) -> None:
    known = facts(user, "my/app:1")
    path = exported(user)
    moved = tmp_path / "elsewhere.sqfs"
    shutil.copy(path, moved)
    assert facts(user, moved) == known
    env = {"UDI_STORE": f"{user.home}/empty"}
    done = user.run("udi-run", moved, env=env)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr  # a shell that reads nothing
    words = ("--entrypoint=/bin/sh", moved, "-c", "echo $GREETING")
    done = user.run("udi-run", *words, env=env)
    assert done.stdout == "image\n", done.stderr
    # Any reader of squashfs reads it.
    argv = ["unsquashfs", "-s", str(path)]
    assert subprocess.run(argv, capture_output=True).returncode == 0
    assert path.stat().st_size % 4096 == 0


@pytest.mark.needs("fuse")
def test_what_starts_ask_travels_too(user: User, named: str) -> None:
    done = user.run("udi", "profile", "-o", "p", "my/app:1", "--", "/bin/ls", "/")
    assert done.returncode == 0, done.stderr
    assert user.run("udi", "optimize", "my/app:1", "p").returncode == 0
    path = exported(user)
    assert path.read_bytes()[-16:-8] == b"udi-asks"
    assert facts(user, path)["digest"] == named
    assert user.run("udi-run", path, "/bin/ls", "/usr").stdout == "bin\n"
    again = user.home / "again.sqfs"
    # A file with facts is laid out anew, and keeps them.
    assert user.run("udi", "optimize", "-o", again, path, "p").returncode == 0
    assert facts(user, again)["digest"] == named


def test_import_has_the_digest_of_the_file(user: User, named: str) -> None:
    path = exported(user)
    env = {"UDI_STORE": f"{user.home}/other"}
    done = user.run("udi", "import", path, "new/name:2", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:") and done.stdout.strip() != named
    assert user.run("udi", "images", "--names", env=env).stdout == "new/name:2\n"
    found = json.loads(user.run("udi", "inspect", "new/name:2", env=env).stdout)
    assert found["imported"] == {"digest": named} and found["env"] == CONFIG["Env"]
    assert found["digest"] == done.stdout.strip()
    # Once more: it is there.
    assert user.run("udi", "import", path, "new/name:2", env=env).stdout == done.stdout
    # From store to file and back: the same bytes.
    back = user.home / "back.sqfs"
    assert user.run("udi", "export", "new/name:2", back, env=env).returncode == 0
    assert user.run("udi", "import", back, "x", env=env).stdout == done.stdout


def test_a_file_takes_no_name_by_its_own_word(user: User, tmp_path: Path) -> None:
    from tests.kit.pulling import HERE

    layout = images.Layout(tmp_path / "layout")
    layout.image("1", [images.tar(images.busybox_entries())], CONFIG, HERE.architecture)
    user.run("udi", "pull", "-q", f"oci:{layout.path}:1")
    plain = user.home / "plain.sqfs"
    source = next(Path(user.env["UDI_STORE"], "images").glob("*.sqfs"))
    known = {"version": 1, "reference": "docker.io/library/alpine:latest"}
    with source.open("rb") as file, plain.open("wb") as out:
        inside.copy(file.fileno(), str(source), known, out.write)
    user.run("udi", "tag", f"oci:{layout.path}:1", "alpine")
    done = user.run("udi", "import", plain)
    assert done.returncode == 125 and "that name is another image's" in done.stderr
    done = user.run("udi", "import", plain, "alpine")
    assert done.returncode == 0 and "it is alpine:latest" in done.stderr


def test_import_refuses(user: User, named: str, tmp_path: Path) -> None:
    path = exported(user)
    (tmp_path / "root/usr").mkdir(parents=True)
    done = user.run("udi", "import", tmp_path / "root")
    assert done.returncode == 125 and "is a directory" in done.stderr
    (tmp_path / "x.tar").write_bytes(images.tar(images.busybox_entries()))
    done = user.run("udi", "import", tmp_path / "x.tar", "x")
    assert done.returncode == 125 and "is no squashfs file" in done.stderr
    bare = user.home / "bare.sqfs"
    used = int.from_bytes(path.read_bytes()[40:48], "little")
    bare.write_bytes(path.read_bytes()[:used])
    done = user.run("udi", "import", bare)
    assert done.returncode == 125 and "does not say what image it is of" in done.stderr
    bare.write_bytes(path.read_bytes()[: used - 1])
    done = user.run("udi", "import", bare, "x")
    assert done.returncode == 125 and "cut off" in done.stderr
    assert not list(Path(user.env["UDI_STORE"], "images").glob(".*"))


def damaged(data: bytes, last: bytes) -> bytes:
    used = int.from_bytes(data[40:48], "little")
    used += -used % 4096
    return data[:used] + last


@pytest.mark.parametrize(
    "last",
    [
        b"{" + bytes(4079) + b"udi-fact" + (4096).to_bytes(8, "little"),
        bytes(4080) + b"udi-fact" + (4096).to_bytes(8, "little"),
        b'{"version":1,"env":7}'.ljust(4080, b"\0") + b"udi-fact" + (4096).to_bytes(8, "little"),
        b"\xff" * 4080 + b"udi-fact" + (4096).to_bytes(8, "little"),
        b"[" * 4080 + b"udi-fact" + (4096).to_bytes(8, "little"),
    ],
)
def test_damaged_facts_inside(user: User, named: str, last: bytes) -> None:
    path = exported(user)
    path.write_bytes(damaged(path.read_bytes(), last))
    for words in (("udi", "inspect", path), ("udi", "import", path, "x"), ("udi-run", path, "ls")):
        done = user.run(*words)
        assert done.returncode == 125 and f"reading the facts inside {path}" in done.stderr
        assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    "last",
    [
        b"udi-fact" + (1 << 62).to_bytes(8, "little"),
        b"udi-fact" + (8).to_bytes(8, "little"),
        b"udi-fact" + bytes(8),
        b"udi-asks" + (16).to_bytes(8, "little"),
        b"anything at all.",
        b"",
    ],
)
def test_what_is_no_facts_is_left_alone(user: User, named: str, last: bytes) -> None:
    path = exported(user)
    path.write_bytes(damaged(path.read_bytes(), last))
    assert facts(user, path) == {}


def test_too_many_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UdiError, match="go into a file"):
        inside.pack({"a": "x" * resolve.INSIDE_MAX})
    assert inside.pack({}) == b""


def test_export_keeps_what_is_there(user: User, named: str) -> None:
    path = exported(user)
    done = user.run("udi", "export", "my/app:1", path)
    assert done.returncode == 125 and "is there already" in done.stderr
    assert "--force" in done.stderr
    exported(user, "--force")
    done = user.run("udi", "export", "my/app:1", user.home / "x.img")
    assert done.returncode == 125 and "does not end in .sqfs" in done.stderr
    done = user.run("udi", "export", "my/app:1", user.home / "nosuch/x.sqfs")
    assert done.returncode == 125 and "writing" in done.stderr and "No such file" in done.stderr
    done = user.run("udi", "export", user.home, user.home / "x.sqfs")
    assert done.returncode == 125 and "is no root file system" in done.stderr
    (user.home / "usr").mkdir()
    done = user.run("udi", "export", user.home, user.home / "x.sqfs")
    assert done.returncode == 125 and "is a directory, not an image's file" in done.stderr
    assert not list(user.home.glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("fallback", [False, True])
def test_interrupted_it_leaves_nothing(user: User, number: int, fallback: bool) -> None:
    if fallback and number == signal.SIGKILL:
        return  # without O_TMPFILE a hidden file is what remains
    code = f"""
import os, sys
from rootless_udi.commands.common import newfile
if {fallback}:
    os.O_TMPFILE = 0
with newfile.writing("out", False) as file:
    file.write(b"x" * 100000); file.flush(); print("up", flush=True); sys.stdin.read()
"""
    from tests.kit.places import TREE

    process = user.popen("python3", "-c", code, env={"PYTHONPATH": str(TREE)}, stdin=-1, stdout=-1)
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(120) in (128 + number, -number)
    process.stdin.close()  # type: ignore[union-attr]
    assert [path.name for path in user.home.iterdir() if path.name != "run"] == []


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_other_tools_load_it(user: User, named: str, tmp_path: Path, kind: str) -> None:
    path = exported(user, f"--format={kind}", name="app.tar")
    out = subprocess.run(
        ["skopeo", "inspect", "--config", f"{kind}:{path}"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    config = json.loads(out.stdout)["config"]
    assert config["Entrypoint"] == CONFIG["Entrypoint"] and config["Env"] == CONFIG["Env"]
    target = tmp_path / "copied"
    argv = ["skopeo", "--insecure-policy", "copy", "-q", f"{kind}:{path}", f"oci:{target}:x"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Our own pull reads it again, to the same tree.
    before = tree(next(Path(user.env["UDI_STORE"], "images").glob("*.sqfs")))
    env = {"UDI_STORE": f"{user.home}/other"}
    done = user.run("udi", "pull", "-q", f"{kind}:{path}", env=env)
    assert done.returncode == 0, done.stderr
    assert tree(next(Path(env["UDI_STORE"], "images").glob("*.sqfs"))) == before


def tree(path: Path) -> list[str]:
    argv = ["unsquashfs", "-lls", "-d", "", str(path)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sorted(line for line in out.splitlines() if "/" in line)


def test_a_damaged_image_is_no_archive(user: User, named: str) -> None:
    path = exported(user)
    data = bytearray(path.read_bytes())
    table = int.from_bytes(data[64:72], "little")
    data[table : table + 64] = fuseimages.noise(64)
    used = int.from_bytes(data[40:48], "little")
    path.write_bytes(data[: used + -used % 4096])  # without the list, which would tell at once
    target = user.home / "x.tar"
    done = user.run("udi", "export", path, target, "--format=oci-archive")
    assert done.returncode == 125 and "the image is damaged" in done.stderr, done.stderr
    assert not target.exists() and not list(user.home.glob(".*.part"))


def test_history(user: User, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    found = layout.image("1", [images.tar(images.busybox_entries())], CONFIG)
    body = json.loads((layout.path / "blobs/sha256" / found["digest"][7:]).read_bytes())
    config = json.loads((layout.path / "blobs/sha256" / body["config"]["digest"][7:]).read_bytes())
    config["history"] = [
        {"created": "2026-01-02T03:04:05Z", "created_by": "ADD \x1b[31mroot.tar /"},
        {"created_by": "ENV " + "x" * 1000, "empty_layer": True},
        {"comment": 7},
        "nonsense",
    ]
    body["config"] = layout.blob(json.dumps(config).encode(), body["config"]["mediaType"])
    layout.tag("told", layout.blob(json.dumps(body).encode(), found["mediaType"]))
    image = f"oci:{layout.path}:told"
    assert user.run("udi", "pull", "-q", image).returncode == 0
    done = user.run("udi", "history", image)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:1]] == ["CREATED"] and len(lines) == 4
    assert "ENV xxx" in lines[2] and len(lines[2]) == 80
    assert lines[3].startswith("2026-01-02 ") and "\\x1b[31m" in lines[3] and "MB" in lines[3]
    steps = json.loads(user.run("udi", "history", "--json", image).stdout)
    assert steps[0]["size"] == body["layers"][0]["size"] and steps[1]["size"] == -1
    assert len(steps[1]["created_by"]) == 400
    user.run("udi", "pull", "-q", f"oci:{layout.path}:1", check=True)
    done = user.run("udi", "history", f"oci:{layout.path}:1")
    assert (done.stdout, done.stderr) == (
        "",
        f"the history of image oci:{layout.path}:1 has no step\n",
    )
    bare = user.home / "bare.sqfs"
    source = next(Path(user.env["UDI_STORE"], "images").glob("*.sqfs"))
    bare.write_bytes(source.read_bytes())
    done = user.run("udi", "history", bare)
    assert done.returncode == 125 and "no history is known" in done.stderr
