"""The list of messages in docs/troubleshooting.md, written from the places that raise them.

    python3 -m tests.kit.messages          write it into the page

A message is what `UdiError` or a class derived from it is called with; what is known only when it
happens stands in it as a word in capitals. Those that are put together elsewhere are not listed.
"""

import ast
import errno
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rootless_udi.base import errors, refusers
from rootless_udi.plan import foreign
from tests.kit.places import TREE

PAGE = TREE / "docs/troubleshooting.md"
BEGIN = "<!-- messages: written by python3 -m tests.kit.messages -->\n"
END = "<!-- end of messages -->\n"

TOPICS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Names of images",
        "",
        ("plan/reference", "plan/platforms", "store/resolve", "store/suggest"),
    ),
    (
        "Options, volumes and environment",
        "[semantics](semantics.md), [configuration](config.md)",
        ("plan/",),
    ),
    (
        "Starting a container",
        "[semantics](semantics.md)",
        ("launch/", "run", "host/", "idmap/", "base/", "bundle"),
    ),
    ("The image server and caches", "[the image server](fuse.md)", ("serve/", "fuse/")),
    ("Several ranks on a node", "[launchers](launchers.md)", ("node/",)),
    ("MPI", "[MPI](mpi.md)", ("mpi_inject/mpi/", "mpi_inject/libraries/")),
    ("GPUs and devices", "[GPUs](gpu.md)", ("mpi_inject/",)),
    ("Pulling: registries, credentials, archives", "", ("pull/", "remote/")),
    ("Pulling: layers, and the squashfs file", "", ("layers/",)),
    ("The store", "[the store](store.md)", ("store/",)),
    ("Configuration and modules", "[configuration](config.md)", ("config/",)),
    (
        "Captures of sites, and udi check",
        "[will it run there?](forecast.md)",
        ("forecast/", "commands/site", "commands/check"),
    ),
    ("The gateway", "[the image gateway](gateway.md)", ("gateway/", "commands/gateway")),
    ("ssh into a container", "[ssh](ssh.md)", ("ssh/", "commands/sshd")),
    ("Commands of udi", "", ("commands/",)),
    ("shifter and shifterimg", "[Shifter](shifter.md)", ("shifter/",)),
)
"""Heading, pages with more, and the modules whose messages stand below it: the first that fits."""


KINDS = (
    *("UdiError", "Untrusted", "Missing", "WrongContent", "GaveUp", "StaleError", "NotThere"),
    *("BadRequest", "TooLarge", "TooSlow", "Denied", "Forbidden", "NotFound", "TooMany", "Busy"),
    *("BadCredential", "Unreachable", "Unavailable", "NoToken", "NoLists", "NoId"),
)


class Message(NamedTuple):
    """`text` and `hint` as a user sees them, but for the words in capitals."""

    text: str
    hint: str


@cache
def topics() -> dict[str, list[Message]]:
    """Return heading -> the messages below it, in the order of their own words."""
    found: dict[str, set[Message]] = {heading: set() for heading, _, _ in TOPICS}
    for path in sorted(_files()):
        name = str(path.relative_to(TREE)).removeprefix("rootless_udi/").removesuffix(".py")
        heading = next((h for h, _, names in TOPICS if name.startswith(names)), "")
        for message in _messages(ast.parse(path.read_text())):
            found[heading].add(message)
    hinted = {message.text for ones in found.values() for message in ones if message.hint}
    return {
        heading: sorted((one for one in ones if one.hint or one.text not in hinted), key=_order)
        for heading, ones in found.items()
    }


def _files() -> Iterator[Path]:
    for folder in ("rootless_udi", "fuse", "idmap", "mpi_inject"):
        yield from (TREE / folder).rglob("*.py")


def _order(message: Message) -> tuple[str, Message]:
    return " ".join(word for word in message.text.split() if not word.isupper()), message


def _messages(tree: ast.Module) -> Iterator[Message]:
    names = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            text = _text(node.args[0], names) if node.args else ""
            given = [k.value for k in node.keywords if k.arg == "hint"] or node.args[1:2]
            hint = _text(given[0], names) if given else ""
            if re.search("[a-z]", _HOLE.sub("", text)):
                yield Message(_plain(text), _plain(hint) if _HOLE.sub("", hint).strip() else "")


_HOLE = re.compile("\0([^\0]*)\1")
"""A word in capitals, among those that are always the same."""


