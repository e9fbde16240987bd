"""Import modules from a bundle. `rootless_udi.bundle` compiles this file into each bundle.

The launcher script (bin/udi-run) runs it before the package can be imported, so nothing of the
package is used here.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any
FORMAT = 6
"""The same number as `rootless_udi.bundle.FORMAT`, which a test compares."""
TAIL = b"end of bundle"
"""The same as `rootless_udi.bundle.TAIL`."""


_COMPILED = "_ctypes", "_json", "_queue"
"""Modules of Python's own that a start needs and that are files in most of them. They are in the
last folder of sys.path but ours; Python would list that folder."""
_SPEC = type(sys.__spec__)
"""ModuleSpec, without importing importlib.machinery."""


def boot(data: bytes, head: "Any", owner: int) -> bool:
    """Make Python import modules from a bundle; return False if it is none, or cut off.

    `data` is the bundle's content, `head` the object that stands first in it. User `owner` is
    trusted to have written the other bundles, which `head` names, in the same folder.
    `rootless_udi.bundle` describes the format.
    """
    if head[0] != FORMAT or not data.endswith(TAIL):
        return False
    sys.meta_path.insert(0, _Importer(data, owner, *head[2:]))
    return True


def _compiled(name: str) -> "ModuleSpec | None":
    """Return the spec of one of Python's own modules that is a file where such files are; None for
    all others, which Python finds itself."""
    external: Any = sys.modules["_frozen_importlib_external"]
    path = f"{sys.path[-2]}/{name}{external.EXTENSION_SUFFIXES[0]}"
    try:
        os.stat(path)
    except OSError:
        return None
    loader = external.ExtensionFileLoader(name, path)
    spec: ModuleSpec = external.spec_from_file_location(name, path, loader=loader)
    return spec


class _Importer:
    """A meta path finder and loader (importlib.abc). Importing a module runs all of its group.

    `stale` tells whether a source file of a group has changed: then the whole group is imported
    from its sources.
    """

    def __init__(
        self, data: bytes, owner: int, table: "Any", groups: "Any", elsewhere: "dict[str, str]"
    ) -> None:
        self.owner, self.table, self.groups, self.elsewhere = owner, table, groups, elsewhere
        # So that a group's code is read from the bundle without a copy.
        self.data = memoryview(data)
        self.stale = self.settled = False
        self.loaded: set[int] = set()

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        number = self.table.get(name)
        if number is None:
            if name in self.elsewhere and self.other(self.elsewhere[name]):
                return sys.meta_path[0].find_spec(name, None)
            return _compiled(name) if name in _COMPILED else None
        row = self.load(number, name)
        if row is None:
            return None
        spec = _SPEC(name, self, origin=row[0] or None, is_package=row[3])  # type: ignore[arg-type]
        spec.has_location = bool(row[0])
        return spec

    def create_module(self, spec: "ModuleSpec") -> "ModuleType":
        return sys.modules[spec.name]

    def exec_module(self, module: "ModuleType") -> None:
        """Do nothing: `load` has run the module's code already."""

    def load(self, number: int, wanted: str) -> "Any":
        """Import all modules of a group; return the row of module `wanted`, None if it is stale."""
        modules, kind = sys.modules, type(sys)
        rows = self.rows(number)
        if not rows:
            return None
        self.loaded.add(number)
        codes = marshal.loads(self.data[self.groups[number][1] :])
        for (name, path, folder, _, package), code in zip(rows, codes):  # noqa: B905  # strict costs time
            if name in modules:
                continue
            parent, _, last = name.rpartition(".")
            if parent not in modules and parent:
                __import__(parent)
            module = modules[name] = kind(name)
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
        return next(row for row in rows if row[0] == wanted)

    def rows(self, number: int) -> "Any":
        """Return the rows of a group's modules; () if a source file has changed or is gone."""
        rows = marshal.loads(self.data[self.groups[number][0] :])
        try:
            for _, path, mtime, size, _ in () if self.settled else rows:
                if path:
                    found = os.stat(path)
                    if found.st_mtime_ns != mtime or found.st_size != size:
                        break
            else:
                return rows
        except OSError:
            pass
        for name, *_ in rows:
            self.table.pop(name, None)
        self.stale = True
        return ()

    def settle(self) -> None:
        """Look at all source files now and never again: for a process that lives long, whose
        modules must be of one version after an upgrade too."""
        for number in set(self.table.values()) - self.loaded:
            self.rows(number)
        self.settled = True

    def other(self, path: str) -> bool:
        """Use the bundle at `path` too; return False where it is missing, damaged or old."""
        for name in [name for name, where in self.elsewhere.items() if where == path]:
            del self.elsewhere[name]
        try:
            fd = os.open(path, os.O_NONBLOCK)
            try:
                found = os.fstat(fd)
                if found.st_mode & 0o022 or found.st_uid not in (0, os.getuid(), self.owner):
                    return False
                data = os.read(fd, found.st_size)
            finally:
                os.close(fd)
            return boot(data, marshal.loads(data), self.owner)
        except Exception:
            return False
