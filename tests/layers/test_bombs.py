"""Layers and documents of a few KB that say they hold gigabytes: a pull stays below 300 MiB."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from rootless_udi.plan.reference import platform_of
from tests.conftest import User
from tests.kit import images, tarbombs

pytestmark = pytest.mark.needs("tar2sqfs")
HERE = platform_of(os.uname().machine)
LIMIT = 300 << 10
"""KiB that all processes of a pull may have resident."""


def family(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    found = [pid]
    for one in found:
        for thread in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def resident(pid: int) -> int:
    """Return the KiB that a process and all that come from it have resident now."""
    total = 0
    try:
        for one in family(pid):
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE") >> 10
    except (OSError, IndexError, ValueError):
        pass  # it has ended meanwhile
    return total


def pulled(user: User, reference: str, seconds: int = 120) -> tuple[int, str, int]:
    """Pull; return the status, what was said, and the most KiB resident."""
    log = user.home / "log"
    peak = 0
    with open(log, "w") as out:
        child = user.popen("udi", "pull", "-q", reference, stdout=out, stderr=out)
        for _ in range(seconds * 50):
            peak = max(peak, resident(child.pid))
            try:
                child.wait(0.02)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            child.kill()
            pytest.fail(f"it goes on after {seconds} s: {log.read_text()}")
    return child.returncode, log.read_text(), peak


def layout(bomb: tarbombs.Bomb, folder: Path) -> str:
    one = images.Layout(folder)
    compress = {
        "gzip": lambda data: gzip.compress(data, 1, mtime=0),
        "zstd-window": with_window,
    }[bomb.compress]
    one.image("1", bomb.layers, bomb.config, HERE.architecture, compress)
    return f"oci:{folder}:1"


def with_window(data: bytes) -> bytes:
    """Return a zstd frame of raw blocks that asks for a window of 128 MiB (RFC 8878, 3.1.1)."""
    blocks = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    out = b"\x28\xb5\x2f\xfd\0" + bytes([17 << 3])
    for number, block in enumerate(blocks):
        out += (len(block) << 3 | (number == len(blocks) - 1)).to_bytes(3, "little") + block
    return out


def held(user: User, bomb: tarbombs.Bomb, folder: Path, seconds: int = 120) -> None:
    status, said, peak = pulled(user, layout(bomb, folder), seconds)
    print(peak >> 10, "MiB", status, said[:200])
    assert peak < LIMIT, f"{peak >> 10} MiB"
    assert "Traceback" not in said
    if bomb.refused:
        assert status == 125 and bomb.refused in said, said
    else:
        assert status == 0, said


@pytest.mark.parametrize("name", tarbombs.BOMBS)
def test_a_bomb_is_held(name: str, user: User, tmp_path: Path) -> None:
    held(user, tarbombs.BOMBS[name](1), tmp_path / "layout")


@pytest.mark.slow
@pytest.mark.parametrize("name", (*tarbombs.BOMBS, "members_beyond"))
def test_a_large_bomb_is_held(name: str, user: User, tmp_path: Path) -> None:
    make = tarbombs.BOMBS.get(name, tarbombs.members_beyond)
    held(user, make(10), tmp_path / "layout", 1200)


def test_documents_are_held_one_at_a_time(user: User, tmp_path: Path) -> None:
    """Indexes within each other, a manifest and a config, each as large as one may be."""
    one = images.Layout(tmp_path / "layout")
    labels = {f"{n:x}": "" for n in range(320_000)}
    bare = [tarbombs.tar(tarbombs.head("a"))]
    one.image("1", bare, {"Labels": labels}, HERE.architecture)
    (entry,) = one.manifests
    document = (one.path / "blobs/sha256" / entry["digest"][7:]).read_bytes()
    found = one.blob(tarbombs.junk(document), entry["mediaType"])
    media = "application/vnd.oci.image.index.v1+json"
    platform = {"os": "linux", "architecture": HERE.architecture}
    for _ in range(3):
        index = {"schemaVersion": 2, "mediaType": media, "manifests": [found]}
        found["platform"] = platform
        found = one.blob(tarbombs.junk(json.dumps(index).encode()), media)
    one.manifests.clear()
    one.tag("1", found)
    top = one.path / "index.json"
    top.write_bytes(tarbombs.junk(top.read_bytes().strip(), 1_330_000))
    status, said, peak = pulled(user, f"oci:{one.path}:1")
    assert status == 0, said
    assert peak < LIMIT, f"{peak >> 10} MiB"


@pytest.mark.parametrize("part", ("index", "manifest", "config"))
def test_a_deep_document_is_refused(part: str, user: User, tmp_path: Path) -> None:
    deep = b'{"a":' + b"[" * 1_000_000
    one = images.Layout(tmp_path / "layout")
    one.image("1", [tarbombs.tar(tarbombs.head("a"))], {}, HERE.architecture)
    media = one.manifests[0]["mediaType"]
    if part == "index":
        (one.path / "index.json").write_bytes(deep)
    elif part == "manifest":
        one.manifests.clear()
        one.tag("1", one.blob(deep, media))
    else:
        path = one.path / "blobs/sha256" / one.manifests[0]["digest"][7:]
        document = json.loads(path.read_text())
        document["config"] = one.blob(deep, document["config"]["mediaType"])
        one.manifests.clear()
        one.tag("1", one.blob(json.dumps(document).encode(), media))
    status, said, peak = pulled(user, f"oci:{one.path}:1")
    assert (status, peak < LIMIT) == (125, True), said
    assert "is no JSON" in said and "Traceback" not in said


def test_an_archive_with_a_header_of_100_mb_is_refused(user: User, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(tarbombs.archive(100 << 20), 1))
    status, said, peak = pulled(user, f"docker-archive:{path}")
    assert (status, peak < 100 << 10) == (125, True), f"{peak} {said}"
    assert "a header of" in said


def test_a_large_image_passes(user: User, tmp_path: Path) -> None:
    """127 layers, folders, links, thousands of xattrs at one file: no bomb."""
    head, pax, record = tarbombs.head, tarbombs.pax, tarbombs.record
    rows = []
    for number in range(20_000):
        folder = f"usr/lib/python3/site-packages/package{number // 30}"
        rows += [head(folder, b"5")] if number % 30 == 0 else []
        rows.append(head(f"{folder}/module{number}.py"))
        rows += [head(f"{folder}/link{number}", b"2", link="../x.so")] if number % 15 == 0 else []
    rows += [pax(record("SCHILY.xattr.user.a", b"%d" % n)) + head(f"a/{n}") for n in range(3000)]
    xattrs = b"".join(record(f"SCHILY.xattr.user.name{n}", b"%d" % n) for n in range(1000))
    top = [tarbombs.tar(head(f"opt/layer{n}")) for n in range(126)]
    bomb = tarbombs.Bomb([tarbombs.tar(pax(xattrs), head("x"), *rows), *top])
    held(user, bomb, tmp_path / "layout")
    (facts,) = (user.home / "store/images").glob("*.json")
    assert json.loads(facts.read_text())["left_out"]["xattrs"] == 0


@pytest.mark.slow
def test_an_image_of_300_000_files_passes(user: User, tmp_path: Path) -> None:
    head = tarbombs.head
    rows = []
    for number in range(300_000):
        folder = f"usr/lib/python3.11/site-packages/package{number // 30}"
        rows += [head(folder, b"5")] if number % 30 == 0 else []
        kind = b"2" if number % 15 == 1 else b"0"
        link = "../lib/libx.so" if kind == b"2" else ""
        rows.append(head(f"{folder}/some_module_{number}.py", kind, link=link))
    held(user, tarbombs.Bomb([tarbombs.tar(*rows)]), tmp_path / "layout", 600)
