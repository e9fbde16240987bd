"""The `shifterimg` command: Shifter's modes and its lines of output, done by our pull and stores.

There is no image gateway: the calling user himself pulls, into a store of his own.
"""

import getpass
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from rootless_udi.base import calls, program
from rootless_udi.base.errors import BYTES, UdiError, plain
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import complain, guarded, page, say, streams
from rootless_udi.base.records import Record
from rootless_udi.config import load
from rootless_udi.plan.reference import DOCKER_HUB, Reference, parse, platform_of
from rootless_udi.shifter import options as shifter
from rootless_udi.store import resolve

MODES = ("images", "lookup", "pull", "pullnb", "login", "expire", "autoexpire")
USAGE = """\
usage: shifterimg [-h|-v] MODE [IMAGE]

  images            list the images of the stores
  lookup IMAGE      print the id of an image
  pull IMAGE        pull an image and wait for it
  pullnb IMAGE      pull an image in the background
  login [REGISTRY]  keep a name and a password for a registry
  expire IMAGE      remove an image
  autoexpire        remove what broken pulls left

IMAGE is [TYPE:]NAME[:TAG] as for shifter. See also: udi --help.
"""
_STATUS = {
    "resolve": "INIT",
    "wait": "PENDING",
    "fetch": "PULLING",
    "convert": "CONVERSION",
    "store": "TRANSFER",
    "present": "READY",
    "done": "READY",
}
"""Stage of a pull -> Shifter's word for it. Its other words are about a gateway."""


class ImageCommand(Record):
    """A command line as read."""

    mode: str = ""
    operand: str = ""
    verbose: bool = False
    help: bool = False


def read(argv: Sequence[str]) -> ImageCommand:
    """Read a command line.

    Raises UdiError for what Shifter refuses, and for its options of access to private images.
    """
    mode, operands, verbose = "", [], False
    for word in argv:
        name = word.partition("=")[0]
        if word in ("-h", "--help"):
            return ImageCommand(help=True)
        if word in ("-v", "--verbose"):
            verbose = True
        elif name in ("--user", "--group"):
            raise UdiError(
                f"option {name}: images are files of yours, there are no access lists",
                "give others access to the store's directory: setfacl(1), or chmod and chgrp",
            )
        elif word.startswith("-"):
            raise UdiError(f"unknown option {name}", "see shifterimg --help")
        elif not mode:
            mode = word
        else:
            operands.append(word)
    if mode not in MODES:
        what = f"unknown mode {mode!r}" if mode else "no mode is given"
        raise UdiError(what, f"modes are: {', '.join(MODES)}")
    wanted = mode in ("lookup", "pull", "pullnb", "expire")
    if wanted and not operands:
        raise UdiError(f"{mode}: no image is given", f"shifterimg {mode} NAME[:TAG]")
    if len(operands) > (1 if wanted or mode == "login" else 0):
        raise UdiError(f"{mode}: more than it takes: {operands[-1]!r}", "see shifterimg --help")
    return ImageCommand(mode, operands[0] if operands else "", verbose)


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

    Is a `rootless_udi.pull.pipeline.Progress`.
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


class _Command:
    """One run of shifterimg: a method for each mode."""

    def __init__(self, given: ImageCommand, environ: Mapping[str, str]) -> None:
        self.given, self.environ = given, environ
        self.site = load.load(environ)
        self.stores = resolve.all_stores(self.site, environ)

    def reference(self) -> Reference:
        found = parse(shifter.reference(self.given.operand), self.site.registry)
        if found.kind in ("squashfs", "directory", "path"):
            raise UdiError(f"{self.given.operand} is a path, not an image", "shifter runs it as is")
        return found

    def images(self) -> int:
        from rootless_udi.store.store import Store

        system = self.site.name or socket.gethostname().partition(".")[0]
        for root in self.stores:
            for entry in Store(root).images():
                for _, name in entry.names:
                    name = name.partition("#")[0]
                    tag = tag_of(parse(name, self.site.registry))
                    say(row(system, "READY", entry.image.digest, entry.pulled, tag))
        return 0

    def lookup(self) -> int:
        found = resolve.lookup(self.stores, self.reference())
        if found is None:
            raise UdiError(
                f"{self.given.operand} is not among the images",
                f"shifterimg pull {self.given.operand}",
            )
        say(found.digest.partition(":")[2])
        return 0

    def pull(self) -> int:
        from rootless_udi.pull import pipeline
        from rootless_udi.store.store import Store

        reference = self.reference()
        options = pipeline.Options(
            compression=f"{self.site.compression}:{self.site.compression_level}",
            insecure=reference.registry in self.site.insecure,
            mirrors=dict(self.site.mirrors),
        )
        line = Line(tag_of(reference))
        try:
            pipeline.pull_sync(reference, Store(self.stores[0]), options, line)
        except UdiError:
            line.say("FAILURE")
            line.end()
            raise
        line.say("READY")
        line.end()
        return 0

    def pullnb(self) -> int:
        """Start the pull in a session of its own (setsid(2)) and return at once."""
        reference = self.reference()
        words = program.argv(
            "from rootless_udi.shifter import shifterimg; shifterimg.main()",
            "pull",
            self.given.operand,
        )
        null = os.open("/dev/null", os.O_RDWR)
        files = [(null, fd) for fd in (0, 1, 2)]
        calls.spawn(words[0], words, dict(self.environ), files, setsid=True)
        os.close(null)
        say(pull_line(time.time(), tag_of(reference), "INIT"))
        return 0

    def login(self) -> int:
        """Ask for name and password; without a terminal, read each as a line of standard input."""
        from rootless_udi.pull import login

        registry = login.registry_name(self.given.operand or self.site.registry)
        if sys.stdin.isatty():
            user = input(f"{registry} username: ")
            password = getpass.getpass(f"{registry} password: ")
        else:
            user, password = input(), input()
        insecure = registry in self.site.insecure
        login.login(registry, user, password, self.environ, insecure)
        return 0

    def expire(self) -> int:
        from rootless_udi.store.store import Store

        platform = platform_of(os.uname().machine)
        names, _ = Store(self.stores[0]).remove(self.reference(), platform)
        for name in names:
            say(f"{tag_of(parse(name, self.site.registry))} EXPIRED")
        return 0

    def autoexpire(self) -> int:
        from rootless_udi.store.store import Store

        for path in Store(self.stores[0]).sweep():
            say(path)
        return 0


def main(argv: list[str] | None = None) -> NoReturn:
    """Run shifterimg on `argv` (without the program's name); never returns."""
    streams()
    words = sys.argv[1:] if argv is None else argv
    sys.exit(shifter.status(guarded("shifterimg", lambda: _run(words))))


def _run(argv: list[str]) -> int:
    given = read(argv)
    if given.help:
        page(USAGE)
        return 0
    refuse_privilege("shifterimg")
    try:
        command: Callable[[], int] = getattr(_Command(given, dict(os.environ)), given.mode)
        return command()
    except EOFError:
        raise UdiError(f"{given.mode}: no answer") from None


if __name__ == "__main__":
    main()
