"""Three files in place of fifty: the start path's modules, as code, for one version of Python.

Each module costs a start an open and three stats on what may be a file system shared by 10,000
nodes. A bundle is one open and a stat a module. It lies with the compiled modules, is written by
the first start that may write there (or by `udi bundle`). A group is left aside if one of its
modules is not the file any more that it was made of, and that start writes the bundle anew. A rank
that joins a container reads one of them, a fifth of all. The launcher script reads it like this:

    head, marshalled: (FORMAT, boot, table, groups, elsewhere)
    table: {name: number of its group}
    groups: ((rows, codes), ...), where each begins, in bytes counted from the file's end: -9 is the
        ninth byte before it
    elsewhere: {name: the path of another bundle that has it}
    after it, for each group, each marshalled:
        its rows ((name, path, mtime_ns, size, is_package), ...)
        its codes, a tuple of the modules' code
    TAIL, by which a file that was cut off is known

`boot` is the code of base/boot.py: it puts an importer on sys.meta_path. The first import of a
module runs all of its group, each once and without importlib, which halves the time that the
planner's modules take. They are without what only people and type checkers read:
docstrings, a third of their size, the types of parameters, and what is imported for types alone.
"""

import marshal
import os
import sys

from rootless_udi.base.trust import make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    Row = tuple[str, str, int | str, int, bool]

FORMAT = 6
TAIL = b"end of bundle"
_SERVE = (
    "rootless_udi.fuse.protocol",
    "rootless_udi.fuse.failures",
    "rootless_udi.fuse.bounded_cache",
    "rootless_udi.fuse.decompress",
    "rootless_udi.fuse.workers",
    "rootless_udi.fuse.imagefile",
    "rootless_udi.fuse.reader",
    "rootless_udi.fuse.blocks",
    "rootless_udi.fuse.filesystem",
    "rootless_udi.fuse.recorder",
    "rootless_udi.fuse.warmup",
    "rootless_udi.fuse.raw_transport",
)
"""What our image server loads, be it a child of udi-run or a program of its own."""

_CHECKS = "rootless_udi.base.windows", "rootless_udi.fuse.precheck"

