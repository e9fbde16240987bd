"""Environment definition files, CSCS's format for what a job's container is. Pure.

https://docs.cscs.ch/software/container-engine/edf: TOML with base_environment, image, mounts,
workdir, entrypoint, writable, devices, [env] and [annotations]. Of annotations only those of hooks
mean something; com.hooks.NAME.enabled selects the site's module NAME. What has no counterpart here
is refused, with the line where it stands.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan import volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

DEEPEST = 10
"""How many files may stand on one another by base_environment: the format's own bound."""

_TYPES = {
    "base_environment": (str, list),
    "image": (str,),
    "mounts": (list,),
    "workdir": (str,),
    "entrypoint": (bool,),
    "writable": (bool,),
    "devices": (list,),
    "env": (dict,),
    "annotations": (dict,),
}
_NAMES = {str: "a string", list: "an array of strings", bool: "true or false", dict: "a table"}
_FLAGS = {"rprivate": "private", "rslave": "slave", "rbind": "rec", "bind": ""}
_FLAGS |= {"sqsh": "sqfs"}
"""Words of a mount's flags that Docker and enroot have, and ours for them."""
_HOOKS = "com.hooks."


class Edf(Record):
    """One file: its path, text and document, checked by `parse`."""

    path: str
    text: str
    document: "Mapping[str, Any]"

    def line(self, word: str) -> str:
        """Return PATH:NUMBER of the first line that begins with `word`, else has it; or PATH."""
        lines = [line.strip().strip("[\"'") for line in self.text.splitlines()]
        for found in (str.startswith, str.__contains__):
            for number, line in enumerate(lines, 1):
                if found(line, word):
                    return f"{self.path}:{number}"
        return self.path


class Definition(Record):
    """What files that stand on one another ask for.

    `modules` are (name, variant, wanted, where it says so) of hooks. `entrypoint` is None where no
    file says it. The values of `env` may have
    ${NAME}; all other texts are expanded.
    """

    image: str = ""
    mounts: tuple[str, ...] = ()
    workdir: str = ""
    entrypoint: bool | None = None
    writable: bool = True
    devices: tuple[str, ...] = ()
    env: tuple[tuple[str, str, str], ...] = ()
    """(name, value, where it says so)."""
    modules: tuple[tuple[str, str, bool, str], ...] = ()


def parse(path: str, text: str, document: "Mapping[str, Any]") -> Edf:
    """Return a file whose document has known keys of the right types. Raises UdiError."""
    edf = Edf(path, text, document)
    for key, value in document.items():
        if key not in _TYPES:
            raise UdiError(
                f"environment definition {edf.line(key)}: unknown key {key!r}",
                f"known: {', '.join(_TYPES)}",
            )
        if not isinstance(value, _TYPES[key]):
            right = " or ".join(_NAMES[kind] for kind in _TYPES[key])
            raise UdiError(f"environment definition {edf.line(key)}: {key} is not {right}")
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise UdiError(f"environment definition {edf.line(key)}: {key} is not {_NAMES[list]}")
    return edf


def bases(edf: Edf) -> "list[str]":
    """Return the names of the files that this one stands on, in order."""
    found = edf.document.get("base_environment", [])
    return [found] if isinstance(found, str) else list(found)


def merge(files: "Sequence[Edf]", variables: "Mapping[str, str]", folder: str) -> Definition:
    """Return what `files` ask for together, the first the deepest base. Raises UdiError.

    A later file's value counts; mounts, devices, env and annotations are added to the earlier ones.
    `variables` are the caller's, `folder` is the current one, where relative paths begin.
    """
    values: dict[str, Any] = {}
    mounts: list[str] = []
    devices: list[str] = []
    env: dict[str, tuple[str, str]] = {}
    hooks: dict[str, tuple[str, str]] = {}
    for edf in files:
        for key in ("image", "workdir", "entrypoint", "writable"):
            if key in edf.document:
                found = edf.document[key]
                where = edf.line(key)
                values[key] = expand(found, variables, where) if isinstance(found, str) else found
        for mount in edf.document.get("mounts", []):
            where = edf.line(mount)
            mounts.append(_mount(expand(mount, variables, where), where, folder))
        devices += [expand(x, variables, edf.line(x)) for x in edf.document.get("devices", [])]
        for name, value in edf.document.get("env", {}).items():
            env[name] = _value(name, value, edf), edf.line(name)
        for name, value in _flat(edf.document.get("annotations", {}), "", edf):
            where = edf.line(name.rpartition(".")[2])
            hooks[name] = expand(value, variables, where), where
    values["image"] = _image(values.get("image", ""), files[-1])
    return Definition(
        mounts=tuple(mounts),
        devices=tuple(devices),
        env=tuple((name, *rest) for name, rest in env.items()),
        modules=tuple(_modules(hooks)),
        **values,
    )


