"""Translate Shifter's udiRoot.conf to our TOML files; name each line without a counterpart. Pure.

Its format (Shifter's documentation and parser): lines KEY=VALUE; "#" in the first column begins a
comment; a backslash at the end of a line continues it; lists have spaces between, siteFs has ";".
"""

from collections.abc import Callable, Iterable

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.config import schema
from rootless_udi.plan import modules, volumes
from rootless_udi.plan.volumes import Volume

_NO_ROOT = "nothing here runs as root"
_NO_SERVICE = "there is no image gateway: `udi pull` fetches images itself"
_NO_PROGRAM = "that program is not used"

NO_COUNTERPART = {
    "allowLibcPwdCalls": "accounts always come from the C library",
    "allowLocalChroot": "a directory can always be an image",
    "autoLoadKernelModule": _NO_ROOT,
    "batchType": "the workload manager is found from its variables",
    "chmodPath": _NO_PROGRAM,
    "cpPath": _NO_PROGRAM,
    "ddPath": _NO_PROGRAM,
    "gatewayTimeout": _NO_SERVICE,
    "imageGateway": _NO_SERVICE,
    "imagePath": "Shifter's image files are not read: pull into a shared store (store.site)",
    "insmodPath": _NO_ROOT,
    "kmodBasePath": _NO_ROOT,
    "kmodCacheFile": _NO_ROOT,
    "loopMount": "there is no loop device",
    "maxGroupCount": "all supplementary groups are kept",
    "mkfsXfsPath": "a perNodeCache in a file is an ext4, made by mke2fs",
    "modprobePath": _NO_ROOT,
    "mountUdiRootWritable": "the root is read-only; users ask for --writable",
    "mvPath": _NO_PROGRAM,
    "nodeContextPrefix": "deprecated in Shifter",
    "optUdiImage": "bind what is needed of it by a module (modules.d)",
    "optionalSshdAsRoot": _NO_ROOT,
    "perNodeCacheAllowedFsType": "a perNodeCache is a tmpfs, or an ext4 in a file",
    "rootfsType": "the root is the image itself",
    "sitePostMountHook": _NO_ROOT,
    "sitePreMountHook": _NO_ROOT,
    "udiMount": "the container's root is a private mount, at no path of the host",
    "udiRootPath": "nothing is installed there",
    "usersToImport": "the container knows the caller; give /etc/passwd in etc.files for more",
}
_ENV = {"siteEnv": "set", "siteEnvAppend": "append", "siteEnvPrepend": "prepend"}
_ENV["siteEnvUnset"] = "unset"


class Note(Record):
    """What a person should know of a line: it has no counterpart, or means something else here."""

    line: int
    key: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.key}: {self.why}"


class Converted(Record):
    """The files to write, below the site directory, in order: (name, text); and notes."""

    files: tuple[tuple[str, str], ...]
    notes: tuple[Note, ...]


class _File:
    """One TOML file to write: its tables, as lists of (key, text of a value, line)."""

    def __init__(self) -> None:
        self.top: dict[str, tuple[str, int]] = {}
        self.tables: dict[str, dict[str, tuple[str, int]]] = {}
        self.rows: list[tuple[Volume, int]] = []
        self.env: dict[str, dict[str, tuple[str, int]]] = {}
        self.unset: dict[str, int] = {}


