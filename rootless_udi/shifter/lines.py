"""Lines of Shifter's `shifterimg`: of an image, of a pull; an image's name as users write it."""

import sys
import time

from rootless_udi.base.errors import BYTES, plain
from rootless_udi.base.process import complain
from rootless_udi.plan.reference import DOCKER_HUB, Reference

_STATUS = {
    "resolve": "INIT",
    "wait": "PENDING",
    "fetch": "PULLING",
    "pushed": "PULLING",
    "convert": "CONVERSION",
    "store": "TRANSFER",
    "present": "READY",
    "done": "READY",
}
"""Stage of a pull -> Shifter's word for it. Its other words are about a gateway."""


def row(system: str, status: str, digest: str, pulled: float, tag: str) -> str:
    """Return a line of `shifterimg images`."""
    when = _stamp(pulled)
    short = digest.partition(":")[2]
    return f"{system:<10} {'docker':<10} {status:<8} {short:.10}   {when} {tag:<30}"


def _stamp(seconds: float) -> str:
    """Return local time in ISO 8601, as Shifter's lines begin."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def pull_line(seconds: float, tag: str, status: str) -> str:
    """Return a line of `shifterimg pull`."""
    return f"{_stamp(seconds)} Pulling Image: docker:{tag}, status: {status}"


def tag_of(reference: Reference) -> str:
    """Return an image's name as Shifter's users write it: Docker Hub's own without its prefix."""
    if reference.kind != "registry":
        return reference.canonical
    name = reference.canonical
    if reference.registry == DOCKER_HUB:
        name = name.removeprefix(f"{DOCKER_HUB}/").removeprefix("library/")
    return name


class Line:
    """Shows a pull's status as Shifter does: a line for each change, one line on a terminal.

    Is a `rootless_udi.pull.progress.Progress`.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.status = ""
        self.again = sys.stdout.isatty()

    def say(self, status: str) -> None:
        if status == self.status:
            return
        text = pull_line(time.time(), self.tag, status)
        begin = "\r\x1b[K" if self.again and self.status else ""
        end = "" if self.again else "\n"
        self.status = status
        sys.stdout.write(begin + plain(text, keep=BYTES) + end)
        sys.stdout.flush()

    def end(self) -> None:
        if self.again and self.status:
            sys.stdout.write("\n")

    def stage(self, stage: str, text: str) -> None:
        self.say(_STATUS.get(stage, self.status))

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        pass

    def convert(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        complain("shifterimg", text)

    def detail(self, text: str) -> None:
        pass