GROUPS = {
    "join": (
        "rootless_udi",
        "rootless_udi.base",
        "rootless_udi.plan",
        "rootless_udi.node",
        "rootless_udi.launch",
        "rootless_udi.base.errors",
        "rootless_udi.base.process",
        "rootless_udi.base.privilege",
        "rootless_udi.base.trust",
        "rootless_udi.base.syscalls",
        "rootless_udi.node.record",
        "rootless_udi.plan.environment",
        "rootless_udi.base.records",
        "rootless_udi.plan.options",
        "rootless_udi.launch.command",
        "rootless_udi.base.digest",
        "rootless_udi.node.launcher",
        "rootless_udi.node.places",
        "rootless_udi.run",
    ),
    "elect": (
        "rootless_udi.node.election",
        "rootless_udi.launch.shared",
    ),
    "pair": ("rootless_udi.node.pair",),
    "help": (
        "rootless_udi.idmap",
        "rootless_udi.fuse",
        "rootless_udi.serve",
        "rootless_udi.idmap.maps",
        "rootless_udi.idmap.userns",
        "rootless_udi.base.calls",
        "rootless_udi.base.messages",
        "rootless_udi.base.superblock",
        "rootless_udi.serve.outside",
        "rootless_udi.serve.programs",
        "rootless_udi.serve.helper",
    ),
    "server": ("rootless_udi.serve.server",),
    "starts": ("rootless_udi.serve.prefetch",),
    "publish": ("rootless_udi.node.publish",),
    "end": (
        "rootless_udi.node.sweep",
        "rootless_udi.node.ending",
    ),
    "early": (
        "rootless_udi.config",
        "rootless_udi.host",
        "rootless_udi.store",
        "rootless_udi.config.files",
        "rootless_udi.plan.steps",
        "rootless_udi.plan.site",
        "rootless_udi.config.load",
        "rootless_udi.plan.facts",
        "rootless_udi.host.facts",
        "rootless_udi.plan.image",
        "rootless_udi.plan.start",
        "rootless_udi.fuse.choice",
        "rootless_udi.serve.choose",
        "rootless_udi.base.fastjson",
        "rootless_udi.plan.reference",
        "rootless_udi.store.find",
        "rootless_udi.store.resolve",
        "rootless_udi.launch.facts",
    ),
    "build": (
        "rootless_udi.plan.mountpoints",
        "rootless_udi.launch.layover",
        "rootless_udi.launch.rootfs",
        "rootless_udi.idmap.accounts",
        "rootless_udi.plan.sizes",
        "rootless_udi.plan.volumes",
        "rootless_udi.plan.folder",
        "rootless_udi.plan.planner",
        "rootless_udi.launch.execute",
        "rootless_udi.launch.inject",
        "rootless_udi.launch.container",
    ),
    "format": ("rootless_udi.fuse.format",),
    "serve": _SERVE,
    "windows": _CHECKS,
    "checked": ("rootless_udi.fuse.checkedfile",),
    "known": (
        "rootless_udi.launch.holding",
        "rootless_udi.launch.known",
    ),
    "sif": ("rootless_udi.store.sif",),
    "inplace": (
        "rootless_udi.store.inplace",
        "rootless_udi.launch.scripts",
    ),
    "volumes": (
        "rootless_udi.launch.squashvolumes",
        "rootless_udi.serve.volumeserver",
        "rootless_udi.serve.volumes",
    ),
    "distant": ("rootless_udi.fuse.remotefile",),
    "away": (
        "rootless_udi.serve.distant",
        "rootless_udi.launch.away",
    ),
    "fetch": (
        "rootless_udi.remote",
        "rootless_udi.store.journal",
        "rootless_udi.remote.plain",
        "rootless_udi.remote.origins",
        "rootless_udi.remote.ranges",
        "rootless_udi.remote.sources",
        "rootless_udi.remote.opening",
        "rootless_udi.remote.places",
        "rootless_udi.remote.kept",
        "rootless_udi.remote.process",
    ),
    "shifter": (
        "rootless_udi.shifter",
        "rootless_udi.shifter.options",
        "rootless_udi.shifter.main",
    ),
    "checks": (
        "rootless_udi",
        "rootless_udi.base",
        "rootless_udi.fuse",
        "rootless_udi.serve",
        "rootless_udi.base.errors",
        "rootless_udi.base.records",
        "rootless_udi.base.superblock",
        "rootless_udi.fuse.format",
        *_CHECKS,
        "rootless_udi.serve.checked",
    ),
    "image": (
        "rootless_udi",
        "rootless_udi.base",
        "rootless_udi.idmap",
        "rootless_udi.fuse",
        "rootless_udi.serve",
        "rootless_udi.base.errors",
        "rootless_udi.base.process",
        "rootless_udi.base.syscalls",
        "rootless_udi.idmap.maps",
        "rootless_udi.base.calls",
        "rootless_udi.base.messages",
        "rootless_udi.base.superblock",
        "rootless_udi.serve.outside",
        "rootless_udi.serve.programs",
        "rootless_udi.serve.helper",
        "rootless_udi.serve.server",
        "rootless_udi.fuse.format",
        *_SERVE,
        "rootless_udi.serve.separate",
    ),
    "compared": ("rootless_udi.fuse.checkedfile",),
    "over": (
        "rootless_udi.node",
        "rootless_udi.base.trust",
        "rootless_udi.node.record",
        "rootless_udi.node.places",
        "rootless_udi.node.election",
        "rootless_udi.node.publish",
        "rootless_udi.node.sweep",
        "rootless_udi.node.ending",
    ),
}
"""What is imported together, each module after those that it imports itself. A test compares."""

_EARLIER = {
    "udi-run": ("join", "elect", "pair"),
    "udi-image": ("checks", "image", "compared", "over"),
}
FILES = {
    **_EARLIER,
    "udi-start": tuple(n for n in GROUPS if not any(n in names for names in _EARLIER.values())),
}
"""Which groups are in which bundle. The launcher script reads the first, or the second as the image
server of a start that udi-run in C makes (`serve.separate`)."""
_BESIDE = {"udi-run": ("udi-start",), "udi-image": ("udi-run", "udi-start"), "udi-start": ()}
"""In which other bundles each one's modules find what it lacks; the last counts."""

BOOT = "base/boot.py"
"""Whose code is in each bundle: it checks the files and imports from it."""


def path(package: str, stem: str = "udi-run") -> str:
    """Return where a bundle of the package in folder `package` is, for this Python."""
    return f"{package}/__pycache__/{stem}.{sys.implementation.cache_tag}.bundle"


