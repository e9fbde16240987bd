"""Images of a few KiB that say they hold terabytes: the server stays small, and stays."""

from pathlib import Path

import pytest

from tests.kit import squashbombs
from tests.kit.fusemount import Mount, ours

LIMIT = 100 << 10
"""KiB that the server may ever have resident (docs/fuse.md)."""
EVERYTHING = """
import errno, os, sys
room = 3000
refused = []
def ask(call, *words):
    try:
        return call(*words)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            refused.append(os.strerror(error.errno))
def read(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = min(os.fstat(fd).st_size, 1 << 62)
        for at in (0, size // 2, max(size - 5000, 0)):
            os.pread(fd, 5000, at)
        for at in range(0, min(size, 8 << 20), 1 << 20):
            os.pread(fd, 1 << 20, at)
    finally:
        os.close(fd)
top = sys.argv[1]
for path in [top, *(os.path.join(top, n) for n in (ask(os.listdir, top) or [])[:room])]:
    status = ask(os.lstat, path)
    for name in (ask(os.listxattr, path) or [])[:200]:
        ask(os.getxattr, path, name)
    kind = status.st_mode >> 12 if status else 0
    if kind == 4:
        ask(os.listdir, path)
        ask(os.lstat, path + "/absent")
    elif kind == 10:
        ask(os.readlink, path)
    elif kind == 8:
        ask(read, path)
print(*sorted(set(refused)), sep=", ")
"""
REFUSED = {
    "xattr_count": "Input/output error",
    "xattr_inline": "Input/output error",
    "xattr_table_damaged": "Input/output error",
    "target_length": "Input/output error",
    "inodes": "Input/output error",
}
"""What a bomb's parts are refused with; of the others all is served."""


@pytest.mark.needs("userns", "fuse")
@pytest.mark.parametrize("name", squashbombs.BOMBS)
def test_a_bomb_is_served_in_bounds(name: str, tmp_path: Path) -> None:
    image = squashbombs.BOMBS[name](tmp_path / "image")
    with Mount(ours(), image, tmp_path / "m") as one:
        found = one.python(EVERYTHING, one.point, timeout=200)
        status = Path(f"/proc/{one.server.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        assert one.server.poll() is None
        assert peak < LIMIT, f"{peak} KiB"
        assert found == REFUSED.get(name, "") + "\n"
        assert "Traceback" not in one.log.read_text()
        print(name, peak >> 10, "MiB of", image.stat().st_blocks // 2, "KiB")
