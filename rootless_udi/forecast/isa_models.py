"""Which of qemu's models stands for a CPU, and what a refused instruction proves. Pure.

What a CPU has is archspec's knowledge, by its names and features. Here are only qemu's names for
them, and what was measured of qemu's emulation: 7.2 and 10.0 refuse the instructions that a model
lacks, as the tests try for archspec's features. Two are no exception, since a real CPU does the
same: without abm and bmi1, lzcnt and tzcnt are executed as bsr and bsf. One is: 7.2 executes rdseed
on a model that has rdrand (Ivy Bridge, Haswell). No compiler writes that unasked.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from rootless_udi.base.records import Record

MODELS = {
    "x86_64": "qemu64",
    "x86_64_v2": "Nehalem",
    "x86_64_v3": "Haswell-noTSX",
    "x86_64_v4": "Skylake-Server-noTSX-IBRS",
    "nocona": "qemu64",
    "core2": "Conroe",
    "nehalem": "Nehalem",
    "westmere": "Westmere",
    "sandybridge": "SandyBridge",
    "ivybridge": "IvyBridge",
    "haswell": "Haswell-noTSX",
    "broadwell": "Broadwell-noTSX",
    "skylake": "Skylake-Client-noTSX-IBRS",
    "skylake_avx512": "Skylake-Server-noTSX-IBRS",
    "cascadelake": "Cascadelake-Server-noTSX",
    "icelake": "Icelake-Server-noTSX",
    "sapphirerapids": "SapphireRapids",
    "mic_knl": "KnightsMill",
    "k10": "phenom",
    "bulldozer": "Opteron_G4",
    "piledriver": "Opteron_G5",
    "zen": "EPYC",
    "zen2": "EPYC-Rome",
    "zen3": "EPYC-Milan",
    "zen4": "EPYC-Genoa",
    "zen5": "EPYC-Turin",
}
"""archspec's name -> qemu's model (`qemu-x86_64 -cpu help`)."""
_VEX = (
    *("avx_vnni", "avx_ifma", "avx_ne_convert", "avx_vnni_int8", "avx_vnni_int16", "fma4", "xop"),
    *("gfni", "vaes", "vpclmulqdq", "amx_tile", "amx_int8", "amx_bf16", "cmpccxadd", "sha512"),
    *("sm3", "sm4"),
)
"""Features whose instructions begin with the bytes C4, C5 or 8F (VEX, XOP)."""
_OTHERS: dict[str, Callable[[bytes], bool]] = {
    "rdseed": lambda code: code[:2] == b"\x0f\xc7" and code[2:3] >= b"\xf8",
    "rdpid": lambda code: code[:2] == b"\x0f\xc7" and code[2:3] >= b"\xf8",
    "xsavec": lambda code: code[:2] == b"\x0f\xc7" and code[2:3] < b"\xc0",
    "clzero": lambda code: code[:3] == b"\x0f\x01\xfc",
    "serialize": lambda code: code[:3] == b"\x0f\x01\xe8",
    "pku": lambda code: code[:2] == b"\x0f\x01" and code[2:3] in (b"\xee", b"\xef"),
    "sha_ni": lambda code: code[:2] in (b"\x0f\x38", b"\x0f\x3a") and code[2:3] >= b"\xc8",
    "gfni": lambda code: code[:2] in (b"\x0f\x38", b"\x0f\x3a") and code[2:3] >= b"\xce",
    "movdiri": lambda code: code[:3] == b"\x0f\x38\xf9",
    "movdir64b": lambda code: code[:3] == b"\x0f\x38\xf8",
    "waitpkg": lambda code: code[:2] == b"\x0f\xae",
    "clwb": lambda code: code[:2] == b"\x0f\xae",
    "xop": lambda code: code[:1] == b"\x8f",
    "tbm": lambda code: code[:1] == b"\x8f",
    "3dnow": lambda code: code[:2] == b"\x0f\x0f",
    "3dnowext": lambda code: code[:2] == b"\x0f\x0f",
}
"""Features that qemu 7.2 lacks, by the bytes behind an instruction's prefixes."""
_PREFIXES = frozenset(b"\x66\xf2\xf3\x2e\x36\x3e\x26\x64\x65\xf0") | frozenset(range(0x40, 0x50))
"""Operand size, repetition, segments, lock; REX."""


class Emulation(Record):
    """How a CPU is emulated: what qemu's option -cpu is to be, whose model that is (archspec's name
    of the CPU, or of an ancestor), and what of the CPU's features the emulation lacks.
    """

    cpu: str
    name: str
    lacks: frozenset[str]


class Qemu(Protocol):
    """A qemu, asked for what it knows."""

    def flags(self) -> frozenset[str]:
        """Return the names of CPU features that it knows."""
        ...

    def missing(self, cpu: str) -> frozenset[str] | None:
        """Return what it does not emulate of a model with flags; None for an unknown model."""
        ...


def spelled(feature: str) -> str:
    """Return a feature's name without what archspec, qemu and Linux spell differently."""
    return feature.lower().replace("_", "").replace("-", "").replace(".", "")


def choose(names: Iterable[str], has: Iterable[str], qemu: Qemu) -> Emulation | None:
    """Return the emulation of a CPU; None where `qemu` has no model for it or an ancestor.

    `names` are archspec's: the CPU itself first, then its ancestors, the nearest first; `has` are
    its features, which the model gets besides its own.
    """
    by_spelling = {spelled(flag): flag for flag in qemu.flags()}
    by_spelling["sse3"] = by_spelling.get("pni", "pni")
    flags = {one: by_spelling.get(spelled(one), "") for one in has}
    for name in names:
        model = MODELS.get(name)
        if not model or qemu.missing(model) is None:
            continue
        cpu = ",".join([model, *(f"+{flag}" for flag in sorted(set(flags.values())) if flag)])
        missing = {spelled(one) for one in qemu.missing(cpu) or ()}
        lacks = {one for one, flag in flags.items() if not flag or spelled(flag) in missing}
        return Emulation(cpu, name, frozenset(lacks))
    return None


def needs(code: bytes, has: Iterable[str], lacks: Iterable[str]) -> str:
    """Return the feature that a refused instruction may need, of those that the CPU has and the
    emulation `lacks`; "" where it is none of them, and the CPU would refuse it too.

    Without `code` (it is not known), any of those may be meant.
    """
    lacks = sorted(lacks)
    if not code:
        return lacks[0] if lacks else ""
    at = 0
    while at < len(code) and code[at] in _PREFIXES:
        at += 1
    bare = code[at:]
    if bare[:1] == b"\x62":
        return "avx512f" if any(one.startswith("avx512") for one in has) else ""
    for one in lacks:
        if one in _VEX and bare[:1] in (b"\xc4", b"\xc5", b"\x8f"):
            return one
        if one in _OTHERS and _OTHERS[one](bare):
            return one
    return ""


def kind(code: bytes) -> str:
    """Return in words what family an instruction is of, "" for others."""
    names: Mapping[bytes, str] = {
        b"\x62": "AVX-512",
        b"\xc4": "AVX, AVX2, FMA or BMI",
        b"\xc5": "AVX",
    }
    bare = bytes(code).lstrip(bytes(_PREFIXES))
    return names.get(bare[:1], "")
