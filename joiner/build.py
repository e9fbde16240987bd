#!/usr/bin/env python3
"""Build udi-run in C: tables.h from the Python tables, then one compiler call.

    python3 joiner/build.py [FOLDER]

FOLDER is build/joiner by default: there the program finds the Python one by a link. Which compiler:
$CC, or the first that works of musl-gcc, gcc and cc, statically where it can. Exits with 1 and a
line where none does: nothing else needs this program.
"""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rootless_udi.base import process  # noqa: E402
from rootless_udi.idmap import maps  # noqa: E402
from rootless_udi.launch import execute, known  # noqa: E402
from rootless_udi.launch.command import SHELL  # noqa: E402
from rootless_udi.launch.facts import WEEK  # noqa: E402
from rootless_udi.node import launcher, publish, record  # noqa: E402
from rootless_udi.plan import environment, keeping, options  # noqa: E402
from rootless_udi.serve import prefetch  # noqa: E402
from rootless_udi.shifter import options as shifter  # noqa: E402

SOURCES = sorted(HERE.glob("*.c"))
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion")
FLAGS = ("-std=gnu11", "-O2", *WARNINGS)
VARIABLES = ("image", "module", "mpi", "gpu", "fuse", "layer", "share", "keep", "volume")
"""Options that UDI_NAME stands for (`options.parse`)."""


def quoted(text: str) -> str:
    """Return a C string literal of printable ASCII."""
    assert text.isascii() and text.isprintable()
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def start() -> str:
    """Return a C literal: the Python that is started, which is the usual way of bin/udi-run.

    As a command (-c) it is compiled without the rest, and Python does not look whether the script
    is a zip file. Where there is no bundle, it runs the script after all.
    """
    text = (HERE.parent / "bin/udi-run").read_text()
    usual = text.partition("# The usual way")[2].partition("# The other ways")[0].splitlines()[1:]
    lines = [
        *("import sys", "sys.argv[:2] = sys.argv[1:2]", "__file__ = sys.argv[0]"),
        *(line for line in usual if line and not line.lstrip().startswith("#")),
        *("with open(__file__) as file:", "    text = file.read()"),
        'exec(compile(text, __file__, "exec"))',
    ]
    return "\n".join('    "' + quoted(line)[1:-1] + '\\n"' for line in lines)


def letter(short: str) -> str:
    return f"'{short}'" if short else "0"


def array(words: Iterable[str]) -> str:
    return "{" + ", ".join([*map(quoted, words), "NULL"]) + "}"


def shifter_rows() -> Iterator[str]:
    """Yield Shifter's options: name, letter, kind, which of ours it is."""
    kinds = {shifter.NONE: "FLAG", shifter.REQUIRED: "VALUE", shifter.OPTIONAL: "OPTIONAL"}
    names = {key: name for name, (key, _) in shifter.LONG.items() if len(key) == 1}
    for name, (key, kind) in shifter.LONG.items():
        short = key if len(key) == 1 else ""
        field = names.get(key, key).replace("-", "_")
        yield f"    {{{quoted(name)}, {letter(short)}, {kinds[kind]}, O_{field}, false, ANY, ANY}},"
    for short in shifter.SHORT.keys() - names:
        kind = kinds[shifter.SHORT[short]]
        yield f'    {{"", {letter(short)}, {kind}, OPTION_COUNT, false, ANY, ANY}},'


