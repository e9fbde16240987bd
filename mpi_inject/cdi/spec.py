"""CDI specifications (Container Device Interface, versions 0.3.0 to 1.1.0): read, check, write.

A specification is a JSON or YAML file in /etc/cdi or /var/run/cdi; a device of it is asked for as
VENDOR/CLASS=NAME. What its edits do to a container is in edits.py. The rules are those of the
specification's text, its JSON schema and its Go library (types of fields; a file must not use
fields that are newer than the version that it names).
"""

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Where = tuple[Any, str | int] | None
    """Where a value is: (where what contains it is, its key or index there); None for the
    document."""

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")

_HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)
_U32, _I64 = (0, 2**32 - 1), (-(2**63), 2**63 - 1)

_NODE = {
    "path": "path",
    "hostPath": "path",
    "type": "text",
    "major": _I64,
    "minor": _I64,
    "fileMode": _U32,
    "permissions": "text",
    "uid": _U32,
    "gid": _U32,
}
_MOUNT = {"hostPath": "path", "containerPath": "path", "options": "texts", "type": "text"}
_HOOK = {"hookName": "text", "path": "path", "args": "texts", "env": "env", "timeout": (1, 2**31)}
_NET = {"hostInterfaceName": "name", "name": "name"}
_RDT = {
    "closID": "text",
    "l3CacheSchema": "text",
    "memBwSchema": "text",
    "schemata": "texts",
    "enableMonitoring": "flag",
    "enableCMT": "flag",
    "enableMBM": "flag",
}
_EDITS = {
    "env": "env",
    "deviceNodes": [_NODE, ("path",)],
    "netDevices": [_NET, ("hostInterfaceName", "name")],
    "mounts": [_MOUNT, ("hostPath", "containerPath")],
    "hooks": [_HOOK, ("hookName", "path")],
    "intelRdt": (_RDT, ()),
    "additionalGids": [_U32],
}
_DEVICE = {"name": "text", "annotations": "map", "containerEdits": (_EDITS, ())}
_SPEC = {
    "cdiVersion": "text",
    "kind": "text",
    "annotations": "map",
    "devices": [_DEVICE, ("name", "containerEdits")],
    "containerEdits": (_EDITS, ()),
}
"""Field -> type: "text", "path" (absolute), ...; (least, most) for an integer; ({...}, required)
for an object; [...] for a list of such objects, or of integers."""

HINT = "mend the CDI file, or have its vendor's tool write it anew"


class Spec(Record):
    """One checked specification: `devices` maps names to edits, `edits` are for each device."""

    path: str
    version: str
    kind: str
    devices: "dict[str, dict[str, Any]]"
    edits: "dict[str, Any]"


class _Fault(Exception):
    """A rule that a document breaks; becomes a UdiError with the file's name."""


def parse(text: str, path: str) -> Spec:
    """Return the specification in `text`, JSON where `path` ends so, YAML otherwise.

    Raises UdiError for what is no valid CDI specification.
    """
    if not path.endswith(".json"):
        return _parse_yaml(text, path)
    try:
        document = fastjson.loads(text)
    except (ValueError, RecursionError) as error:
        raise UdiError(f"reading CDI file {path} failed: not JSON: {error}", HINT) from None
    return check(document, path)


def _parse_yaml(text: str, path: str) -> Spec:
    from rootless_udi.mpi_inject.cdi import yaml_subset

    try:
        document = yaml_subset.loads(text)
    except yaml_subset.YamlError as error:
        advice = "rewrite it as JSON (nvidia-ctk cdi generate --format=json) or in plain block YAML"
        raise UdiError(f"reading CDI file {path} failed: {error}", advice) from None
    return check(document, path)


def check(document: "Any", path: str) -> Spec:
    """Return `document`, a parsed CDI file, as a Spec; raises UdiError for what breaks a rule."""
    try:
        version = document.get("cdiVersion") if isinstance(document, dict) else None
        _version(version)
        _object(document, _SPEC, ("cdiVersion", "kind", "devices"), None)
        kind: str = document["kind"]
        _kind(kind)
        devices: dict[str, dict[str, Any]] = {}
        for device in document["devices"]:
            _name(device["name"], "device name", ":")
            if device["name"] in devices:
                raise _Fault(f"device {device['name']!r} is defined twice")
            devices[device["name"]] = device["containerEdits"]
        if not devices:
            raise _Fault("devices: empty, at least one is needed")
        needed = least_version(document)
        spoken = str(version).removeprefix("v")
        if VERSIONS.index(needed) > VERSIONS.index(spoken):
            raise _Fault(f"uses what came with version {needed} and says cdiVersion {version}")
        for edits in (*devices.values(), document.get("containerEdits", {})):
            _edits(edits)
    except _Fault as fault:
        raise UdiError(f"reading CDI file {path} failed: {fault}", HINT) from None
    return Spec(path, spoken, kind, devices, document.get("containerEdits", {}))


def least_version(document: "dict[str, Any]") -> str:
    """Return the oldest CDI version that has every field which `document` uses."""
    every = [*document["devices"], document]
    edits = [one.get("containerEdits", {}) for one in every]
    if any("netDevices" in e or _newer_rdt(e.get("intelRdt", {})) for e in edits):
        return "1.1.0"
    if any("intelRdt" in e or e.get("additionalGids") for e in edits):
        return "0.7.0"
    if any(one.get("annotations") for one in every) or "." in document["kind"].partition("/")[2]:
        return "0.6.0"
    if any(one["name"][:1].isdigit() for one in document["devices"]):
        return "0.5.0"
    if any(node.get("hostPath") for e in edits for node in e.get("deviceNodes", ())):
        return "0.5.0"
    if any(mount.get("type") for e in edits for mount in e.get("mounts", ())):
        return "0.4.0"
    return "0.3.0"