class _Converter:
    def __init__(self, listing: Callable[[str], Iterable[str]]) -> None:
        self.listing = listing
        self.site = _File()
        self.modules: dict[str, _File] = {}
        self.notes: list[Note] = []

    def line(self, number: int, key: str, value: str) -> None:
        """Take one KEY=VALUE."""
        try:
            self._line(number, key, value)
        except UdiError as error:
            self.notes.append(Note(number, key, error.message))
        except schema.Wrong as wrong:
            self.notes.append(Note(number, key, wrong.why))

    def _line(self, number: int, key: str, value: str) -> None:
        if key.startswith("module_"):
            self._module(number, key, value)
        elif key == "siteFs":
            self._binds(self.site, number, value)
        elif key in _ENV:
            self._environment(self.site, number, key, value)
        elif key in _SIMPLE:
            table, name, convert = _SIMPLE[key]
            self.site.tables.setdefault(table, {})[name] = (convert(value), number)
            if key == "perNodeCacheSizeLimit":
                self.notes.append(Note(number, key, "is enforced now; Shifter only prints it"))
        elif key == "etcPath":
            self._etc(number, value)
        elif key == "defaultImageType":
            if value != "docker":
                self.notes.append(Note(number, key, f"{value}: images are docker's and OCI's"))
        elif key == "populateEtcDynamically":
            if value == "0":
                self.notes.append(Note(number, key, "/etc/passwd and group are always made anew"))
        elif key in NO_COUNTERPART:
            self.notes.append(Note(number, key, NO_COUNTERPART[key]))
        else:
            self.notes.append(Note(number, key, "unknown, to Shifter too"))

    def _module(self, number: int, key: str, value: str) -> None:
        name, _, field = key.removeprefix("module_").partition("_")
        schema.module_names([name])
        if not field:
            raise schema.Wrong("expected module_NAME_KEY")
        if name in modules.BUILT_IN and _renamed(name) not in self.modules:
            why = f"{name} is built in; the site's own is called {_renamed(name)}"
            self.notes.append(Note(number, key, why))
        name = _renamed(name)
        file = self.modules.setdefault(name, _File())
        if field == "siteFs":
            self._binds(file, number, value)
        elif field in _ENV:
            self._environment(file, number, field, value)
        elif field == "copyPath":
            source = schema.normal(value)
            file.rows.append((Volume(source, f"/opt/udiImage/modules/{name}", ("ro",)), number))
            self.notes.append(Note(number, key, "is bound, not copied"))
        elif field == "conflict":
            file.top["conflicts"] = (_modules(value), number)
        elif field == "enabled":
            file.top["enabled"] = ("false" if value == "0" else "true", number)
        elif field == "userhook":
            if not value:
                raise schema.Wrong("no command")
            file.top["hook"] = (_strings(("/bin/sh", schema.text(value))), number)
        elif field == "roothook":
            self.notes.append(Note(number, key, _NO_ROOT))
        else:
            self.notes.append(Note(number, key, "unknown, to Shifter too"))

    def _binds(self, file: _File, number: int, value: str) -> None:
        """Add the entries of siteFs; blanks may only be around them, as Shifter removes all."""
        text = ";".join(entry.strip() for entry in value.split(";"))
        for volume in volumes.parse(text, site=True, origin="siteFs"):
            if volume.cache is not None:
                raise UdiError("a perNodeCache for everybody is not made")
            file.rows.append((volume, number))

    def _environment(self, file: _File, number: int, key: str, value: str) -> None:
        op = _ENV[key]
        for word in value.split():
            name, equals, text = word.partition("=")
            if op == "unset":
                schema.environment({"unset": [name]}, "")
                file.unset[name] = number
            elif not equals or not name:
                raise UdiError(f"{word!r} is not NAME=VALUE")
            else:
                schema.environment({op: {name: text}}, "")
                table = file.env.setdefault(op, {})
                if name in table and op != "set":
                    raise UdiError(f"{op} {name} twice: write both into one value")
                table[name] = (_string(text), number)

    def _etc(self, number: int, value: str) -> None:
        folder = schema.normal(value)
        names = sorted(self.listing(folder))
        if not names:
            self.notes.append(
                Note(number, "etcPath", f"nothing is in {folder} here: list its files in etc.files")
            )
        for name in names:
            schema.etc_name(name)
            path = schema.normal(f"{folder}/{name}")
            self.site.tables.setdefault("etc.files", {})[_string(name)] = (_string(path), number)

    def converted(self) -> Converted:
        files = [("udi.toml", _site_text(self.site))]
        files += [
            (f"modules.d/{name}.toml", _module_text(name, file))
            for name, file in sorted(self.modules.items())
        ]
        return Converted(tuple(files), tuple(sorted(self.notes, key=lambda note: note.line)))