def tables() -> str:
    """Return tables.h: what C has of the Python tables."""
    rows = [
        f"    {{{quoted(o.name)}, {letter(o.short)}, {o.kind.upper()}, O_{o.field}, "
        f"{str(o.shares).lower()}, (const char *const[]){array(o.choices)}, "
        f"(const char *const[]){array(o.next)}}},"
        for o in options.OPTIONS
    ]
    names = ", ".join(f"O_{o.field}" for o in options.OPTIONS)
    lists = {
        "FILE_SUFFIXES": options.FILE_SUFFIXES,
        "PLANNED": launcher.PLANNED,
        "RANKS": launcher.RANKS,
        "RANK_VARIABLES": process.RANK_VARIABLES,
        "UNSECURE": environment.UNSECURE,
        "HOST_ONLY": environment.HOST_ONLY,
        "HOST_PREFIXES": environment.HOST_PREFIXES,
        "OPERATIONS": record.OPERATIONS,
        "SHIFTER_TYPES": shifter.TYPES,
        "COPIED": publish.PLANNED,
    }
    reasons = [
        f"#ifdef {name}\n    {{{name}, {quoted(os.strerror(number))}}},\n#endif"
        for number, name in sorted(errno.errorcode.items())
    ]
    variables = [f'    {{"UDI_{n.upper()}", O_{n}}},' for n in VARIABLES]
    return "\n".join(
        [
            "/* Made by build.py. */",
            "#ifndef TABLES_H\n#define TABLES_H\n",
            f'#define RECORD_FORMAT "{record.FORMAT}"',
            f"#define RECORD_MOST {record.MOST}",
            f"#define RECORD_LONG {record.LONG}",
            f"#define KEEP_MOST {keeping.MOST}",
            f"#define STARTS {quoted(prefetch.FOLDER)}",
            f"#define STARTS_AGE {WEEK}",
            f"#define KNOWN {quoted(known.PLAN)}",
            f"#define KNOWN_AGE {known.AGE}",
            f"#define OUTER {maps.OUTER}",
            f"#define MOUNT_BASE {quoted(execute.BASE)}",
            f"#define FUSE_OPTIONS {quoted(execute.FUSE_OPTIONS)}",
            f"#define OVERLAY_OPTIONS {quoted(execute.OVERLAY_OPTIONS)}",
            f"#define KEEP_PLAIN {quoted(''.join(sorted(keeping.PLAIN)))}",
            f"#define SHELL {quoted(SHELL)}",
            f"#define SIF {quoted(options.SIF)}",
            f"#define DEFAULT_PATH {quoted(environment.DEFAULT_PATH)}",
            f"#define COMMANDS {quoted(options.COMMANDS)}",
            f"__attribute__((unused)) static const char START[] =\n{start()};",
            "enum kind { FLAG, VALUE, LIST, OPTIONAL };",
            "struct option {\n    const char *name;\n    char letter;\n    enum kind kind;",
            "    int field;\n    bool shares;\n    const char *const *choices, *const *next;\n};",
            f"enum {{ {names}, OPTION_COUNT }};",
            "#define TABLE __attribute__((unused)) static const",
            "#define ANY ((const char *const[]){NULL})",
            "TABLE struct option OPTIONS[] = {",
            *rows,
            "    {NULL, 0, FLAG, 0, false, ANY, ANY},\n};",
            *(f"TABLE char *const {name}[] = {array(words)};" for name, words in lists.items()),
            "TABLE struct option SHIFTER[] = {",
            *shifter_rows(),
            "    {NULL, 0, FLAG, 0, false, ANY, ANY},\n};",
            "TABLE struct {\n    const char *name;\n    int option;\n} VARIABLES[] = {",
            *variables,
            "    {NULL, 0},\n};",
            "TABLE struct {\n    int number;\n    const char *text;\n} REASONS[] = {",
            *reasons,
            "    {0, NULL},\n};",
            "#endif\n",
        ]
    )


def compilers() -> Iterator[list[str]]:
    """Yield compilers and what makes them link, best first."""
    if os.environ.get("CC"):
        yield [*os.environ["CC"].split(), "-static"]
        yield os.environ["CC"].split()
        return
    yield ["musl-gcc", "-static"]
    for name in ("gcc", "cc"):
        yield [name, "-static"]
        yield [name]


def compiled(compiler: list[str], target: Path, flags: Iterable[str] = ()) -> str:
    """Compile the program to `target`; return "" or what went wrong."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        (Path(folder) / "tables.h").write_text(tables())
        part = Path(folder) / "udi-run"
        argv = [*compiler, *FLAGS, *flags, f"-I{folder}", "-o", str(part), *map(str, SOURCES)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True)
        except OSError as error:
            return f"{compiler[0]}: {error.strerror}"
        if done.returncode:
            return done.stderr or done.stdout or f"{compiler[0]}: status {done.returncode}"
        part.rename(target)
    return ""


def build(folder: Path) -> str:
    """Build `folder`/udi-run with the first compiler that works; return "" or why not."""
    why = ""
    folder.mkdir(parents=True, exist_ok=True)
    for compiler in compilers():
        why = compiled(compiler, folder / "udi-run")
        if not why:
            return ""
    return why


def main() -> int:
    """Build into the folder that is named, or build/joiner of this checkout with its links."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "build/joiner"
    why = build(folder)
    if why:
        print(f"joiner: not built, udi-run goes on without: {why}", file=sys.stderr)
        return 1
    for name, target in (("shifter", "udi-run"), ("udi-run-python", "../../bin/udi-run")):
        link = folder / name
        if len(sys.argv) == 1 and not link.is_symlink():
            link.symlink_to(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