def _plain(text: str) -> str:
    """Return `text` on one line; of words in capitals without anything between them, the first."""
    one = re.sub("(\0[^\0]*\1)(?:\0[^\0]*\1)+", r"\1", text)
    return " ".join(_HOLE.sub(r"\1", one).split())


def _text(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """Return what `node` is as a text: its own words, and a hole for each that differs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, names) + _text(node.right, names)
    if isinstance(node, ast.FormattedValue):
        inner = node.value
        return _text(inner, names) if isinstance(inner, ast.Constant) else _text(inner, {})
    if isinstance(node, ast.Name) and node.id in names:
        return _text(names[node.id], {})
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "counted":
        many = node.args[2:] or [ast.BinOp(node.args[1], ast.Add(), ast.Constant("s"))]
        return f"{_text(node.args[0], {})} {_text(many[0], names)}"
    return f"\0{_word(node)}\1"


_WORDS = {"error": "WHY", "why": "WHY", "strerror": "WHY", "reason": "WHY", "disk_hint": ""}


def _word(node: ast.expr) -> str:
    """Return the word in capitals for an expression: the name in it that says most."""
    while True:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _WORDS:
            return _WORDS[getattr(node.func, "id", "")]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "len":
            return "N"
        if isinstance(node, ast.Call):
            node = node.args[-1] if node.args else node.func
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Attribute):
            name = node.attr
            break
        elif isinstance(node, ast.Name):
            name = node.id
            break
        else:
            return "..."
    return _WORDS.get(name, name.strip("_").replace("_", "-").upper())


def _escaped(text: str) -> str:
    """Return `text` for a line of Markdown: what is in backquotes stays, all else is literal.

    Pages are named as they lie beside this one.
    """
    parts = text.replace("docs/", "").split("`")
    for at in range(0, len(parts), 2):
        for mark in "\\*_[]<>|#":
            parts[at] = parts[at].replace(mark, "\\" + mark)
    return "`".join(parts)


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def generated() -> str:
    """Return the part of the page between BEGIN and END."""
    lines = []
    more = {heading: pages for heading, pages, _ in TOPICS}
    for heading, found in topics().items():
        if not found:
            continue
        lines += [f"### {heading}", ""]
        lines += [f"More: {more[heading]}.", ""] if more[heading] else []
        for message in found:
            lines.append(f"- {_code(message.text)}" + ("<br>" if message.hint else ""))
            lines += [f"  {_escaped(message.hint)}"] if message.hint else []
        lines.append("")
    lines += [*_kernel(), *_foreign()]
    return "\n".join(lines)


def _kernel() -> Iterator[str]:
    yield from ("### What the kernel refuses", "")
    yield "`udi-run: CALL: WHY` names a system call; these have a hint:"
    yield from ("", "| call | answer | hint |", "|---|---|---|")
    for (call, number), hint in errors._REMEDIES.items():
        yield f"| {call} | {errno.errorcode[number]} | {_escaped(hint)} |"
    yield from ("", "Where one of these settings refuses it, the hint names that:", "")
    yield from ("| setting | means | remedy |", "|---|---|---|")
    for one in refusers.SETTINGS:
        yield f"| `{one.name}={one.bad}` | {_escaped(one.means)} | {_escaped(one.remedy)} |"
    yield from (
        "",
        "So it does where a security module is in force: `SELinux is in force: the domain",
    )
    yield "DOMAIN seems to lack a rule`, `AppArmor is in force: the profile NAME seems to lack a"
    yield "rule`, with the rule where it is known ([for the site](site.md))."
    yield from ("", "While a file is written:", "", "| answer | hint |", "|---|---|")
    for number, hint in errors._FILES.items():
        yield f"| {errno.errorcode[number]} | {_escaped(hint)} |"
    yield ""


def _foreign() -> Iterator[str]:
    yield from ("### Words of other tools", "")
    yield "`option X is another tool's word` and `X is a command of another program`:"
    yield from ("", "| typed | what to do |", "|---|---|")
    for row in foreign.OPTIONS:
        if row.line and not row.fine:
            yield f"| {' '.join(map(_code, row.names))} | {_escaped(row.line)} |"
    for word, line in foreign.COMMANDS.items():
        if line:
            yield f"| {_code(word)} | {_escaped(line)} |"
    yield ""


def page() -> str:
    """Return the page as it should be: what is written by hand as it is, and the list."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + generated() + END + after


if __name__ == "__main__":
    PAGE.write_text(page())
