"""The command blocks of the documents: which there are, and what came of running a page's.

A fenced block says by its info string what it is. The first word is the language:

- `console`: lines that begin with "$ " are commands, continued by "> " lines; what stands below
  one is its output, in which "..." stands for any text of a line and a line of "..." for any
  lines. No output: anything.
- `sh`: a command on each line, continued by a backslash, or to the end of a here-document.
- any other: not run.

With title="NAME" a block of any language is not run but written to the file NAME, where its page
is run. Words after the language: `not-run="REASON"`, `slow="REASON"` (run with -m slow alone),
`fails` (its last command's status is not 0).

In a table, each code span of a column whose head has the word rootless_udi is a command, unless
it begins with "-", or a comment `<!-- not run: REASON -->` or `<!-- slow: REASON -->` stands in
its row.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.kit.places import TREE

_FENCE = re.compile(r"^(\s*)```(\S*)(.*)$")
_WORD = re.compile(r'([a-z-]+)(?:="([^"]*)")?')
_SPAN = re.compile(r"`([^`]+)`")
_HERE_DOCUMENT = re.compile(r"<<-?\s*['\"]?(\w+)")
WORDS = {"not-run", "slow", "fails", "title"}
SHELLS = {"console", "sh"}
HEAD = "rootless_udi"


class Block(NamedTuple):
    """A fenced block, or a table's cell: `info` are the words behind its language."""

    page: str
    line: int
    language: str
    info: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """`text` for the shell, in `block`; `output` is what must come (None: anything)."""

    block: Block
    text: str
    output: list[str] | None
    fails: bool


def pages() -> list[str]:
    """Return the documents, by their path in the tree."""
    kinds = ("*.md", "docs/*.md", "contrib/README.md", "contrib/*/README.md", "bench/README.md")
    found = [path for kind in kinds for path in TREE.glob(kind)]
    return sorted(str(path.relative_to(TREE)) for path in found)


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of `page` (a path in the tree) and its tables' commands."""
    found: list[Block] = []
    lines = (TREE / page).read_text().splitlines()
    rows: list[int] = []
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        if opening := _FENCE.match(line):
            indent, language, words = opening.groups()
            inner = []
            for _, text in numbered:
                if text.strip() == "```":
                    break
                inner.append(text.removeprefix(indent))
            info = dict(_WORD.findall(words))
            found.append(Block(page, number, language, info, "\n".join(inner)))
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if any(HEAD in cell for cell in cells) and set(lines[number]) <= set("|-: "):
                rows = [at for at, cell in enumerate(cells) if HEAD in cell]
            elif rows:
                found += _cells(page, number, line, [cells[at] for at in rows])
        else:
            rows = []
    return found


def _cells(page: str, number: int, row: str, cells: list[str]) -> Iterator[Block]:
    told = re.search(r"<!-- (not run|slow): (.*?) -->", row)
    info = {told[1].replace(" ", "-"): told[2]} if told else {}
    for cell in cells:
        for text in _SPAN.findall(cell):
            if not text.startswith("-"):
                yield Block(page, number, "sh", info, text)


def commands(block: Block) -> Iterator[Command]:
    """Return the commands of a block of one of SHELLS, in order."""
    found = list(_console(block.text) if block.language == "console" else _script(block.text))
    for at, (text, output) in enumerate(found):
        yield Command(block, text, output, "fails" in block.info and at == len(found) - 1)


def _console(text: str) -> Iterator[tuple[str, list[str] | None]]:
    command: list[str] = []
    output: list[str] = []
    for line in [*text.splitlines(), "$ "]:
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), output or None
            command, output = [line[2:]], []
        elif line.startswith("> ") and command and not output:
            command.append(line[2:])
        else:
            output.append(line)


def _script(text: str) -> Iterator[tuple[str, None]]:
    lines = iter(text.splitlines())
    for line in lines:
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        if here := _HERE_DOCUMENT.search(line):
            for inner in lines:
                command.append(inner)
                if inner == here[1]:
                    break
        if line.strip() and not line.lstrip().startswith("#"):
            yield "\n".join(command), None


def fits(output: str, expected: list[str]) -> bool:
    """Tell whether `output` is what a block shows, blanks at the ends of lines aside."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += "[^\n]*".join(map(re.escape, line.rstrip().split("..."))) + r"[ \t]*\n"
    return re.fullmatch(pattern + r"\s*", output.rstrip() + "\n") is not None


def run(
    page: str, folder: Path, env: Mapping[str, str], argv: list[str], slow: bool = False
) -> list[str]:
    """Run the commands of `page` in `folder`, in one bash; return what went wrong, a text each.

    `argv` are words before `bash`. Those that are slow are left out unless `slow`.
    """
    made = folder / ".blocks"
    made.mkdir()
    steps: list[Command] = []
    lines = []
    for block in blocks(page):
        if name := block.info.get("title"):
            lines.append(f"cat {made}/{name} >{shlex.quote(name)}")
            (made / name).write_text(block.text + "\n")
        elif block.language not in SHELLS:
            continue
        elif "not-run" not in block.info and (slow or "slow" not in block.info):
            for step in commands(block):
                n = len(steps)
                (made / f"{n}.sh").write_text(step.text + "\n")
                lines.append(f"{{ . {made}/{n}.sh; }} >{made}/{n}.out 2>&1 </dev/null")
                lines.append(f"echo $? >{made}/{n}.status")
                steps.append(step)
    (made / "all.sh").write_text("\n".join(lines) + "\n")
    if folder.stat().st_uid != made.stat().st_uid:
        made.chmod(0o777)
    done = subprocess.run(
        [*argv, "bash", made / "all.sh"],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    wrong = [f"{page}: {done.stdout}{done.stderr}"] if done.stdout or done.stderr else []
    for n, step in enumerate(steps):
        wrong += _judge(step, made / f"{n}.out", made / f"{n}.status")
    return wrong


def _judge(step: Command, out: Path, status: Path) -> Iterator[str]:
    if not status.exists():
        yield f"{step.block}: was not reached: {step.text}"
        return
    output = out.read_text(errors="replace")
    if (status.read_text().strip() != "0") is not step.fails:
        yield f"{step.block}: status {status.read_text().strip()}: {step.text}\n{output}"
    elif step.output is not None and not fits(output, step.output):
        wanted = "\n".join(step.output)
        yield f"{step.block}: {step.text}\n--- the page says\n{wanted}\n--- it was\n{output}"
