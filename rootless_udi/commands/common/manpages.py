"""Manual pages in man(7), from the same tables as --help and completion.

`python3 -m rootless_udi.commands.common.manpages DIR` writes udi-run.1, udi.1, shifter.1 and
shifterimg.1.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from rootless_udi.commands.common import tree
from rootless_udi.commands.common.tree import COMMAND, Command, Opt, walk
from rootless_udi.commands.udi import parser
from rootless_udi.version import VERSION

_ABOUT = {
    "udi-run": (
        "runs a command in a container image, as the calling user and without any privilege. The "
        "image is one read-only file that the node mounts; file systems, devices, environment and "
        "the working directory are the host's, as the site's configuration, the options and the "
        "modules say. udi-run becomes the command: signals, exit status and terminal are its own. "
        "The ranks of a job step share one container on each node. Options end at the first word "
        "that is none; what follows the image is the command."
    ),
    "udi": (
        "fetches images for udi-run, lists, inspects and removes them, shows the configuration, "
        "and checks what the machine lets an ordinary user do."
    ),
    "shifter": (
        "reads the command line and the variables of Shifter's shifter command and does the same "
        "with udi-run. Options may be abbreviated; they end at the first word that is none."
    ),
    "shifterimg": "does what Shifter's shifterimg does, with or without an image gateway.",
}
_STATUS = {
    "udi-run": (
        ("125", "udi-run itself failed; a message says why and what to do."),
        ("126", "The command was found and can't be executed."),
        ("127", "The command was not found."),
        ("other", "The command's own."),
    ),
    "shifter": (
        ("1", "shifter itself failed."),
        ("127", "The command can't be executed."),
        ("other", "The command's own."),
    ),
}
_STATUS["udi"] = (("0", "Done."), ("1", "A check found something."), ("125", "It failed."))
_STATUS["shifterimg"] = (("0", "Done."), ("1", "It failed."))
_FILES = (
    ("/etc/rootless_udi/udi.toml, conf.d/*.toml", "The site's configuration."),
    ("/etc/rootless_udi/modules.d/*.toml", "The site's modules."),
    ("~/.config/rootless_udi/config.toml, modules.d/*.toml", "The user's."),
    ("~/.local/share/rootless_udi", "The user's images."),
)
_VARIABLES = (
    ("UDI_IMAGE, UDI_VOLUME, UDI_MODULE, UDI_MPI, UDI_GPU, UDI_FUSE, UDI_LAYER, UDI_SHARE, "
     "UDI_KEEP",
     "Stand for udi-run's options that are not given."),
    ("UDI_STORE", "The user's image store."),
    ("UDI_CONFIG", "One more configuration file, read last."),
    ("UDI_SITE_DIR", "The site's directory, in place of /etc/rootless_udi."),
)  # fmt: skip


def page(command: Command) -> str:
    """Return the page of one program."""
    name = command.name
    out = [
        f'.TH {_plain(name.upper())} 1 "" "rootless_udi {VERSION}" "User Commands"',
        ".SH NAME",
        f"{_plain(name)} \\- {_text(command.text.rstrip('.').partition(':')[0].lower())}",
        ".SH SYNOPSIS",
        *_synopsis(command),
        ".SH DESCRIPTION",
        f".B {_plain(name)}",
        _text(_ABOUT[name]),
    ]
    if command.options:
        out += [".SH OPTIONS", *_options(command.options)]
    if command.commands:
        out.append(".SH COMMANDS")
        for path, one in walk(command):
            own = any(option.long != "--help" for option in one.options)
            if one is not command and (own or not one.commands):
                out += _command(path, one)
    out += [".SH EXIT STATUS", *_list(_STATUS[name])]
    if not name.startswith("shifter"):
        out += [".SH ENVIRONMENT", *_list(_VARIABLES), ".SH FILES", *_list(_FILES)]
    others = [f"{one}(1)" for one in _ABOUT if one != name]
    out += [".SH SEE ALSO", _text(", ".join(others))]
    return "\n".join(out) + "\n"


def _synopsis(command: Command, path: tuple[str, ...] = ()) -> list[str]:
    words = [f"\\fB{_plain(' '.join(path or (command.name,)))}\\fR"]
    if command.options:
        words.append("[\\fIOPTION\\fR]...")
    if command.commands and not path:
        words.append("\\fICOMMAND\\fR [\\fIARGUMENT\\fR]...")
    for operand in command.operands:
        word = f"\\fI{_plain(operand.name)}\\fR"
        word += "..." if operand.many else ""
        if operand.kind == COMMAND:
            word += " [\\fIARGUMENT\\fR]..."
        words.append(f"[{word}]" if operand.optional else word)
    return [" ".join(words)]


def _command(path: tuple[str, ...], command: Command) -> list[str]:
    options = tuple(option for option in command.options if "--help" not in option.names)
    return [
        ".TP",
        *_synopsis(command.replace(options=options, commands=()), path),
        _text(_sentence(command.text)),
        *([".RS", *_options(options), ".RE"] if options else []),
    ]


def _options(options: Iterable[Opt]) -> list[str]:
    out = []
    for option in options:
        names = ", ".join(f"\\fB{_plain(name)}\\fR" for name in option.names)
        value = f"\\fI{_plain(option.meta)}\\fR"
        names += {"none": "", "value": f"={value}", "optional": f"[={value}]"}[option.takes]
        text = _sentence(option.text)
        if option.choices:
            text += f" One of {', '.join(option.choices)}."
        out += [".TP", names, _text(text or "See the text above.")]
    return out


def _list(rows: Iterable[tuple[str, str]]) -> list[str]:
    out = []
    for head, text in rows:
        out += [".TP", f"\\fB{_plain(head)}\\fR", _text(text)]
    return out


def _sentence(text: str) -> str:
    text = text if text.endswith("...") else text.rstrip(",.") + "."
    return f"{text[:1].upper()}{text[1:]}" if text != "." else ""


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti")


def _text(text: str) -> str:
    """Return running text, escaped so that no line of it is a request to roff."""
    text = _plain(text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {f"{command.name}.1": page(command) for command in tree.all_commands(parser())}


def main() -> None:
    """Write the pages into the directory that is the only argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
