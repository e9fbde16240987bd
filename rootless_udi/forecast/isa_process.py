"""One run of udi-run with a command in a room, watched from outside.

The shell of the image stands around the command: it waits until we are ready, tells the command's
status, and keeps the container until we have looked at what was written. Where an image has no
shell, the command runs alone, and its files are not looked at.
"""

import fcntl
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rootless_udi.base import program
from rootless_udi.base.records import Record
from rootless_udi.forecast import asis_written
from rootless_udi.forecast.room import Room

ENDED, REFUSED, RUNNING = "ended", "refused", "running"
"""The command ended; udi-run did not start it; it was still running at the end of the time."""
_SCRIPT = (
    'echo ready >&{out}; read go <&{into}; "$@" </dev/null {out}>&- {into}<&-;'
    " echo $? >&{out}; read end <&{into}"
)
_OUT, _INTO = 9, 8
"""Descriptors of the shell around the command: it tells, behind `room.enter`, and is told."""
_TAIL = 8192
"""Last bytes of standard error, and of a log, that are read."""
_SYSCALL = b"\x0f\x05"
_ILLEGAL = "uncaught target signal 4"
_TOLD = re.compile(rb"\d{0,10}(\n[a-z]{0,5}(\n\d{0,3}(\n)?)?)?")
"""What is told, at any moment: a number, "ready", a status."""


class Outcome(Record):
    """How a run ended.

    `status` is as a shell tells it (128 + N for signal N), `said` the last lines of standard error,
    `illegal` whether a program was ended for an instruction that its CPU has not, `code` the
    bytes that begin with that instruction (b"" where they aren't known). `written` are paths of the
    image in which something was written; None where that was not looked at.
    """

    state: str
    status: int = 0
    said: str = ""
    illegal: bool = False
    code: bytes = b""
    written: tuple[str, ...] | None = None
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether the command ended without an error."""
        return self.state == ENDED and self.status == 0


class WatchedRun:
    """A run that ends after `limit` seconds at the latest.

    `words` are udi-run's, `logs` is a folder where qemu logs, or ""; `shell`: with the image's
    shell around the command.
    """

    def __init__(
        self,
        words: list[str],
        command: list[str],
        logs: str,
        limit: float,
        place: Room,
        shell: bool = True,
    ) -> None:
        self._words, self._command, self._logs = words, command, logs
        self._begin, self._deadline = time.monotonic(), time.monotonic() + limit
        self._room, self._shell = place, shell
        self._texts = {"told": b"", "said": b""}

    def outcome(self, look: bool) -> Outcome:
        """Run it to its end; `look` for what was written."""
        with _pipe() as (told, out), _pipe() as (into, go), selectors.DefaultSelector() as events:
            process = self._start(out, into)
            os.close(out.take())
            try:
                assert process.stderr
                events.register(told.fd, selectors.EVENT_READ, "told")
                events.register(process.stderr, selectors.EVENT_READ, "said")
                return self._follow(process, events, go.fd, look)
            finally:
                _end(process)

    def _start(self, out: "_End", into: "_End") -> "subprocess.Popen[bytes]":
        # Some shells know no descriptors above 9.
        # An emulator that ends by a signal writes its program's memory into the current folder.
        # Without a room udi-run is refused too, and says why.
        keeper = self._room.keeper
        enter = f"enter({keeper}, {os.getpid()}, {_OUT})" if keeper else ""
        statement = (
            f"os.dup2({out.fd}, {_OUT}); os.dup2({into.fd}, {_INTO})\n"
            "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
            f"from rootless_udi.forecast.room import enter\n{enter}\n"
            "from rootless_udi.run import main; main()"
        )
        command = self._command
        if self._shell:
            script = _SCRIPT.format(out=_OUT, into=_INTO)
            command = ["/bin/sh", "-c", script, "sh", *command]
        environ = {name: value for name, value in os.environ.items() if name[:4] != "UDI_"}
        kept = {n: v for n, v in os.environ.items() if n in ("UDI_STORE", "UDI_CONFIG")}
        return subprocess.Popen(
            program.argv(statement, *self._words, *command, site=False),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(out.fd, into.fd),
            env={**environ, **kept},
            start_new_session=True,
        )

    def _follow(
        self,
        process: "subprocess.Popen[bytes]",
        events: selectors.BaseSelector,
        go: int,
        look: bool,
    ) -> Outcome:
        since, lines = 0, 0
        written: tuple[str, ...] | None = None
        while events.get_map():
            left = self._deadline - time.monotonic()
            if left <= 0 or (self._logs and _full(self._logs)):
                return self._ended(RUNNING, 0, None)
            for key, _ in events.select(min(left, 1.0)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    events.unregister(key.fd)
                    continue
                text = self._texts[key.data] + data
                self._texts[key.data] = text if key.data == "told" else text[-_TAIL:]
            if not _TOLD.fullmatch(self._texts["told"]):
                self._texts["said"] = b"/bin/sh of the image is no shell"
                return self._ended(REFUSED, 1, None)
            now = self._texts["told"].count(b"\n")
            if now >= 2 and lines < 2:
                since = asis_written.now(self._room.path) if look else 0
                os.write(go, b"go\n")
            if now >= 3 and lines < 3:
                number = int(self._texts["told"].split()[0])
                written = tuple(asis_written.written(number, since)) if look else None
                os.write(go, b"end\n")
            lines = now
        status = process.wait()
        if not self._shell:
            refused = status != 0 and self._texts["said"].startswith((b"udi-run: ", b"udi check: "))
            return self._ended(REFUSED if refused else ENDED, status, None)
        told = self._texts["told"].split()
        if len(told) < 3:
            return self._ended(REFUSED, status, None)
        return self._ended(ENDED, int(told[2]), written)

    def _ended(self, state: str, status: int, written: "tuple[str, ...] | None") -> Outcome:
        said = self._texts["said"].decode("utf-8", "replace")
        illegal = _ILLEGAL in said or status == 128 + signal.SIGILL
        code = _refused(self._logs) if illegal and self._logs else b""
        lines = [line for line in said.splitlines() if "support requested feature" not in line]
        took = time.monotonic() - self._begin
        return Outcome(state, status, "\n".join(lines[-20:]), illegal, code, written, took)


class _End:
    """One end of a pipe, closed at the latest by `_pipe`."""

    def __init__(self, fd: int) -> None:
        # Away from the numbers that the shell gets.
        self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
        os.close(fd)

    def take(self) -> int:
        """Return the descriptor, which is the caller's to close from now on."""
        fd, self.fd = self.fd, -1
        return fd


