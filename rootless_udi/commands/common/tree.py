"""All programs with their commands, options and operands as data, taken from their parsers.

Completion scripts and manual pages are made of it, so that nothing has to be written twice.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.commands import exec_
from rootless_udi.plan import options
from rootless_udi.shifter import options as shifter
from rootless_udi.shifter import shifterimg

IMAGE, FILE, DIRECTORY, MODULES, COMMAND = "image", "file", "directory", "modules", "command"
CONTAINER = "container"
"""Kinds of words: what completion offers for them. "" is a word for which nothing is known."""
_KINDS = {
    "IMAGE": IMAGE,
    "FILE": FILE,
    "DIR": DIRECTORY,
    "A,B|none": MODULES,
    "A,B": MODULES,
    "SRC[:DST[:FLAGS]]": FILE,
    "FROM:TO[:FLAG...][;...]": FILE,
    "image": IMAGE,
    "container": CONTAINER,
    "file": FILE,
    "dir": DIRECTORY,
}


class Opt(Record):
    """An option. `takes` is "none", "value" or "optional" (only behind "="); `text` is its help."""

    names: tuple[str, ...]
    takes: str
    meta: str
    text: str
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of its value."""
        return _KINDS.get(self.meta, "")

    @property
    def long(self) -> str:
        """Its long spelling."""
        return max(self.names, key=len)


class Operand(Record):
    """A word that is no option: its name, kind, and whether it may be missing or repeated."""

    name: str
    kind: str
    optional: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()


class Command(Record):
    """A program, or a command of a program, which has options of its own."""

    name: str
    text: str
    options: tuple[Opt, ...] = ()
    operands: tuple[Operand, ...] = ()
    commands: "tuple[Command, ...]" = ()


def _udi_run() -> Command:
    """Return udi-run, from its table."""
    found = []
    for option in options.OPTIONS:
        short = (f"-{option.short}",) if option.short else ()
        names = (*short, f"--{option.name}")
        takes = {options.FLAG: "none", options.OPTIONAL: "optional"}.get(option.kind, "value")
        choices = tuple(word for word in option.choices if word)
        found.append(Opt(names, takes, option.meta, option.text, choices))
    operands = (Operand("IMAGE", IMAGE), Operand("COMMAND", COMMAND, True))
    return Command("udi-run", "run a command in an image", tuple(found), operands)


def udi(parser: argparse.ArgumentParser) -> Command:
    """Return udi, from its parser; its commands run, shell and exec have options of udi-run."""
    found, run = _of_argparse("udi", parser), _udi_run()
    own = tuple(one for one in run.options if one.long[2:] in exec_.OWN)
    inside = (Operand("CONTAINER", CONTAINER), run.operands[1])
    words = {
        "run": (run.options, run.operands),
        "shell": (run.options, run.operands[:1]),
        "exec": (own, inside),
    }
    commands = []
    for one in found.commands:
        its_options, operands = words.get(one.name, (one.options, one.operands))
        if one.name == "check":
            its_options, operands = _both(one, run), run.operands
        commands.append(one.replace(options=its_options, operands=operands))
    return found.replace(commands=tuple(commands))


def _both(one: Command, run: Command) -> tuple[Opt, ...]:
    """Return a command's own options, then udi-run's that have other names."""
    own = tuple(opt for opt in one.options if "--help" not in opt.names)
    names = {name for opt in own for name in opt.names}
    return (*own, *(opt for opt in run.options if not names & {*opt.names}))


def _shifter() -> Command:
    """Return shifter, from its table of options and the text of --help."""
    texts = _usage(shifter.USAGE)
    found = []
    for long, (letter, takes) in shifter.LONG.items():
        names = (f"--{long}",) if len(letter) > 1 else (f"-{letter}", f"--{long}")
        meta, text = texts.get(long, ("", ""))
        if long == "entry":
            meta, text = texts["entrypoint"]
        kind = {shifter.NONE: "none", shifter.OPTIONAL: "optional"}.get(takes, "value")
        meta = "IMAGE" if long == "image" else meta
        found.append(Opt(names, kind, meta, text))
    operands = (Operand("COMMAND", COMMAND, True),)
    return Command("shifter", "Shifter's command line for udi-run", tuple(found), operands)


