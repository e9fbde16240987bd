"""Do the queue's jobs: N at once, each in a process of its own (`gateway.worker`)."""

import hmac
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import trio
from sqlalchemy import Connection

from rootless_udi.base import program
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.gateway import audit, catalogue, jobs
from rootless_udi.gateway.catalogue import wanted_of
from rootless_udi.gateway.database import Database, Unavailable, tell_others
from rootless_udi.gateway.examiner import Examiner, ExaminerAnswer
from rootless_udi.gateway.worker import Said
from rootless_udi.plan.reference import platform_of_key
from rootless_udi.store.store import Store, stem

_LONGEST_LINE = 1 << 20
_MARKS = 10_000
"""Most requests with credentials that are remembered."""
_GLANCE = 5.0
"""Seconds after which a runner looks for jobs whose pause is over."""


class Queue:
    """The queue of one gateway. `ask` puts a job into it, `run` does them, for ever."""

    def __init__(
        self,
        database: Database,
        store: Store,
        workers: int,
        ended: Callable[[str], None],
        examiner: Examiner | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._workers = workers
        self._ended = ended
        self._examiner = examiner or Examiner()
        self.import_most = 0
        """Most bytes of a file that is imported."""
        self._secrets: dict[int, Mapping[str, str]] = {}
        self._salt = os.urandom(32)
        self._marks: dict[tuple[str, str, int], bytes] = {}
        """What tells one user's credentials for a name from others that he gives later."""
        self._running: dict[int, Said] = {}
        self.number = 0
        """This gateway's, among those that share the database (`nodes`)."""
        self._news = trio.Event()
        self.changed = trio.Event()
        self.published = 0
        """How often the catalogue has changed."""

    def said(self, job: Any) -> Said:
        """Return what the worker of a job has said, for its progress; of another gateway too."""
        return self._running.get(job.id) or Said(done=job.done, total=job.total)

    async def ask(
        self,
        platform: str,
        name: str,
        uid: int,
        wanted: catalogue.Wanted,
        secrets: Mapping[str, str],
        most: int,
        room: int = 0,
        file: tuple[str, str] = ("", ""),
    ) -> tuple[Any, bool]:
        """Do as `jobs.ask`, and keep the credentials until the job has ended.

        `file` is one to import, and its version; `room` bounds what the asker may have brought.
        """
        mark = hmac.digest(self._salt, json.dumps(sorted(secrets.items())).encode(), "sha256")
        which = (platform, name, uid)
        other = bool(secrets) and self._marks.get(which, mark) != mark
        what = (platform, name, uid, wanted, bool(secrets))
        args = (*what, most, other, self.number, file, room)
        own, begun = dict(secrets), list[int]()
        try:
            job, new = await self._database.write_quietly(self._ask, own, args, begun)
        except BaseException:
            # Not written: with SQLite the next job has its number, and is somebody else's perhaps.
            for number in begun:
                if self._secrets.get(number) is own:
                    del self._secrets[number]
            raise
        if secrets:
            if len(self._marks) >= _MARKS:
                self._marks.clear()
            self._marks[which] = mark
        if new:
            self._wake()
        return job, new

    def _ask(
        self,
        connection: Connection,
        secrets: dict[str, str],
        args: tuple[Any, ...],
        begun: list[int],
    ) -> tuple[Any, bool]:
        job, new = jobs.ask(connection, *args)
        if new:
            # Before a runner can see the row: without credentials it would say that they are lost.
            if secrets:
                self._secrets[job.id] = secrets
                begun.append(job.id)
            # Who asks how a pull goes does so often: others hear of new ones alone.
            tell_others(connection)
        return job, new

    def heard(self) -> None:
        """Look for jobs: another gateway has changed something."""
        self._wake()
        self._tell()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def run(self) -> None:
        """Do jobs until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(self._runner)

    async def _runner(self) -> None:
        while True:
            news = self._news
            try:
                job = await self._next()
                if job is None:
                    with trio.move_on_after(_GLANCE):
                        await news.wait()
                    continue
                try:
                    await self._do(job)
                finally:
                    del self._running[job.id]
                    self._tell()
            except Unavailable as error:
                complain("udi gateway", error.message, error.hint)
                await trio.sleep(_GLANCE)

    async def _next(self) -> Any:
        """Return a job that is taken, None where none waits. Raises Unavailable."""
        taken: list[int] = []
        try:
            return await self._database.write_quietly(self._take, taken)
        except BaseException:
            # The transaction's end failed: nobody does it, and it would be left for ever.
            for number in taken:
                del self._running[number]
            raise

    def _take(self, connection: Connection, taken: list[int]) -> Any:
        job = jobs.take(connection, frozenset(self._running), self.number)
        if job is not None:
            # In the thread that writes, so that no other runner takes it as well.
            self._running[job.id] = Said()
            taken.append(job.id)
        return job

    async def _do(self, job: Any) -> None:
        secrets = self._secrets.get(job.id, {}) if job.secret else {}
        if job.secret and not secrets:
            await self._database.write(self._change, job.id, "FAILURE", jobs.RESTARTED, {})
            return
        said, status = await self._work(job, secrets)
        if said.digest and self._examiner.program:
            verdict = await self._examine(job, said)
            if verdict.why:
                last = not verdict.again or job.attempts + 1 >= jobs.ATTEMPTS
                await self._refuse(job, said.replace(error=verdict.why, again=verdict.again), last)
                return
        if said.digest:
            try:
                await self._database.write(self._publish, job.id, said)
                self.published += 1
            except Unavailable:
                # Not lost: the row still says that it is unfinished.
                raise
            except (UdiError, OSError) as error:
                await self._refuse(job, said.replace(error=str(error)), True)
            else:
                self._secrets.pop(job.id, None)
                self._ended("READY")
            return
        if not said.error:
            said = said.replace(error=f"the pull's process ended with status {status}", again=True)
        await self._end(job, said)

    async def _examine(self, job: Any, said: Said) -> ExaminerAnswer:
        """Have the site's examiner look at an image that nobody else can read yet."""
        await self._hear(job, {"state": "EXAMINATION"})
        image = self._store.image(said.digest, job.name)
        if image is None:
            return ExaminerAnswer(f"image {said.digest} is not in the store after its pull")
        try:
            facts = await trio.to_thread.run_sync(self._store.facts, image)
        except UdiError as error:
            return ExaminerAnswer(error.message)
        return await self._examiner.examine(
            image.squashfs, facts, job.name, said.digest, job.platform
        )

    async def _refuse(self, job: Any, said: Said, last: bool) -> None:
        """End a job whose image nobody shall have: with the `last` attempt it is removed first, so
        that it is gone when the job has failed."""
        try:
            if last:
                await self._database.write(self._drop, said.digest)
        finally:
            await self._end(job, said)

    def _drop(self, connection: Connection, digest: str) -> None:
        """Remove an image that was refused; what has another name was accepted by that."""
        try:
            if self._store.drop([], [stem(digest)]):
                catalogue.forget(connection, self._store)
        except OSError as error:
            raise self._store.refused(f"removing image {digest}", error) from None

    async def _end(self, job: Any, said: Said) -> None:
        """Try again later what may succeed then; else it has failed."""
        attempts = job.attempts + 1
        if said.again and attempts < jobs.ATTEMPTS:
            pause = jobs.PAUSES[attempts - 1]
            text = f"attempt {attempts} of {jobs.ATTEMPTS} failed: {said.error}"
            due = {"due": time.time() + pause, "gateway": self.number if job.secret else 0}
            await self._database.write(self._change, job.id, "PENDING", text, due)
            return
        self._secrets.pop(job.id, None)
        await self._database.write(self._change, job.id, "FAILURE", said.error, {})
        self._ended("FAILURE")

    async def _work(self, job: Any, secrets: Mapping[str, str]) -> tuple[Said, int]:
        """Run a worker; return the last that it said and its exit status."""
        argv = program.argv("from rootless_udi.gateway.worker import main; main()")
        order = {
            "name": job.name,
            "platform": job.platform,
            "store": self._store.root,
            "secrets": dict(secrets),
            "file": job.file,
            "uid": job.uid,
            "most": self.import_most,
        }
        process = await trio.lowlevel.open_process(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            await process.stdin.send_all((json.dumps(order) + "\n").encode())
            await self._listen(job, process.stdout)
            return self._running[job.id], await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()

    async def _listen(self, job: Any, stream: trio.abc.ReceiveStream) -> None:
        buffer = b""
        try:
            async for data in stream:
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    await self._hear(job, json.loads(line))
                if len(buffer) > _LONGEST_LINE:
                    return
        except (trio.BrokenResourceError, ValueError):
            # The worker ended in the middle of a line.
            return

    async def _hear(self, job: Any, fields: dict[str, Any]) -> None:
        before = self._running[job.id]
        self._running[job.id] = now = before.replace(**fields)
        if now.state != before.state or (self._database.shared and now.done != before.done):
            progress = {"done": now.done, "total": now.total}
            await self._database.write_quietly(
                self._change, job.id, now.state or "PENDING", "", progress
            )
        self._tell()

    def _change(
        self,
        connection: Connection,
        number: int,
        state: str,
        message: str,
        values: dict[str, Any],
    ) -> None:
        # Another gateway has the job where this one was lost for a while.
        if jobs.is_of(connection, number, self.number):
            jobs.change(connection, number, state, message, **values)

    def _publish(self, connection: Connection, number: int, said: Said) -> None:
        """Let readers read an image that is in the store, give it its name, and end its job."""
        if not jobs.is_of(connection, number, self.number):
            raise Unavailable(f"job {number} is another gateway's now")
        job = jobs.by_number(connection, number)
        image = self._store.image(said.digest, job.name)
        if image is None:
            raise UdiError(f"image {said.digest} is not in the store after its pull")
        wanted = wanted_of(job.access)
        if not said.anonymous or not wanted.public:
            wanted = wanted.replace(
                public=said.anonymous and wanted.public, users=(*wanted.users, job.uid)
            )
        platform = platform_of_key(job.platform)
        owner = None if wanted.public else job.uid
        catalogue.publish(connection, self._store, image, platform, wanted, owner, job.uid)
        if job.file:
            audit.note(connection, job.uid, "import", job.name, said.digest)
        if not said.anonymous:
            audit.note(connection, job.uid, "pull", job.name, said.digest)
        jobs.change(connection, number, "READY", digest=said.digest)
