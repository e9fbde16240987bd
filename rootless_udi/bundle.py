"""Two files in place of fifty: the start path's modules, as code, for one version of Python.

Each module costs a start an open and three stats on what may be a file system shared by 10,000
nodes. A bundle is one open and a stat a module. It lies with the compiled modules, is written by
the first start that may write there (or by `udi bundle`), and is left aside as soon as one of the
modules is not the file that it was made of. A rank that joins a container reads the first of the
two, a fifth of both. The launcher script reads it like this:

    marshal: (FORMAT, boot, table, groups, elsewhere)
    table: {name: (path, mtime_ns, size, is_package, number of its group)}
    groups: ((names, marshalled tuple of their code), ...)
    elsewhere: {name: the other bundle's path}

`boot` is the code of BOOT below: it checks the files and puts an importer on sys.meta_path. The
first import of a module runs all of its group, each once and without importlib, which halves the
time that the planner's modules take. They are without docstrings, a third of their size.
"""

import marshal
import os
import sys

from rootless_udi.trust import make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    Row = tuple[str, object, int, bool, int]

FORMAT = 4
GROUPS = {
    "join": (
        "rootless_udi",
        "rootless_udi.errors",
        "rootless_udi.trust",
        "rootless_udi.environment",
        "rootless_udi.records",
        "rootless_udi.options",
        "rootless_udi.syscalls",
        "rootless_udi.places",
        "rootless_udi.node",
        "rootless_udi.guard",
        "rootless_udi.begin",
        "rootless_udi.run",
    ),
    "elect": ("rootless_udi.elect",),
    "shifter-config": ("rootless_udi.shifterconfig",),
    "maps": (
        "rootless_udi.idmap",
        "rootless_udi.idmap.maps",
    ),
    "help": (
        "rootless_udi.messages",
        "rootless_udi.outside",
        "rootless_udi.helper",
    ),
    "serving": ("rootless_udi.serving",),
    "starts": ("rootless_udi.starts",),
    "fuse": ("rootless_udi.fuse",),
    "publish": (
        "rootless_udi.sweep",
        "rootless_udi.publish",
    ),
    "early": (
        "rootless_udi.steps",
        "rootless_udi.config",
        "rootless_udi.host",
        "rootless_udi.image",
        "rootless_udi.fuse.server",
        "rootless_udi.ladder",
        "rootless_udi.fastjson",
        "rootless_udi.oci",
        "rootless_udi.store_find",
        "rootless_udi.resolve",
        "rootless_udi.early",
    ),
    "build": (
        "rootless_udi.skeleton",
        "rootless_udi.idmap.userns",
        "rootless_udi.idmap.accounts",
        "rootless_udi.sizes",
        "rootless_udi.volumes",
        "rootless_udi.plan",
        "rootless_udi.rootfs",
        "rootless_udi.layover",
        "rootless_udi.execute",
        "rootless_udi.inject",
        "rootless_udi.launch",
    ),
    "serve": (
        "rootless_udi.fuse.format",
        "rootless_udi.fuse.decompress",
        "rootless_udi.fuse.cache",
        "rootless_udi.fuse.workers",
        "rootless_udi.fuse.source",
        "rootless_udi.fuse.reader",
        "rootless_udi.fuse.blocks",
        "rootless_udi.fuse.filesystem",
        "rootless_udi.fuse.ahead",
        "rootless_udi.fuse.complain",
        "rootless_udi.fuse.protocol",
        "rootless_udi.fuse.notes",
        "rootless_udi.fuse.raw",
    ),
    "shifter": (
        "rootless_udi.shifter",
        "rootless_udi.shiftermain",
    ),
}
"""What is imported together, each module after those that it imports itself. A test compares."""

FILES = {
    "udi-run": ("join", "elect"),
    "udi-start": tuple(name for name in GROUPS if name not in ("join", "elect")),
}
"""Which groups are in which bundle; the launcher script reads the first."""

