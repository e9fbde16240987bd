"""A PostgreSQL of a test's own: a cluster in a folder, on a Unix socket alone."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import User
from tests.kit.probes import postgres_programs


class Cluster:
    """PostgreSQL in `folder`; `url` is its database. `start` and `stop` it."""

    def __init__(self, user: User, folder: Path) -> None:
        self._user, self.folder = user, folder
        self.url = f"postgresql:///postgres?host={folder}"
        words = ["--no-sync", "--auth=trust", "--no-instructions", "-D", str(folder / "data")]
        self._do("initdb", *words)
        with open(folder / "data/postgresql.conf", "a") as file:
            # /tmp may be full of sockets, and the folder's path is short enough (unix(7)).
            file.write(f"unix_socket_directories = '{folder}'\nlisten_addresses = ''\n")
            file.write("fsync = off\nmax_connections = 60\nshared_buffers = 16MB\n")

    def _do(self, program: str, *words: str) -> None:
        done = self._user.run(f"{postgres_programs()}/{program}", *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        data, log = f"{self.folder}/data", f"{self.folder}/log"
        self._do("pg_ctl", "start", "--wait", "--silent", "-D", data, "-l", log)

    def stop(self) -> None:
        """End it at once, and with it all sessions."""
        data = f"{self.folder}/data"
        self._do("pg_ctl", "stop", "--wait", "--silent", "--mode=fast", "-D", data)

    def sql(self, text: str, database: str = "postgres") -> str:
        argv = [
            f"{postgres_programs()}/psql",
            "-XAtq",
            "-h",
            str(self.folder),
            "-c",
            text,
            database,
        ]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def database(self, name: str) -> str:
        """Make a database; return its address."""
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql:///{name}?host={self.folder}"


@contextlib.contextmanager
def cluster(user: User, folder: Path) -> Iterator[Cluster]:
    """A PostgreSQL that runs."""
    folder.mkdir()
    one = Cluster(user, folder)
    one.start()
    try:
        yield one
    finally:
        one.stop()
