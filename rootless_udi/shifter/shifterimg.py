"""The `shifterimg` command: Shifter's modes and its lines of output, done by our pull and stores.

Where the configuration names an image gateway (`gateway.address`) that is asked, else the calling
user himself pulls, into a store of his own.
"""

import getpass
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from rootless_udi.base import calls, program
from rootless_udi.base.errors import UdiError
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import guarded, page, say, streams
from rootless_udi.base.records import Record
from rootless_udi.config import load
from rootless_udi.plan.reference import Reference, parse, platform_of
from rootless_udi.shifter import accounts
from rootless_udi.shifter import options as shifter
from rootless_udi.shifter.lines import Line, pull_line, row, tag_of
from rootless_udi.store import resolve

MODES = ("images", "lookup", "pull", "pullnb", "login", "expire", "autoexpire")
USAGE = """\
usage: shifterimg [-h|-v] [--user=A,B] [--group=A,B] MODE [IMAGE]

  images            list the images of the stores
  lookup IMAGE      print the id of an image
  pull IMAGE        pull an image and wait for it
  pullnb IMAGE      pull an image in the background
  login [REGISTRY]  keep a name and a password for a registry
  expire IMAGE      remove an image
  autoexpire        remove what broken pulls left

  --user=A,B        with pull and a gateway: who else may read the image
  --group=A,B       the same of groups

IMAGE is [TYPE:]NAME[:TAG] as for shifter. See also: udi --help.
"""


class ImageCommand(Record):
    """A command line as read."""

    mode: str = ""
    operand: str = ""
    verbose: bool = False
    help: bool = False
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


def read(argv: Sequence[str]) -> ImageCommand:
    """Read a command line. Raises UdiError for what Shifter refuses."""
    mode, operands, verbose = "", [], False
    people: dict[str, tuple[str, ...]] = {"--user": (), "--group": ()}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            return ImageCommand(help=True)
        if word in ("-v", "--verbose"):
            verbose = True
        elif name in people:
            value = value if equals else next(words, "")
            people[name] += tuple(one for one in value.split(",") if one)
            if not people[name]:
                raise UdiError(f"option {name}: nobody is named", f"{name}=NAME,NAME")
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
    image = operands[0] if operands else ""
    return ImageCommand(mode, image, verbose, False, people["--user"], people["--group"])


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
        from rootless_udi.pull.claims import believed
        from rootless_udi.store.store import Store

        reference = self.reference()
        options = pipeline.Options(
            compression=f"{self.site.compression}:{self.site.compression_level}",
            insecure=reference.registry in self.site.insecure,
            mirrors=dict(self.site.mirrors),
            believed=believed(self.site),
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


class _OverGateway(_Command):
    """The modes that the site's gateway does; login is the user's own affair all the same."""

    def __init__(self, given: ImageCommand, environ: Mapping[str, str]) -> None:
        from rootless_udi.pull.gateway import GatewayClient

        super().__init__(given, environ)
        self.system = self.site.name or socket.gethostname().partition(".")[0]
        self.client = GatewayClient(self.site.gateway, self.system, self.site.gateway_munge)

    def people(self) -> tuple[list[int], list[int]]:
        """Return the ids of --user and --group. Raises UdiError for one that is not known here."""
        return accounts.users(self.given.users), accounts.groups(self.given.groups)

    def images(self) -> int:
        rows = []
        for one in self.client.images():
            tags = one.get("tag", [])
            for tag in tags if isinstance(tags, list) else [tags]:
                digest, when = f":{one.get('id', '')}", one.get("last_pull")
                pulled = float(when) if isinstance(when, int | float) else 0.0
                status = str(one.get("status", ""))
                rows.append((str(tag), row(self.system, status, digest, pulled, str(tag))))
        for _, line in sorted(rows):
            say(line)
        return 0

    def lookup(self) -> int:
        say(str(self.client.lookup(self.reference()).get("id", "")))
        return 0

    def pull(self) -> int:
        reference = self.reference()
        users, groups = self.people()
        line = Line(tag_of(reference))
        try:
            self.client.pull(reference, lambda one: line.say(str(one.get("status"))), users, groups)
        finally:
            line.end()
        return 0

    def pullnb(self) -> int:
        reference = self.reference()
        found = self.client.ask_to_pull(reference, *self.people())
        say(pull_line(time.time(), tag_of(reference), str(found.get("status"))))
        return 0

    def expire(self) -> int:
        reference = self.reference()
        self.client.expire(reference)
        say(f"{tag_of(reference)} EXPIRED")
        return 0

    def autoexpire(self) -> int:
        self.client.autoexpire()
        return 0


def _chosen(given: ImageCommand, environ: Mapping[str, str]) -> _Command:
    """Return who does a mode. Raises UdiError for access lists without a gateway."""
    if load.load(environ).gateway:
        return _OverGateway(given, environ)
    if given.users or given.groups:
        name = "--user" if given.users else "--group"
        raise UdiError(
            f"option {name}: images are files of yours, there are no access lists",
            "give others access to the store's directory: setfacl(1), or chmod and chgrp",
        )
    return _Command(given, environ)


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
        command: Callable[[], int] = getattr(_chosen(given, dict(os.environ)), given.mode)
        return command()
    except EOFError:
        raise UdiError(f"{given.mode}: no answer") from None


if __name__ == "__main__":
    main()
