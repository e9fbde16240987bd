"""One file in place of thirty: the start path's modules, as code, for one version of Python.

Each module costs a start an open and three stats on what may be a file system shared by 10,000
nodes. A bundle is one open and a stat a module. It lies with the compiled modules, is written by
the first start that may write there (or by `udi bundle`), and is left aside as soon as one of the
modules is not the file that it was made of. The launcher script reads it like this:

    marshal: (FORMAT, boot, {name: (path, mtime_ns, size, is_package, marshalled code)})

`boot` is the code of BOOT below: it checks the files and puts an importer on sys.meta_path. The
modules are without docstrings, which are a third of their size.
"""

import marshal
import os
import sys

FORMAT = 2
NAMES = (
    "rootless_udi",
    "rootless_udi.run",
    "rootless_udi.begin",
    "rootless_udi.config",
    "rootless_udi.elect",
    "rootless_udi.environment",
    "rootless_udi.errors",
    "rootless_udi.execute",
    "rootless_udi.fastjson",
    "rootless_udi.fuse",
    "rootless_udi.fuse.server",
    "rootless_udi.guard",
    "rootless_udi.helper",
    "rootless_udi.host",
    "rootless_udi.idmap",
    "rootless_udi.idmap.accounts",
    "rootless_udi.idmap.maps",
    "rootless_udi.idmap.userns",
    "rootless_udi.inject",
    "rootless_udi.ladder",
    "rootless_udi.launch",
    "rootless_udi.modules",
    "rootless_udi.node",
    "rootless_udi.oci",
    "rootless_udi.options",
    "rootless_udi.plan",
    "rootless_udi.publish",
    "rootless_udi.records",
    "rootless_udi.resolve",
    "rootless_udi.sizes",
    "rootless_udi.skeleton",
    "rootless_udi.steps",
    "rootless_udi.store_find",
    "rootless_udi.sweep",
    "rootless_udi.syscalls",
    "rootless_udi.volumes",
)
"""A test compares these with what a start imports."""

SERVER = (
    "rootless_udi.fuse.ahead",
    "rootless_udi.fuse.blocks",
    "rootless_udi.fuse.cache",
    "rootless_udi.fuse.complain",
    "rootless_udi.fuse.decompress",
    "rootless_udi.fuse.filesystem",
    "rootless_udi.fuse.format",
    "rootless_udi.fuse.protocol",
    "rootless_udi.fuse.raw",
    "rootless_udi.fuse.reader",
    "rootless_udi.fuse.source",
    "rootless_udi.fuse.workers",
)
"""What the image server imports, in the helper."""

SHIFTER = ("rootless_udi.shifter", "rootless_udi.shiftermain")

BOOT = '''
import marshal, os, sys
def boot(bundle):
    """Check the bundle's files, then serve imports from it; False where one has changed."""
    if bundle[0] != 2:
        return False
    table = bundle[2]
    stat = os.stat
    try:
        for path, mtime, size, package, code in table.values():
            if path:
                found = stat(path)
                if found.st_mtime_ns != mtime or found.st_size != size:
                    return False
    except OSError:
        return False
    Spec = type(sys.__spec__)
    class Importer:
        def find_spec(self, name, path=None, target=None):
            row = table.get(name)
            if row is None:
                return None
            spec = Spec(name, self, origin=row[0] or None, is_package=row[3])
            if row[0]:
                spec.has_location = True
                if row[3]:
                    spec.submodule_search_locations.append(row[0].rpartition("/")[0])
            elif row[3]:
                spec.submodule_search_locations.append(row[1])
            return spec
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            row = table[module.__name__]
            if row[4]:
                exec(marshal.loads(row[4]), module.__dict__)
    sys.meta_path.insert(0, Importer())
    return True
'''


def path(package: str) -> str:
    """Return where the bundle of the package in folder `package` is, for this Python."""
    return f"{package}/__pycache__/udi-run.{sys.implementation.cache_tag}.bundle"


def write(package: str) -> bool:
    """Write the bundle of the package in folder `package`; tell whether that was possible."""
    target = path(package)
    new = f"{target}.{os.getpid()}"
    try:
        data = marshal.dumps((FORMAT, compile(BOOT, "bundle", "exec"), _table(package)))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(new, "xb") as file:
            file.write(data)
        os.rename(new, target)
    except OSError:
        try:
            os.unlink(new)
        except OSError:
            pass
        return False
    return True


def _table(package: str) -> dict[str, tuple[str, object, int, bool, bytes]]:
    """A namespace package (a folder without __init__.py) has no path, and its folder as mtime."""
    table: dict[str, tuple[str, object, int, bool, bytes]] = {}
    for name in (*NAMES, *SERVER, *SHIFTER):
        stem = package + name.removeprefix("rootless_udi").replace(".", "/")
        if os.path.isdir(stem):
            file = f"{stem}/__init__.py"
            if not os.path.exists(file):
                table[name] = ("", stem, 0, True, b"")
                continue
        else:
            file = f"{stem}.py"
        with open(file, "rb") as source:
            found = os.fstat(source.fileno())
            code = compile(source.read(), file, "exec", dont_inherit=True, optimize=2)
        row = (file, found.st_mtime_ns, found.st_size, stem == package, marshal.dumps(code))
        table[name] = row
    return table
