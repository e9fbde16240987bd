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
FORMAT = 5
"""The same number as `rootless_udi.bundle.FORMAT`, which a test compares."""
TAIL = b"end of bundle"
"""The same as `rootless_udi.bundle.TAIL`."""


def boot(data: bytes, head: "Any", owner: int) -> bool:
    """Make Python import modules from a bundle; return False if a source file of it has changed.

    `data` is the bundle's content, `head` the object that stands first in it. User `owner` is
    trusted to have written the second bundle, which `head` names, in the same folder.
    `rootless_udi.bundle` describes the format.
    """
    if head[0] != FORMAT or not data.endswith(TAIL):
        return False
    stat = os.stat
    try:
        for path, mtime, size, _, _ in head[2].values():
            if path:
                found = stat(path)
                if found.st_mtime_ns != mtime or found.st_size != size:
                    return False
    except OSError:
        return False
    sys.meta_path.insert(0, _Importer(data, owner, *head[2:]))
    return True


class _Importer:
    """A meta path finder and loader (importlib.abc). Importing a module runs all of its group."""

    def __init__(
        self, data: bytes, owner: int, table: "Any", groups: "Any", elsewhere: "dict[str, str]"
    ) -> None:
        self.owner, self.table, self.groups, self.elsewhere = owner, table, groups, elsewhere
        # So that a group's code is read from the bundle without a copy.
        self.data = memoryview(data)

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        row = self.table.get(name)
        if row is None:
            if name in self.elsewhere and self.other(self.elsewhere[name]):
                return sys.meta_path[0].find_spec(name, None)
            return None
        self.load(*self.groups[row[4]])
        # The class, without importing importlib.machinery.
        spec = type(sys.__spec__)(name, self, origin=row[0] or None, is_package=row[3])  # type: ignore[arg-type]
        spec.has_location = bool(row[0])
        return spec

    def create_module(self, spec: "ModuleSpec") -> "ModuleType":
        return sys.modules[spec.name]

    def exec_module(self, module: "ModuleType") -> None:
        """Do nothing: `load` has run the module's code already."""

    def load(self, names: tuple[str, ...], begin: int, end: int) -> None:
        modules, kind = sys.modules, type(sys)
        codes = marshal.loads(self.data[begin:end])
        for name, code in zip(names, codes):  # noqa: B905  # strict costs time
            if name in modules:
                continue
            path, folder, _, package, _ = self.table[name]
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

    def other(self, path: str) -> bool:
        """Use the bundle at `path` too; return False where it is missing, damaged or old."""
        self.elsewhere.clear()
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
