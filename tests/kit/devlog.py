"""A system log of the test's own: /dev/log in a mount namespace, in which programs are started."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_ENTER = """
set -e
mount -t tmpfs -o mode=755 none "$1"
for name in fuse full null random tty urandom zero; do
    : >"$1/$name"; mount --bind "/dev/$name" "$1/$name"
done
for name in pts shm; do
    mkdir "$1/$name"; mount --rbind "/dev/$name" "$1/$name"
done
ln -s /proc/self/fd "$1/fd"
: >"$1/log"; mount --bind "$2" "$1/log"
mount --rbind "$1" /dev
shift 2
exec "$@"
"""


class DevLog:
    """What was sent to the log in `folder`, line by line."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self._folder = folder
        self._come = threading.Condition()
        (folder / "dev").mkdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "log"))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while data := self._socket.recv(1 << 16):
            with self._come:
                self.lines.append(data.decode(errors="replace"))
                self._come.notify_all()

    @property
    def words(self) -> tuple[str, ...]:
        """What stands before a command line, so that its log is this one. It gets a user and a
        mount namespace of its own, with the caller's ids and all capabilities."""
        alone = "unshare", "--user", "--map-current-user", "--keep-caps", "-m"
        return *alone, "sh", "-c", _ENTER, "sh", f"{self._folder}/dev", f"{self._folder}/log"

    def wait(self, text: str, seconds: float = 60) -> str:
        """Return the first line that has `text`, once it has come."""
        end = time.monotonic() + seconds
        with self._come:
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                left = end - time.monotonic()
                assert left > 0 and self._come.wait(left), self.lines

    def close(self) -> None:
        """End: what is sent now is lost."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def devlog(folder: Path) -> Iterator[DevLog]:
    """Yield a log whose socket is in `folder`, which is made."""
    folder.mkdir()
    one = DevLog(folder)
    try:
        yield one
    finally:
        one.close()