@contextmanager
def _pipe() -> Iterator[tuple[_End, _End]]:
    """Return the ends of a pipe, for reading and for writing."""
    ends = [_End(fd) for fd in os.pipe()]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            if end.fd >= 0:
                os.close(end.fd)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of a run."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stderr:
        process.stderr.close()


def _full(folder: str) -> bool:
    """Tell whether half of the room's memory is used, which has half of the machine's."""
    status = os.statvfs(folder)
    return status.f_bfree * 2 < status.f_blocks


def _refused(folder: str) -> bytes:
    """Return the instruction that one of the programs was ended for, by qemu's logs (-d in_asm).

    qemu logs what it translates, once, before it runs it: a refused instruction comes last. The
    last of a program that ended by itself is a system call.
    """
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        with open(entry.path, "rb") as file:
            file.seek(max(0, entry.stat().st_size - _TAIL))
            code = _last(file.read())
        if code and not code.startswith(_SYSCALL):
            return code
    return b""


def _last(log: bytes) -> bytes:
    """Return the bytes of the last instruction in a log.

    A row is "0x4000001091:  c4 e2 7d 18 0d 72 0f 00  vbroadcastss ..."; more bytes of a long
    instruction are in a row of their own. What qemu's disassembler does not know itself begins with
    a row ".byte", and the rows behind that are wrong guesses.
    """
    rows: list[tuple[bytes, bytes]] = []
    for row in log.rpartition(b"----")[2].splitlines():
        if row.startswith(b"0x"):
            text, _, words = row.partition(b":")[2].strip().partition(b"  ")
            try:
                rows.append((bytes.fromhex(text.decode("ascii")), words.strip()))
            except ValueError:
                return b""
    begin = len(rows) - 1
    while begin > 0 and not rows[begin][1]:
        begin -= 1
    for guess in range(max(0, len(rows) - 5), len(rows)):
        if rows[guess][1].startswith(b".byte"):
            begin = guess
            break
    return b"".join(code for code, _words in rows[max(begin, 0) :])
