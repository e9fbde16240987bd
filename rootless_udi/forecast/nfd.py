"""The image's needs as an image-compatibility document of Kubernetes' Node Feature Discovery.

Version v1alpha1 (node-feature-discovery, "Image Compatibility Artifact"): clusters that run NFD
choose nodes by it, and `nfd compat validate-node` compares a node. It can say less than a forecast:
only what NFD knows of a node, and so nothing of MPI, of what the site mounts, or of glibc. A rule
is a function of RULES, from the image's facts to rules of NFD.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rootless_udi.forecast import machine
from rootless_udi.forecast.asked import Asked

Facts = Mapping[str, Any]
Rule = dict[str, Any]
"""{"name": text, "matchFeatures": [...]} or with "matchAny"."""

_LEVELS = {
    2: ("SSE42", "SSSE3", "POPCNT", "CX16"),
    3: ("AVX2", "BMI1", "BMI2", "F16C", "FMA3", "LZCNT", "MOVBE"),
    4: ("AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL"),
}
"""Level of x86-64 -> flags of NFD's feature cpu.cpuid that it has beyond the one below."""
_CLASSES = ["0300", "0302", "0380", "1200"]
"""PCI classes of GPUs: display controllers, processing accelerators."""
_PCI = {"nvidia": "10de", "amd": "1002", "intel": "8086"}


def start(facts: Facts, asked: Asked) -> Iterator[Rule]:
    """What every start of udi-run needs: Linux 4.18, FUSE, user namespaces."""
    newer = _version(4, 18)
    yield {"name": "a kernel that mounts FUSE in user namespaces", "matchAny": newer}
    yield _one("FUSE", "kernel.enabledmodule", {"fuse": {"op": "Exists"}})
    yield _one("user namespaces", "kernel.config", {"USER_NS": {"op": "In", "value": ["y"]}})


def kernel(facts: Facts, asked: Asked) -> Iterator[Rule]:
    """The oldest kernel that the image's C library is built for, where it is above 4.18."""
    rows = machine.programs(facts).get("kernels")
    for need, paths in rows.items() if isinstance(rows, dict) else ():
        major, minor = ([int(n) for n in need.split(".")[:2] if n.isdigit()] + [0, 0])[:2]
        if (major, minor) > (4, 18) and any("libc.so" in str(path) for path in paths):
            yield {"name": f"Linux {need}, for the C library", "matchAny": _version(major, minor)}


def processor(facts: Facts, asked: Asked) -> Iterator[Rule]:
    """Levels of x86-64 that the platform's variant or the C library's notes name."""
    level = 0
    variant = str(facts.get("variant") or "")
    if facts.get("architecture") == "amd64" and variant[:1] == "v" and variant[1:].isdigit():
        level = int(variant[1:])
    rows = machine.programs(facts).get("levels")
    for number, paths in rows.items() if isinstance(rows, dict) else ():
        if number.isdigit() and any("libc.so" in str(path) for path in paths):
            level = max(level, int(number))
    flags = [flag for n, names in _LEVELS.items() if n <= level for flag in names]
    if flags:
        wanted = {flag: {"op": "Exists"} for flag in flags}
        yield _one(f"x86-64-v{min(level, 4)}", "cpu.cpuid", wanted)


def gpus(facts: Facts, asked: Asked) -> Iterator[Rule]:
    """A GPU of the vendor that --gpu names, or that the image's variables ask for."""
    env = dict(str(pair).partition("=")[::2] for pair in facts.get("env") or ())
    vendor = asked.request.gpu or ""
    if asked.request.gpu is None and env.get("NVIDIA_REQUIRE_CUDA"):
        vendor = "nvidia"
    if vendor in _PCI:
        wanted = {
            "vendor": {"op": "In", "value": [_PCI[vendor]]},
            "class": {"op": "In", "value": _CLASSES},
        }
        yield _one(f"a GPU of {vendor}", "pci.device", wanted)


RULES: tuple[Callable[[Facts, Asked], Iterator[Rule]], ...] = (start, kernel, processor, gpus)


def _one(name: str, feature: str, expressions: dict[str, Any]) -> Rule:
    return {"name": name, "matchFeatures": [{"feature": feature, "matchExpressions": expressions}]}


def _version(major: int, minor: int) -> list[dict[str, Any]]:
    """Return what matches this version of Linux and later ones."""
    later = {"major": {"op": "Gt", "value": [str(major)]}}
    same = {
        "major": {"op": "In", "value": [str(major)]},
        "minor": {"op": "Gt", "value": [str(minor - 1)]},
    }
    return [
        {"matchFeatures": [{"feature": "kernel.version", "matchExpressions": one}]}
        for one in (later, same)
    ]


def document(facts: Facts, asked: Asked) -> dict[str, Any]:
    """Return the document as JSON's types."""
    rules = [rule for make in RULES for rule in make(facts, asked)]
    words = f"what {asked.image} needs of a node, as far as NFD knows nodes; by udi check"
    return {
        "version": "v1alpha1",
        "compatibilities": [{"description": words, "rules": rules}],
    }


def yaml(value: Any, indent: int = 0) -> str:
    """Return JSON's types as YAML: every text in double quotes."""
    space = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, one in value.items():
            inner = yaml(one, indent + 1)
            between = "\n" if isinstance(one, dict | list) and one else " "
            lines.append(f"{space}{_quoted(key)}:{between}{inner}")
        return "\n".join(lines)
    if isinstance(value, list) and value:
        lines = []
        for one in value:
            inner = yaml(one, indent + 1)
            lines.append(f"{space}- {inner.removeprefix('  ' * (indent + 1))}")
        return "\n".join(lines)
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """Return a double-quoted text of YAML, what is unprintable in escapes."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
