"""How a program of ours starts another Python: one that imports nothing but what is installed.

Without -I the current folder, which may be anybody's, comes first in what is imported, and the
variables PYTHON* say more (python(1)). A compiled module is code as well: one that somebody else
may have written is left aside for its source, as the launcher scripts do, which have the same text.
"""

import os
import sys

CHECKED = """\
def get_data(self, path, plain=external.SourceFileLoader.get_data):
    if path.endswith(".pyc"):
        with open(os.open(path, os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            found, folder = os.fstat(file.fileno()), os.path.dirname(path)
            owners = 0, os.getuid(), os.stat(os.path.dirname(folder)).st_uid
            if found.st_mode & 0o022 or found.st_uid not in owners:
                raise OSError("%s: somebody else may have written it" % path)
            return file.readall()
    return plain(self, path)


def get_code(self, name, plain=external.SourceFileLoader.get_code):
    try:
        return plain(self, name)
    except (EOFError, ValueError, TypeError, ImportError):
        path = self.get_filename(name)
        return self.source_to_code(self.get_data(path), path)


external.SourceFileLoader.get_data = get_data
external.SourceFileLoader.get_code = get_code
"""
"""Importing reads a module's source where get_data raises OSError. A compiled one that is cut off
(a full disk, `ulimit -f`) fails in any of the ways that get_code knows."""


def argv(statement: str, *words: str, site: bool = True) -> list[str]:
    """Return the argv of a Python that runs `statement` with this package; `words` follow.

    Its first word is the path of the program. Without `site` it reads no site-packages.
    """
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import _frozen_importlib_external as external, os, sys\n{CHECKED}"
        f"sys.path.insert(0, {folder!r})\n{statement}"
    )
    # Empty where Python was found without a PATH.
    python = sys.executable or os.readlink("/proc/self/exe")
    return [python, "-I", *([] if site else ["-S"]), "-c", code, *words]