def write(package: str) -> bool:
    """Write the bundles of the package in folder `package`; tell whether that was possible."""
    try:
        with open(f"{package}/{BOOT}", "rb") as source:
            boot = compile(source.read(), "bundle", "exec", dont_inherit=True, optimize=2)
    except OSError:
        return False
    _remember(package)
    tables = {
        stem: {name: n for n, group in enumerate(groups) for name in GROUPS[group]}
        for stem, groups in FILES.items()
    }
    # The first one last, since it is the one that starts look for.
    for stem, groups in reversed(FILES.items()):
        try:
            content = [_content(package, GROUPS[group]) for group in groups]
        except OSError:
            # An installation that is being replaced, or is not whole.
            return False
        table = tables[stem]
        elsewhere = {
            name: path(package, other) for other in _BESIDE[stem] for name in tables[other]
        }
        places, begin = [], -sum(len(rows) + len(codes) for rows, codes in content) - len(TAIL)
        for rows, codes in content:
            places.append((begin, begin + len(rows)))
            begin += len(rows) + len(codes)
        head = marshal.dumps((FORMAT, boot, table, tuple(places), elsewhere))
        parts = [part for pair in content for part in pair]
        if not _replace(path(package, stem), b"".join((head, *parts, TAIL))):
            return False
    return True


def _remember(package: str) -> None:
    """Add the bundles to the installation's RECORD, so that pip and uv remove them with the rest.

    https://packaging.python.org/specifications/recording-installed-packages; a checkout has none.
    """
    folder, name = os.path.split(package)
    try:
        found = [x for x in os.listdir(folder) if x.startswith(name) and x.endswith(".dist-info")]
        record = f"{folder}/{found[0] if len(found) == 1 else ''}/RECORD"
        with open(record, "rb") as file:
            text = file.read()
    except OSError:
        return
    rows = [f"{path(name, stem)},,".encode() for stem in FILES]
    missing = [row + b"\r\n" for row in rows if row not in text]
    if missing:
        _replace(record, b"".join((text, *missing)))


def _replace(target: str, data: bytes) -> bool:
    new = f"{target}.{os.getpid()}"
    try:
        # It is code: whatever the umask allows, only its owner may write it.
        make(os.path.dirname(target))
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(new, target)
    except OSError:
        try:
            os.unlink(new)
        except OSError:
            pass
        return False
    return True


def _content(package: str, names: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Return a group's rows and its modules' code, marshalled.

    A namespace package (a folder without __init__.py) has no path, and its folder as mtime.
    """
    rows: list[Row] = []
    codes: list[CodeType | None] = []
    for name in names:
        stem = package + name.removeprefix("rootless_udi").replace(".", "/")
        file = f"{stem}.py"
        if os.path.isdir(stem):
            file = f"{stem}/__init__.py"
            if not os.path.exists(file):
                rows.append((name, "", stem, 0, True))
                codes.append(None)
                continue
        with open(file, "rb") as source:
            found = os.fstat(source.fileno())
            codes.append(_compiled(source.read(), file))
        rows.append((name, file, found.st_mtime_ns, found.st_size, stem == package))
    return marshal.dumps(tuple(rows)), marshal.dumps(tuple(codes))


def _compiled(source: bytes, file: str) -> "CodeType":
    """Compile a module without docstrings and types; a class's fields keep their names
    (`base.records`)."""
    import ast

    tree = ast.parse(source, file)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.copy_location(ast.Constant(None), node.annotation)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = [ast.copy_location(ast.Pass(), node)]
    return narrow(compile(tree, file, "exec", dont_inherit=True, optimize=2))


_NO_COLUMN, _NO_LINE = 13, 15
"""Kinds of entries in a code object's table of positions (CPython's Objects/locations.md)."""


def narrow(code: "CodeType") -> "CodeType":
    """Return the code without the columns of its positions, a fifth of its size; lines remain."""
    table, line = bytearray(), code.co_firstlineno
    for begin, end, number in code.co_lines():
        for at in range(begin, end, 16):
            length = (min(16, end - at) + 1) // 2 - 1
            if number is None:
                table.append(0x80 | _NO_LINE << 3 | length)
                continue
            table.append(0x80 | _NO_COLUMN << 3 | length)
            delta, line = number - line, number
            rest = -delta << 1 | 1 if delta < 0 else delta << 1
            while rest > 63:
                table.append(0x40 | rest & 63)
                rest >>= 6
            table.append(rest)
    within = (narrow(one) if isinstance(one, type(code)) else one for one in code.co_consts)
    return code.replace(co_linetable=bytes(table), co_consts=tuple(within))
