"""--edf=NAME|FILE: a request by an environment definition file (plan/edf.py)."""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, amount
from rootless_udi.config import load
from rootless_udi.plan import edf, modules
from rootless_udi.plan.options import SIF, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.environment import Operation

_LARGEST = 1 << 20
"""Bytes of a file."""


def apply(request: Request, environ: "dict[str, str]") -> "tuple[Request, list[Operation]]":
    """Return the request that --edf stands for, and what its [env] does before --env.

    What the command line gives counts more; volumes and devices are added. Raises UdiError.
    """
    assert request.edf
    folder = os.getcwd()
    found = edf.merge(_read(request.edf, environ, (), folder), environ, folder)
    workdir = request.workdir
    if workdir is None:
        workdir = found.workdir
        if workdir.startswith("./") or workdir == ".":
            workdir = os.path.normpath(f"{folder}/{workdir}")
    entrypoint, image = request.entrypoint, request.image or found.image
    # As without such a file, a SIF file alone means its runscript.
    alone = found.entrypoint is None and image.endswith(SIF) and not request.command
    if entrypoint is None and (found.entrypoint or alone):
        entrypoint = ""
    return request.replace(
        image=image,
        volume=(*found.mounts, *request.volume),
        device=(*found.devices, *request.device),
        writable=request.writable or found.writable,
        # A container is what the file says: the current folder is inside if a mount brings it.
        no_cwd=True,
        workdir=workdir,
        entrypoint=entrypoint,
        module=request.module or _modules(found, environ),
    ), [_operation(*one) for one in found.env]


def _read(
    name: str, environ: "dict[str, str]", above: "tuple[str, ...]", folder: str
) -> "list[edf.Edf]":
    """Return the file that `name` means after those that it stands on. Raises UdiError."""
    path = _find(name, environ, folder)
    if path in above:
        circle = " -> ".join((*above[above.index(path) :], path))
        raise UdiError(f"environment definition {circle}: a circle of base_environment")
    if len(above) > edf.DEEPEST:
        raise UdiError(
            f"environment definition {above[0]}: more than {edf.DEEPEST} files stand on one another"
        )
    one = _parsed(path)
    found: list[edf.Edf] = []
    for base in edf.bases(one):
        text = edf.expand(base, environ, one.line("base_environment"))
        found += _read(text, environ, (*above, path), folder)
    return [*found, one]


def _find(name: str, environ: "dict[str, str]", folder: str) -> str:
    """Return the absolute path of NAME: a path with "/", or a file of the search path.

    The search path is $EDF_PATH, else ~/.edf; a file's name is NAME.toml or NAME.
    """
    if "/" in name:
        return os.path.normpath(os.path.join(folder, name))
    text = environ.get("EDF_PATH") or f"{environ.get('HOME', '')}/.edf"
    folders = [one for one in text.split(":") if one.startswith("/")]
    for one in folders:
        for file in (f"{one}/{name}.toml", f"{one}/{name}"):
            if os.path.isfile(file):
                return file
    raise UdiError(
        f"environment definition {name}: is in none of {', '.join(folders) or 'no folder'}",
        "write a path with / in it, or set EDF_PATH to absolute folders",
    )


def _parsed(path: str) -> "edf.Edf":
    import tomllib

    try:
        with open(trust.regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o002:
                raise UdiError(
                    f"environment definition {path}: anybody may write it", f"chmod o-w {path}"
                )
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UdiError(f"reading environment definition {path} failed: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise UdiError(f"environment definition {path}: is larger than {amount(_LARGEST)}")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UdiError(f"environment definition {path}: is no TOML: {error}") from None
    return edf.parse(path, text, document)


def _modules(found: "edf.Definition", environ: "dict[str, str]") -> str | None:
    """Return the value for --module: the site's default ones, with and without those of hooks.

    A hook with a variant means the module NAME-VARIANT where the site has it, else NAME.
    """
    if not found.modules:
        return None
    site = load.load(environ)
    known = modules.available(site.modules)
    wanted = list(site.default_modules)
    for hook, variant, enabled, where in found.modules:
        names = [f"{hook}-{variant}", hook] if variant else [hook]
        name = next((one for one in names if one in known), "")
        if enabled and not name:
            raise UdiError(
                f"environment definition {where}: the site has no module {' or '.join(names)} for "
                f"the hook {hook}",
                f"modules are: {', '.join(sorted(known))}",
            )
        if enabled and name not in wanted:
            wanted.append(name)
        elif not enabled:
            wanted = [one for one in wanted if one not in names]
    return ",".join(wanted) or modules.NONE


def _operation(name: str, value: str, where: str) -> "Operation":
    if not value:
        return ("unset", name, "")
    if "$" in value:
        return ("expand", name, f"{where}\0{value}")
    return ("set", name, value)
