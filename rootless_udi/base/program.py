"""How one of our programs starts another: the command line of a Python that imports only our files.

Python would look for modules in the current folder first, where anybody may have put some, and obey
variables like PYTHONPATH; option -I prevents both (python(1)). Compiled modules (.pyc) are code
too: one that another user may have written is not used, its source is. CHECKED does that. The
launcher scripts in bin/ have the same text, which a test compares.
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
"""Python code that changes how modules are loaded. Where get_data raises OSError for a compiled
module, Python reads the source. One that was cut off (by a full disk or `ulimit -f`) makes get_code
fail in one of the ways that are caught there; then the source is read too."""


def argv(statement: str, *words: str, site: bool = True) -> list[str]:
    """Return the argv of a Python that runs `statement`, in which this package can be imported.

    The first word is the interpreter's path; `words` become that Python's sys.argv[1:]. Without
    `site` it does not read site-packages.
    """
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = (
        f"import _frozen_importlib_external as external, os, sys\n{CHECKED}"
        f"sys.path.insert(0, {folder!r})\n{statement}"
    )
    # sys.executable is empty where Python was started without a PATH.
    python = sys.executable or os.readlink("/proc/self/exe")
    return [python, "-I", *([] if site else ["-S"]), "-c", code, *words]