def _shifterimg() -> Command:
    """Return shifterimg, its modes as commands."""
    modes = []
    for line in shifterimg.USAGE.splitlines():
        name = line[2:].partition(" ")[0]
        if line.startswith("  ") and name in shifterimg.MODES:
            rest, _, text = line[2 + len(name) :].strip().rpartition("  ")
            image = "IMAGE" in rest
            operands = (Operand("IMAGE", IMAGE),) if image else ()
            modes.append(Command(name, text.strip() or rest, (), operands))
    flags = (
        Opt(("-h", "--help"), "none", "", "print the modes"),
        Opt(("-v", "--verbose"), "none", "", "say more"),
        Opt(("--user",), "value", "A,B", "who else may read the image, by the gateway"),
        Opt(("--group",), "value", "A,B", "the same of groups"),
    )
    return Command("shifterimg", "Shifter's image commands", flags, commands=tuple(modes))


def all_commands(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    """Return every program; `parser` is that of udi."""
    return (_udi_run(), udi(parser), _shifter(), _shifterimg())


def _usage(text: str) -> dict[str, tuple[str, str]]:
    """Return (meta, text) of each long option of a usage text."""
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for line in text.splitlines():
        before, dashes, after = line.partition("--")
        if line.startswith("  ") and dashes and len(before) <= 6:
            head, _, words = after.partition("  ")
            name = head.partition("=")[0].partition("[")[0]
            meta = head[len(name) :].strip("[]=") if "=" in head else ""
            meta = f"{meta}]" if meta.count("[") > meta.count("]") else meta
            found[name] = (meta, words.strip())
            last = name
        elif last and line.startswith(" " * 20) and not found[last][1]:
            found[last] = (found[last][0], line.strip())
    return found


def _of_argparse(name: str, parser: argparse.ArgumentParser) -> Command:
    found: list[Opt] = []
    operands: list[Operand] = []
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {one.dest: one.help for one in action._choices_actions}
            for word, sub in action.choices.items():
                one = _of_argparse(word, sub)
                commands.append(one.replace(text=texts.get(word) or one.text))
        elif action.option_strings:
            found.append(_option(action))
        else:
            operands.append(_operand(action))
    return Command(name, parser.description or "", tuple(found), tuple(operands), tuple(commands))


def _option(action: argparse.Action) -> Opt:
    names = tuple(sorted(action.option_strings, key=len))
    takes = "none" if action.nargs == 0 else "value"
    meta = "" if takes == "none" else str(action.metavar or action.dest.upper())
    return Opt(names, takes, meta, _text(action), _choices(action))


def _operand(action: argparse.Action) -> Operand:
    name = str(action.metavar or action.dest)
    many, optional = action.nargs in ("+", "*"), action.nargs in ("?", "*")
    return Operand(name.upper(), _KINDS.get(name.lower(), ""), optional, many, _choices(action))


def _choices(action: Any) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or () if choice)


def _text(action: argparse.Action) -> str:
    text = action.help or ""
    return "print this" if text == "show this help message and exit" else text


LIST_IMAGES = "udi images --names 2>/dev/null"
"""Shell: print the names of the images, one a line."""
LIST_CONTAINERS = "udi ps --names 2>/dev/null"
"""Shell: print the names of the containers, one a line."""
LIST_MODULES = (
    "udi config show 2>/dev/null | sed -n 's/^module: \\([^ ]*\\).*/\\1/p'; echo mpi; echo gpu"
)
"""Shell: print the names of the modules."""


def walk(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield `command` and all below it, each with its path: ("udi", "config", "show")."""
    path = (*path, command.name)
    yield path, command
    for one in command.commands:
        yield from walk(one, path)


def stops(command: Command) -> bool:
    """Tell whether options end at the first operand: what follows is the command to run."""
    return any(operand.kind == COMMAND for operand in command.operands)


def quoted(text: str) -> str:
    """Return `text` in quotes that bash, zsh and fish understand."""
    return "'" + text.replace("'", "'\\''") + "'"