def expand(text: str, variables: "Mapping[str, str]", where: str) -> str:
    """Return `text` with ${NAME} and ${NAME:-DEFAULT} replaced, and $$ as $.

    Raises UdiError for a variable that is not set and has no default, and for what is not closed.
    """
    out, rest = "", text
    while "$" in rest:
        head, _, rest = rest.partition("$")
        out += head
        if rest.startswith("$"):
            out, rest = out + "$", rest[1:]
            continue
        if not rest.startswith("{"):
            out += "$"
            continue
        inside, brace, rest = rest[1:].partition("}")
        name, default, instead = inside.partition(":-")
        if not brace or not name:
            raise UdiError(f"environment definition {where}: ${{{inside} is not closed, or empty")
        if name not in variables and not default:
            raise UdiError(
                f"environment definition {where}: the variable {name} is not set",
                f"set it, or write ${{{name}:-}}; $${{{name}}} is the text itself",
            )
        out += variables.get(name, instead) or instead
    return out + rest


def _mount(text: str, where: str, folder: str) -> str:
    """Return a mount in udi-run's words. Raises UdiError, naming the line."""
    source, _, rest = text.partition(":")
    destination, _, flags = rest.partition(":")
    if not destination and text == source:
        destination = source
    if ";" in text or not source or not destination:
        raise UdiError(
            f"environment definition {where}: mount {text!r} is not SOURCE:DESTINATION[:FLAG+FLAG]"
        )
    if source.startswith("./") or source == ".":
        source = f"{folder}/{source[2:]}".rstrip("/") or "/"
    words = [_FLAGS.get(word, word) for word in flags.replace("+", ",").split(",")]
    ours = ":".join(filter(None, (source, destination, *words)))
    volumes.parse(ours, origin=f"environment definition {where}")
    return ours


def _value(name: str, value: object, edf: Edf) -> str:
    if not isinstance(value, str):
        raise UdiError(f"environment definition {edf.line(name)}: env.{name} is no string")
    if not name or "=" in name or "\0" in name + value:
        raise UdiError(f"environment definition {edf.line(name)}: {name!r} is no variable's name")
    return value


def _image(text: str, last: Edf) -> str:
    """Return an image's name for udi-run: enroot writes REGISTRY#NAME. Raises UdiError."""
    if not text:
        raise UdiError(
            f"environment definition {last.path}: no image is given", 'image = "ubuntu:24.04"'
        )
    if text.startswith(("/", "./", "../")):
        return text
    user, at, rest = text.partition("@")
    if at and not rest.startswith(("sha256:", "sha512:")):
        raise UdiError(
            f"environment definition {last.line('image')}: {user}@ names a user of the registry",
            "leave it out, and log in once: udi login REGISTRY",
        )
    registry, number, name = text.partition("#")
    return f"{registry}/{name}" if number else text


def _flat(table: "Mapping[str, Any]", above: str, edf: Edf) -> "Iterator[tuple[str, str]]":
    """Yield (dotted name, value) of nested tables, as the OCI runtime specification has them."""
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict):
            yield from _flat(value, name, edf)
        elif isinstance(value, str):
            yield name, value
        else:
            raise UdiError(
                f"environment definition {edf.line(key)}: annotation {name} is no string",
                'write it as "true", with quotes',
            )


def _modules(
    annotations: "Mapping[str, tuple[str, str]]",
) -> "Iterator[tuple[str, str, bool, str]]":
    hooks: dict[str, dict[str, tuple[str, str]]] = {}
    for name, found in annotations.items():
        if name.startswith(_HOOKS):
            hook, _, key = name.removeprefix(_HOOKS).partition(".")
            hooks.setdefault(hook, {})[key] = found
    for hook, keys in hooks.items():
        for key, (value, where) in keys.items():
            if key not in ("enabled", "variant"):
                hint = f"the site's module {hook} is as the site wrote it; leave the line out"
                raise UdiError(
                    f"environment definition {where}: annotation {_HOOKS}{hook}.{key} has no "
                    "counterpart here",
                    "leave the line out, and see udi sshd" if hook == "ssh" else hint,
                )
            if key == "enabled" and value not in ("true", "false"):
                raise UdiError(
                    f'environment definition {where}: {_HOOKS}{hook}.enabled is not "true" or '
                    '"false"'
                )
        enabled, where = keys.get("enabled", ("false", ""))
        if "enabled" in keys:
            yield hook, keys.get("variant", ("", ""))[0], enabled == "true", where