def _newer_rdt(rdt: "dict[str, Any]") -> bool:
    return "schemata" in rdt or "enableMonitoring" in rdt


def _version(version: object) -> None:
    if not isinstance(version, str):
        raise _Fault("cdiVersion: a string is needed" if version is not None else "no cdiVersion")
    if version.removeprefix("v") not in VERSIONS:
        raise _Fault(f"cdiVersion {version!r} is not known here ({VERSIONS[0]} to {VERSIONS[-1]})")


def _object(
    value: object, fields: "dict[str, Any]", required: "Iterable[str]", where: "Where"
) -> None:
    """Check an object's keys and the types of its values."""
    if not isinstance(value, dict):
        raise _fault(where, "an object is needed")
    for key, inner in value.items():
        kind = fields.get(key)
        if kind is None:
            raise _fault((where, key), "unknown field")
        if kind == "text" or kind == "path":
            # Most values are of these types: checked without a call.
            if (
                not isinstance(inner, str)
                or "\0" in inner
                or (kind == "path" and not _clean(inner))
            ):
                _value(inner, kind, (where, key))
        else:
            _value(inner, kind, (where, key))
    for key in required:
        if key not in value:
            raise _fault((where, key), "missing")


def _value(value: object, kind: "Any", where: "Where") -> None:
    """Check one value against its type; see _SPEC."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _fault(where, "a list is needed")
        for index, item in enumerate(value):
            if len(kind) == 2:
                _object(item, kind[0], kind[1], (where, index))
            else:
                _value(item, kind[0], (where, index))
    elif isinstance(kind, tuple) and isinstance(kind[0], dict):
        _object(value, kind[0], kind[1], where)
    elif isinstance(kind, tuple):
        if not isinstance(value, int) or isinstance(value, bool):
            raise _fault(where, "an integer is needed")
        if not kind[0] <= value <= kind[1]:
            raise _fault(where, f"{value} is not from {kind[0]} to {kind[1]}")
    elif kind == "flag":
        if not isinstance(value, bool):
            raise _fault(where, "true or false is needed")
    elif kind in ("texts", "env"):
        if not isinstance(value, list):
            raise _fault(where, "a list is needed")
        for item in value:
            if not isinstance(item, str) or "\0" in item:
                _text(item, where)
            if kind == "env" and item.find("=") < 1:
                raise _fault(where, f"{item!r} is not NAME=VALUE")
    elif kind == "map":
        if not isinstance(value, dict):
            raise _fault(where, "an object is needed")
        for item in value.values():
            _text(item, where)
    else:
        _text(value, where)
        if kind == "path" and not _clean(str(value)):
            raise _fault(where, f"{value!r} is not an absolute path without '..'")


def _text(value: object, where: "Where") -> None:
    if not isinstance(value, str):
        raise _fault(where, "a string is needed")
    if "\0" in value:
        raise _fault(where, "a NUL character")


def _fault(where: "Where", what: str) -> _Fault:
    """Return the error for the value at `where`, whose path is made into words only now."""
    text = "" if where else " the document"
    while where:
        where, last = where
        text = f"[{last}]{text}" if isinstance(last, int) else f".{last}{text}"
    return _Fault(f"{text[1:]}: {what}")


def _clean(path: str) -> bool:
    return path[:1] == "/" != path and (".." not in path or ".." not in path.split("/"))


def _edits(edits: "dict[str, Any]") -> None:
    """Check the rules that the types don't express."""
    for node in edits.get("deviceNodes", ()):
        if node.get("type", "") not in ("", "b", "c", "u", "p"):
            raise _Fault(f"device {node['path']}: type {node['type']!r} is none of b, c, u, p")
        allowed = node.get("permissions", "")
        if allowed != "none" and any(c not in "rwm" for c in allowed):
            raise _Fault(f"device {node['path']}: permissions {allowed!r} are not of r, w, m")
    for hook in edits.get("hooks", ()):
        if hook["hookName"] not in _HOOKS:
            raise _Fault(f"hookName {hook['hookName']!r} is none of {', '.join(_HOOKS)}")


def _kind(kind: str) -> None:
    vendor, slash, name = kind.partition("/")
    if not slash:
        raise _Fault(f"kind {kind!r} is not VENDOR/CLASS")
    _name(vendor, "vendor", "")
    _name(name, "class", "")


def _name(name: str, what: str, extra: str) -> None:
    """Check a vendor, class or device name; only the last may begin with a digit."""
    good = name.isascii() and name[:1].isalnum() and name[-1:].isalnum()
    good = good and (what == "device name" or name[:1].isalpha()) and len(name) <= 253
    if not good or any(not c.isalnum() and c not in "-_." + extra for c in name):
        raise _Fault(f"{what} {name!r} has characters that CDI does not allow")


def split(device: str) -> tuple[str, str]:
    """Return ("VENDOR/CLASS", "NAME") of a device's full name; raises UdiError."""
    kind, _equals, name = device.partition("=")
    try:
        _kind(kind)
        _name(name, "device name", ":")
    except _Fault as fault:
        advice = "write VENDOR/CLASS=NAME, as nvidia.com/gpu=0; `udi gpu` lists the names"
        raise UdiError(f"--device {device}: no CDI device name: {fault}", advice) from None
    return kind, name


def dump(document: "dict[str, Any]", path: str = "the new file") -> str:
    """Return a specification as JSON text, checked; raises UdiError where it breaks a rule."""
    import json

    check(document, path)
    return json.dumps(document, indent=2) + "\n"
