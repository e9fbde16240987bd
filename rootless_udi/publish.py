"""Elect the builder of a node's container, write its record, and take it away at the end.

The builder holds an flock(2) on NAME.lock from before it plans until its record is there; who waits
meanwhile then finds the record. A lock dies with its holder, so a killed builder blocks nobody.
"""

import fcntl
import os
from time import sleep, time

from rootless_udi import node
from rootless_udi.errors import UdiError
from rootless_udi.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 20
"""Milliseconds that a builder-to-be waits for a member that is on its way in."""


class Election:
    """The right to build the container `name`: of a node's ranks one has it at a time."""

    def __init__(self, path: str, directory: int, name: str) -> None:
        """Wait for the lock. `path` and `directory` are the state directory's."""
        self.path, self.directory, self.name = path, directory, name
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self.lock = os.open(f"{name}.lock", flags, 0o600, dir_fd=directory)
            except OSError as error:
                raise _failed(path, error) from None
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            # Who ends a container unlinks its lock; one that was waited for meanwhile is no more.
            if _same(self.lock, f"{name}.lock", directory):
                return
            os.close(self.lock)

    def record(self) -> tuple[node.Record | None, int]:
        """Return the record as it is now, waiting a moment for a member that is still entering."""
        for _ in range(_PATIENCE):
            record, fd = node.read(self.directory, self.name)
            if record is None or record.get("dead") or not node.entering(record):
                return record, fd
            os.close(fd)
            sleep(0.001)
        return node.read(self.directory, self.name)

    def release(self) -> None:
        """Let the next one look."""
        os.close(self.lock)


def _same(fd: int, name: str, directory: int) -> bool:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), status)


def _failed(path: str, error: OSError) -> UdiError:
    return UdiError(
        f"writing a record in the state directory {path} failed: {error.strerror}",
        "free some space, set XDG_RUNTIME_DIR to another directory, or use --share=off",
    )


def write(
    directory: int, path: str, name: str, plan: Plan, fields: "dict[str, str]", server: int
) -> None:
    """Publish the caller's container: a whole record, with the caller as its first member.

    `fields` gives request, token and job. Raises UdiError where the file can't be written.
    """
    spaces = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("user", "mnt")}
    pairs = [
        *fields.items(),
        ("image", plan.image),
        ("digest", plan.digest),
        ("started", str(int(time()))),
        ("user", str(spaces["user"])),
        ("mnt", str(spaces["mnt"])),
        ("server", str(server)),
        ("rung", plan.root.server),
        *(("before", f"{e.op}\t{e.name}\t{e.value}") for e in plan.before),
        *(("after", f"{e.op}\t{e.name}\t{e.value}") for e in plan.after),
        *(("entrypoint", word) for word in plan.entrypoint),
        *(("cmd", word) for word in plan.command),
        ("workdir", plan.workdir),
    ]
    me = os.getpid()
    _replace(directory, path, name, text(pairs) + f"\n{me} {node.started(me)}\n")


def text(pairs: "list[tuple[str, str]]") -> str:
    """Return a record's head; values that hold tabs between fields keep them."""
    lines = [node.FORMAT]
    for key, value in pairs:
        fields = value.split("\t", 2) if key in ("before", "after") else [value]
        lines.append(f"{key}=" + "\t".join(node.escape(field) for field in fields))
    return "\n".join(lines) + "\n"


def _replace(directory: int, path: str, name: str, content: str) -> None:
    new = f"{name}.new"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=directory)
        try:
            data = content.encode("utf-8", "surrogateescape")
            if os.write(fd, data) != len(data):
                raise OSError(28, os.strerror(28))
        finally:
            os.close(fd)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        try:
            os.unlink(new, dir_fd=directory)
        except OSError:
            pass
        raise _failed(path, error) from None


def ending(path: str, name: str, token: str) -> "Callable[[str], None]":
    """Return what the helper calls: with a reason when the image server has died, then at the end.

    It opens the directory anew, since it holds no descriptor of the caller's.
    """

    def end(why: str) -> None:
        try:
            _, directory = node.state([path], make=False)
            if directory < 0:
                return
            election = Election(path, directory, name)
        except UdiError:
            return
        try:
            record, fd = node.read(directory, name)
            ours = record is None or record.get("token") == token
            if record is not None and ours and why:
                head = [(k, v) for k, values in record.lists.items() for v in values]
                members = "".join(f"{pid} {start}\n" for pid, start in record.members)
                try:
                    content = text([*head, ("dead", why)]) + f"\n{members}"
                    _replace(directory, path, name, content)
                except UdiError:
                    os.unlink(name, dir_fd=directory)
            elif ours and not why:
                for left in (name, f"{name}.new", f"{name}.lock"):
                    try:
                        os.unlink(left, dir_fd=directory)
                    except FileNotFoundError:
                        pass
            if fd >= 0:
                os.close(fd)
        finally:
            election.release()
            os.close(directory)

    return end
