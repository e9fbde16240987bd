"""The check "command": is it in the image, and can the kernel start it?"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.forecast import elfhead, imagetree
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.imagetree import ImageTree
from rootless_udi.forecast.needs import ImageEntry, Unreadable
from rootless_udi.forecast.site import Capture
from rootless_udi.plan.environment import DEFAULT_PATH

_RUNS_32 = {("x86_64", "i386"), ("aarch64", "arm")}


class CommandFile:
    """What was found of the command in the image: `word` as it was given, `entry` the real file.

    `why` says why it can't be started, "" where it can; `elf` is its head, that of the interpreter
    for a script.
    """

    def __init__(self, word: str) -> None:
        self.word = word
        self.entry: ImageEntry | None = None
        self.elf: elfhead.ElfHead | None = None
        self.why = ""
        self.remedy = ""
        self.unsure = ""


def argv(facts: Mapping[str, Any], asked: Asked) -> tuple[str, ...]:
    """Return the whole command, with ENTRYPOINT where --entrypoint asks for it; () for none."""
    request = asked.request
    if request.entrypoint:
        return (request.entrypoint, *request.command)
    if request.entrypoint is None:
        return request.command
    entrypoint = tuple(str(word) for word in facts.get("entrypoint") or ())
    return (*entrypoint, *(request.command or tuple(str(w) for w in facts.get("cmd") or ())))


def found(facts: Mapping[str, Any], asked: Asked) -> CommandFile | None:
    """Return the command's file, looked for once; None where there is no command."""
    if "command" not in asked.memo:
        words = argv(facts, asked)
        asked.memo["command"] = _look(words[0], facts, asked) if words else None
    result: CommandFile | None = asked.memo["command"]
    return result


def look(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Yield whether the command is there and can be started on the site's machine."""
    one = found(facts, asked)
    if one is None:
        if asked.request.entrypoint == "" and not facts.get("entrypoint"):
            what = "--entrypoint: the image has no ENTRYPOINT"
            yield CheckFinding("command", FAILS, what, remedy="give one: --entrypoint=COMMAND")
            return
        what = "no command was given: what it is, executes, reads and writes is not looked at"
        remedy = f"udi check {asked.image} ... -- COMMAND [ARG...]"
        yield CheckFinding("command", UNLOOKED, what, remedy=remedy)
        return
    place = one.entry.path if one.entry else one.word
    image = Evidence(place, one.why or "is there and executable")
    if one.unsure:
        yield CheckFinding("command", UNKNOWN, one.unsure, Evidence(place, ""), remedy=one.remedy)
    elif one.why:
        what = f"{one.word}: {one.why}"
        yield CheckFinding("command", FAILS, what, image, remedy=one.remedy)
    elif one.elf and site.machine and not _starts(one.elf.machine, site.machine):
        yield CheckFinding(
            "command",
            FAILS,
            f"{one.word} is a program for {one.elf.machine}",
            Evidence(place, one.elf.machine),
            Evidence("system.machine", site.machine),
            "use an image for the site's machine",
        )
    else:
        yield CheckFinding("command", RUNS, f"{one.word} is in the image", image)


def _starts(program: str, machine: str) -> bool:
    return program == machine or (machine, program) in _RUNS_32


def _look(word: str, facts: Mapping[str, Any], asked: Asked) -> CommandFile:
    one = CommandFile(word)
    try:
        with imagetree.opened(asked.path, asked.offset) as tree:
            one.entry = _searched(tree, word, facts, asked)
            if one.entry is None:
                _missing(one, asked)
            else:
                _startable(tree, one, one.entry, 0)
    except Unreadable as error:
        one.unsure = f"the image can't be read as far as {word}: {error}"
        one.remedy = "pull or copy it again"
    return one


def _missing(one: CommandFile, asked: Asked) -> None:
    if one.word.startswith((".", "/")) and (asked.request.volume or not one.word.startswith("/")):
        # It may lie in the folder of the caller, in a volume or a mount of the site.
        one.unsure = f"{one.word} is not in the image; whether a mount brings it is not known"
        one.remedy = "name a program of the image"
        return
    one.why = "there is no such program in the image"
    one.remedy = "name one by its path, or install it in the image"


def _searched(
    tree: ImageTree, word: str, facts: Mapping[str, Any], asked: Asked
) -> ImageEntry | None:
    """Return the file that a word names in the image, by PATH as execvp(3) does."""
    if "/" in word:
        return imagetree.find(tree, word) if word.startswith("/") else None
    env = dict(
        str(pair).partition("=")[::2] for pair in (*(facts.get("env") or ()), *asked.request.env)
    )
    for folder in (env.get("PATH") or DEFAULT_PATH).split(":"):
        entry = imagetree.find(tree, f"{folder}/{word}") if folder.startswith("/") else None
        if entry is not None and entry.kind == "file" and entry.mode & 0o111:
            return entry
    return None


def _startable(tree: ImageTree, one: CommandFile, entry: ImageEntry, depth: int) -> None:
    """Note why execve(2) would refuse a file: its mode, its interpreter, its kind."""
    if entry.kind != "file":
        one.why, one.remedy = f"{entry.path} is a {entry.kind}", "name a program"
        return
    if not entry.mode & 0o111:
        one.why, one.remedy = f"{entry.path} is not executable", "chmod +x it in the image"
        return
    content = tree.content(entry.path)
    if content is None:
        one.unsure = f"{entry.path} can't be read"
        return
    if content.head[:2] == b"#!":
        words = content.head[2:256].split(b"\n")[0].split()
        name = words[0].decode("utf-8", "replace") if words else ""
        below = imagetree.find(tree, name) if name.startswith("/") else None
        if below is None or depth >= 4:
            one.why = f"the interpreter {name} of {entry.path} is not in the image"
            one.remedy = "install it, or correct the first line of the script"
        else:
            _startable(tree, one, below, depth + 1)
        return
    one.elf = elfhead.read(content)
    if one.elf is None:
        one.why = f"{entry.path} is neither an ELF program nor a script with #!"
        one.remedy = "give a program, or `sh` and the script"
    elif one.elf.interp and imagetree.find(tree, one.elf.interp) is None:
        one.why = f"its dynamic linker {one.elf.interp} is not in the image"
        one.remedy = "install the C library for which it was linked (glibc or musl)"