BOOT = '''
import marshal, os, sys
def boot(bundle):
    """Check the bundle's files, then serve imports from it; False where one has changed."""
    if bundle[0] != 4:
        return False
    table, groups, elsewhere = bundle[2:]
    stat, modules, Module, Spec = os.stat, sys.modules, type(sys), type(sys.__spec__)
    try:
        for path, mtime, size, package, group in table.values():
            if path:
                found = stat(path)
                if found.st_mtime_ns != mtime or found.st_size != size:
                    return False
    except OSError:
        return False
    def load(names, codes):
        for name, code in zip(names, marshal.loads(codes)):
            if name in modules:
                continue
            path, folder, _, package, _ = table[name]
            parent, _, last = name.rpartition(".")
            if parent not in modules and parent:
                __import__(parent)
            module = modules[name] = Module(name)
            space = module.__dict__
            space["__package__"] = name if package else parent
            if path:
                space["__file__"] = path
            if package:
                space["__path__"] = [path.rpartition("/")[0] or folder]
            if parent:
                setattr(modules[parent], last, module)
            if code:
                exec(code, space)
    def other(path):
        """Read the other bundle, once; where it is missing, damaged or old, modules are files."""
        elsewhere.clear()
        try:
            with open(os.open(path, os.O_NONBLOCK), "rb", buffering=0) as file:
                return trusted(file.fileno(), path) and boot(marshal.loads(file.readall()))
        except Exception:
            return False
    class Importer:
        def find_spec(self, name, path=None, target=None):
            row = table.get(name)
            if row is None:
                if name in elsewhere and other(elsewhere[name]):
                    return sys.meta_path[0].find_spec(name)
                return None
            load(*groups[row[4]])
            spec = Spec(name, self, origin=row[0] or None, is_package=row[3])
            spec.has_location = bool(row[0])
            return spec
        def create_module(self, spec):
            return modules[spec.name]
        def exec_module(self, module):
            pass
    sys.meta_path.insert(0, Importer())
    return True
'''


def path(package: str, stem: str = "udi-run") -> str:
    """Return where a bundle of the package in folder `package` is, for this Python."""
    return f"{package}/__pycache__/{stem}.{sys.implementation.cache_tag}.bundle"


def write(package: str) -> bool:
    """Write the bundles of the package in folder `package`; tell whether that was possible."""
    boot = compile(BOOT, "bundle", "exec")
    elsewhere: dict[str, str] = {}
    # The first one last, since it is the one that starts look for.
    for stem, groups in reversed(FILES.items()):
        try:
            table, content = _content(package, groups)
        except OSError:
            # An installation that is being replaced, or is not whole.
            return False
        data = marshal.dumps((FORMAT, boot, table, content, elsewhere))
        if not _replace(path(package, stem), data):
            return False
        elsewhere = dict.fromkeys(table, path(package, stem))
    return True


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


def _content(
    package: str, groups: tuple[str, ...]
) -> tuple[dict[str, "Row"], tuple[tuple[tuple[str, ...], bytes], ...]]:
    """A namespace package (a folder without __init__.py) has no path, and its folder as mtime."""
    table: dict[str, Row] = {}
    content = []
    for number, names in enumerate(GROUPS[group] for group in groups):
        codes: list[CodeType | None] = []
        for name in names:
            stem = package + name.removeprefix("rootless_udi").replace(".", "/")
            if os.path.isdir(stem):
                file = f"{stem}/__init__.py"
                if not os.path.exists(file):
                    table[name] = ("", stem, 0, True, number)
                    codes.append(None)
                    continue
            else:
                file = f"{stem}.py"
            with open(file, "rb") as source:
                found = os.fstat(source.fileno())
                codes.append(compile(source.read(), file, "exec", dont_inherit=True, optimize=2))
            table[name] = (file, found.st_mtime_ns, found.st_size, stem == package, number)
        content.append((names, marshal.dumps(tuple(codes))))
    return table, tuple(content)
