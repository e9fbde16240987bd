"""The site's examiner: a program that sees an image before anybody else does, and may refuse it.

It is started as `PROGRAM FILE.sqfs`, with the image's facts as JSON on its input, and the variables
UDI_IMAGE, UDI_DIGEST and UDI_PLATFORM. It says yes by exit status 0, and no by 1, with the reason
as the last line of its output. Anything else, or no answer in time, is no answer: the image stays
closed, and is examined again with the next attempt.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.records import Record

_REFUSED = 1
_SAID_MOST = 64 << 10
_REASON_MOST = 300
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "USER", "XDG_RUNTIME_DIR")


class ExaminerAnswer(Record):
    """What came of it: `why` is empty for an image that may be used; `again` whether the next
    attempt may end otherwise."""

    why: str = ""
    again: bool = False


class Examiner(Record):
    """A program (an absolute path; none where it is empty) and the seconds that it may take."""

    program: str = ""
    seconds: float = 300.0

    def check(self) -> None:
        """Raise UdiError where the program can't be run."""
        if self.program and not (
            os.path.isabs(self.program)
            and os.path.isfile(self.program)
            and os.access(self.program, os.X_OK)
        ):
            raise UdiError(
                f"--examiner={self.program}: is no program that this account can run",
                "the absolute path of a file that may be executed",
            )

    async def examine(
        self, path: str, facts: Mapping[str, Any], name: str, digest: str, platform: str
    ) -> ExaminerAnswer:
        """Ask the program about the image at `path`."""
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        env = {**kept, "UDI_IMAGE": name, "UDI_DIGEST": digest, "UDI_PLATFORM": platform}
        try:
            process = await trio.lowlevel.open_process(
                [self.program, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            return ExaminerAnswer(f"the examiner could not be started: {error.strerror}", True)
        said: list[bytes] = [b""]
        try:
            with trio.move_on_after(self.seconds) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_tell, process, json.dumps(dict(facts)).encode())
                    nursery.start_soon(_hear, process, said)
                    await process.wait()
                    # What it has left running may hold its output open.
                    _end_group(process)
        finally:
            _end_group(process)
            with trio.CancelScope(shield=True):
                await process.wait()
        if scope.cancelled_caught:
            return ExaminerAnswer(f"the examiner gave no answer in {self.seconds:g} seconds", True)
        if process.returncode == 0:
            return ExaminerAnswer()
        reason = _last_line(said[0])
        if process.returncode == _REFUSED:
            return ExaminerAnswer(
                f"the site's examiner refuses it: {reason or 'it gave no reason'}"
            )
        return ExaminerAnswer(
            f"the examiner failed with status {process.returncode}: {reason}", True
        )


def _end_group(process: trio.Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _tell(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None
    async with process.stdin:
        with suppress(trio.BrokenResourceError):
            await process.stdin.send_all(data)


async def _hear(process: trio.Process, said: list[bytes]) -> None:
    assert process.stdout is not None
    async with process.stdout:
        async for data in process.stdout:
            said[0] = (said[0] + data)[-_SAID_MOST:]


def _last_line(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return plain(lines[-1])[:_REASON_MOST] if lines else ""
