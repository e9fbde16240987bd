"""The command's environment, as a list of operations on the caller's. Pure.

The environment is made of these, in Shifter's order; a later one wins:

1. the caller's variables without those of UNSECURE and HOST_ONLY, or none with --clearenv;
2. the image's ENV; 3. --env-file; 4. --env; 5. those of modules, MPI and GPUs; 6. the site's.
"""

from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Operation = tuple[str, str, str]
"""(op, name, value), as the fields of `steps.Env`."""

UNSECURE = (
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "LD_AUDIT",
    "LD_BIND_NOT",
    "LD_BIND_NOW",
    "LD_DEBUG",
    "LD_DEBUG_OUTPUT",
    "LD_DYNAMIC_WEAK",
    "LD_HWCAP_MASK",
    "LD_LIBRARY_PATH",
    "LD_ORIGIN_PATH",
    "LD_PRELOAD",
    "LD_PROFILE",
    "LD_PROFILE_OUTPUT",
    "LD_SHOW_AUXV",
    "LD_TRACE_LOADED_OBJECTS",
    "LD_USE_LOAD_BIAS",
    "LD_VERBOSE",
    "LD_WARN",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TMPDIR",
    "TZDIR",
)
"""Variables that glibc removes from the environment of a setuid program (unsecvars.h). Shifter was
one, so its users never saw these in a container; the host's LD_LIBRARY_PATH would be wrong
there."""

HOST_ONLY = (
    "BASH_ENV",
    "GEM_HOME",
    "GEM_PATH",
    "JULIA_DEPOT_PATH",
    "JULIA_LOAD_PATH",
    "LOADEDMODULES",
    "LUA_CPATH",
    "LUA_PATH",
    "MODULEPATH",
    "MODULEPATH_ROOT",
    "MODULESHOME",
    "NODE_PATH",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "RUBYLIB",
    "R_HOME",
    "R_LIBS",
    "R_LIBS_SITE",
    "R_LIBS_USER",
    "TCLLIBPATH",
    "VIRTUAL_ENV",
    "VIRTUAL_ENV_PROMPT",
    "_CE_CONDA",
    "_CE_M",
    "_LMFILES_",
)
HOST_PREFIXES = (
    "BASH_FUNC_ml",
    "BASH_FUNC_module",
    "CONDA_",
    "LMOD_",
    "MODULES_",
    "_LMFILES_",
    "_ModuleTable",
    "__LMOD_",
    "__MODULES_",
)
"""Variables, and beginnings of their names, that tell the host's interpreters and module commands
where their files are. The image's programs would load the host's files by them. The command
`shifter` keeps these variables."""

_YOURS = ("HOME", "LOGNAME", "USER")
"""Variables that an image's ENV does not set: in a container too, the user is the caller."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def apply(environ: "dict[str, str]", operations: "Iterable[Operation]") -> None:
    """Change `environ` by `operations`.

    "append" and "prepend" join with ":"; they just set a variable that is unset or empty.
    """
    for op, name, value in operations:
        if op == "set":
            environ[name] = value
        elif op == "unset":
            environ.pop(name, None)
        elif op == "clear":
            environ.clear()
        else:
            old = environ.get(name, "")
            parts = [old, value] if op == "append" else [value, old]
            environ[name] = ":".join(parts) if old else value


def expanded(
    operations: "Sequence[Operation]", variables: "Mapping[str, str]"
) -> "Sequence[Operation]":
    """Return operations with "expand" made "set", by the variables before any of them is done.

    The value of "expand" is where it stands, a NUL, and a text with ${NAME} (plan/edf.py). Raises
    UdiError for a variable that is not set.
    """
    if all(op != "expand" for op, _, _ in operations):
        return operations
    from rootless_udi.plan import edf

    before, found = dict(variables), []
    for op, name, value in operations:
        if op == "expand":
            where, _, text = value.partition("\0")
            op, value = "set", edf.expand(text, before, where)
        found.append((op, name, value))
    return found


def of_caller(environ: "Mapping[str, str]", clear: bool, shifter: bool) -> "list[Operation]":
    """Return the first operations, on the caller's environment; `clear` is --clearenv."""
    if clear:
        return [("clear", "", "")]
    names = [*UNSECURE]
    if not shifter:
        names += HOST_ONLY
        names += [name for name in environ if name.startswith(HOST_PREFIXES)]
    return [("unset", name, "") for name in names]


def of_image(pairs: "Iterable[str]") -> "list[Operation]":
    """Return the operations of an image's ENV, NAME=VALUE pairs.

    Pairs without "=" or without a value are left out, and the variables that say who the user is.
    """
    split = [pair.partition("=") for pair in pairs]
    return [
        ("set", name, value) for name, _, value in split if name and value and name not in _YOURS
    ]


def of_options(pairs: "Iterable[str]", what: str = "--env") -> "list[Operation]":
    """Return NAME=VALUE pairs as operations. Raises UdiError without "=" or with an empty name."""
    operations = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UdiError(f"{what} {pair!r} is not NAME=VALUE", f"{what} {name or 'NAME'}=VALUE")
        if "\0" in pair:
            raise UdiError(f"{what} {name}: a variable can't hold a NUL character")
        operations.append(("set", name, value))
    return operations


def of_file(text: str, path: str) -> "list[Operation]":
    """Return the operations of an --env-file's text.

    Each line is NAME=VALUE. Blanks around it are dropped; empty lines and those that begin with "#"
    are skipped. Quotes are part of the value, and nothing is expanded. Raises UdiError with `path`
    and the line's number.
    """
    operations: list[Operation] = []
    # Not splitlines(), which also splits at a form feed or U+2028 in a value.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            operations += of_options([line], f"{path}, line {number}:")
    return operations
