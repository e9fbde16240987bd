"""Which images a machine can run, by the variants of their platforms. Pure.

A variant is a level of a CPU's instruction set: v1 to v4 of amd64 (x86-64 psABI 1.0, 3.1.1), v5 to
v8 of arm, v8.0 to v9.5 of arm64, as containerd's package "platforms" has it. A machine runs
programs for its own level and for lower ones.
"""

from rootless_udi.plan.reference import Platform

_AMD64 = (
    "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "avx512bw avx512cd avx512dq avx512f avx512vl",
)
"""Flags of /proc/cpuinfo that v2, v3 and v4 need, each besides those of the level below."""
_ARM64 = (
    "asimdrdm atomics crc32",
    "dcpop",
    "fcma jscvt lrcpc",
    "asimddp dit flagm ilrcpc uscat",
    "dcpodp flagm2 frint sb",
)
"""The same for v8.1 to v8.5. v9.0 is v8.5 with sve2 (Arm ARM, A2.2; Linux, elf_hwcaps.rst)."""
_BASE = {"arm": "v7", "arm64": "v8"}
"""The variant that every machine has; v1 for others."""


def variant(architecture: str, cpuinfo: str) -> str:
    """Return a CPU's variant by the content of /proc/cpuinfo; "" for what every machine has."""
    has: set[str] = set()
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            has = set(line.partition(":")[2].split())
            break
    steps = {"amd64": _AMD64, "arm64": _ARM64}.get(architecture, ())
    level = 0
    while level < len(steps) and has.issuperset(steps[level].split()):
        level += 1
    if not level:
        return ""
    if architecture == "amd64":
        return f"v{level + 1}"
    return "v9.0" if level == len(_ARM64) and "sve2" in has else f"v8.{level}"


def suitability(theirs: Platform, ours: Platform) -> int:
    """Return how well an image for `theirs` suits a machine of `ours`: the higher, the better.

    A negative number means that the machine can't run it. An empty variant means what every machine
    has (arm v7, arm64 v8, others v1). A variant that is no number suits only an equal one.
    """
    if (theirs.os, theirs.architecture) != (ours.os, ours.architecture):
        return -1
    base = _BASE.get(ours.architecture, "v1")
    wanted, have = _level(theirs.variant or base), _level(ours.variant or base)
    if wanted is None or have is None:
        return 1 if theirs.variant == ours.variant else -1
    if ours.architecture == "arm64" and (wanted[0], have[0]) == (8, 9):
        # v9.N of Arm includes v8.(N+5).
        have = 8, have[1] + 5
    elif ours.architecture == "arm64" and wanted[0] != have[0]:
        return -1
    return 1 + 100 * wanted[0] + wanted[1] if wanted <= have else -1


def _level(text: str) -> tuple[int, int] | None:
    """Return "v8.2" as (8, 2)."""
    major, _, minor = text.removeprefix("v").partition(".")
    numbers = [part for part in (major, minor or "0") if part.isascii() and part.isdigit()]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None