def convert(text: str, listing: Callable[[str], Iterable[str]] = lambda folder: ()) -> Converted:
    """Return our files for the text of a udiRoot.conf.

    `listing` returns the names of a folder's files, for etcPath. Raises nothing, whatever the text
    is: notes say what is wrong.
    """
    converter = _Converter(listing)
    for number, line in _lines(text):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if equals:
            converter.line(number, key.strip(), value.strip())
        else:
            converter.notes.append(Note(number, line.strip()[:40], "not KEY=VALUE"))
    return converter.converted()


def _lines(text: str) -> list[tuple[int, str]]:
    """Return (number, text) of the lines; continued ones are joined, with the first's number."""
    found: list[tuple[int, str]] = []
    whole, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        first = first or number
        if line.endswith("\\"):
            whole += line[:-1]
            continue
        found.append((first, whole + line))
        whole, first = "", 0
    return [*found, (first, whole)] if whole else found


def _words(value: str) -> list[str]:
    return value.replace(",", " ").split()


def _renamed(name: str) -> str:
    """Return a module's name, changed if it is one of the two names that mean something here."""
    return f"site-{name}" if name in modules.BUILT_IN else name


def _modules(value: str) -> str:
    return _strings(_renamed(name) for name in schema.module_names(_words(value)))


def _string(value: str) -> str:
    """Return a TOML basic string (toml.io, 1.0: control characters and DEL are escaped)."""
    text = "".join(
        "\\" + c if c in '\\"' else f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else c
        for c in value
    )
    return f'"{text}"'


def _strings(values: Iterable[str]) -> str:
    return "[" + ", ".join(_string(value) for value in values) + "]"


def _limit(value: str) -> str:
    schema.size(value)
    return _string(value)


def _propagation(value: str) -> str:
    return _string(schema.choice("private", "slave")(value))


_SIMPLE: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "system": ("site", "name", lambda value: _string(schema.text(value))),
    "mountPropagationStyle": ("container", "propagation", _propagation),
    "defaultModules": ("modules", "default", _modules),
    "perNodeCachePath": ("cache", "paths", lambda value: _strings((schema.path(value),))),
    "perNodeCacheSizeLimit": ("cache", "limit", _limit),
}


def _site_text(file: _File) -> str:
    out = ["# Site configuration of rootless_udi, made from Shifter's udiRoot.conf."]
    for table, keys in file.tables.items():
        out += ["", f"[{table}]"]
        out += [f"{key} = {value}  # line {line}" for key, (value, line) in keys.items()]
    for volume, line in file.rows:
        out += ["", "[[mount]]", *_row(volume, line)]
        if volume.options:
            out.append(f"options = {_strings(volume.options)}")
    return "\n".join([*out, *_env(file)]) + "\n"


def _module_text(name: str, file: _File) -> str:
    out = [f"# Module {name} of rootless_udi, made from Shifter's udiRoot.conf."]
    out += [f"{key} = {value}  # line {line}" for key, (value, line) in file.top.items()]
    for volume, line in file.rows:
        # Modules bind read-only by default here, and read-write in Shifter.
        options = volume.options if "ro" in volume.options else ("rw", *volume.options)
        unique = tuple(dict.fromkeys(options))
        out += ["", "[[bind]]", *_row(volume, line), f"options = {_strings(unique)}"]
    return "\n".join([*out, *_env(file)]) + "\n"


def _row(volume: Volume, line: int) -> list[str]:
    return [
        f"source = {_string(volume.source)}  # line {line}",
        f"destination = {_string(volume.destination)}",
    ]


def _env(file: _File) -> list[str]:
    out = []
    if file.unset:
        lines = ", ".join(str(line) for line in sorted(set(file.unset.values())))
        out += ["", "[env]", f"unset = {_strings(file.unset)}  # line {lines}"]
    for op, table in file.env.items():
        out += ["", f"[env.{op}]"]
        out += [f"{_string(name)} = {text}  # line {line}" for name, (text, line) in table.items()]
    return out
