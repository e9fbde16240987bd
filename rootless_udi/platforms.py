"""Which images a machine can run: the levels of its CPU. Needed by a pull, and by few starts.

As containerd's platforms package has it: amd64 v1 to v4 (x86-64 psABI 1.0, 3.1.1), arm v5 to v8,
arm64 v8.0 to v9.5. A machine runs its own level and lower ones.
"""

import os

from rootless_udi import store_find
from rootless_udi.errors import UdiError
from rootless_udi.image import Image
from rootless_udi.oci import Platform, Reference, platform_of

_AMD64 = (
    "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "avx512bw avx512cd avx512dq avx512f avx512vl",
)
"""What v2, v3 and v4 need beyond the level below, as /proc/cpuinfo writes it."""
_ARM64 = (
    "asimdrdm atomics crc32",
    "dcpop",
    "fcma jscvt lrcpc",
    "asimddp dit flagm ilrcpc uscat",
    "dcpodp flagm2 frint sb",
)
"""The same of v8.1 to v8.5; v9.0 is v8.5 with sve2 (Arm ARM, A2.2; Linux, elf_hwcaps.rst)."""
_BASE = {"arm": "v7", "arm64": "v8"}
_FIRST_CPU = 1 << 14


def here() -> Platform:
    """Return this machine's platform with the best variant that its CPU has."""
    found = platform_of(os.uname().machine)
    try:
        with open("/proc/cpuinfo", "rb") as file:
            text = file.read(_FIRST_CPU).decode(errors="replace")
    except OSError:
        return found
    return found.replace(variant=variant(found.architecture, text) or found.variant)


def variant(architecture: str, cpuinfo: str) -> str:
    """Return the variant that the text of /proc/cpuinfo tells of, "" for the baseline."""
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
    """Return how well an image of `theirs` suits a machine of `ours`; below 0: it can't run.

    No variant is the baseline that every machine has (arm: v7, arm64: v8, amd64: v1). A variant
    that is no number suits a machine of the same name alone.
    """
    if (theirs.os, theirs.architecture) != (ours.os, ours.architecture):
        return -1
    base = _BASE.get(ours.architecture, "v1")
    wanted, have = _level(theirs.variant or base), _level(ours.variant or base)
    if wanted is None or have is None:
        return 1 if theirs.variant == ours.variant else -1
    if ours.architecture == "arm64" and (wanted[0], have[0]) == (8, 9):
        # Arm v9.N has all that v8.(N+5) has.
        have = 8, have[1] + 5
    elif ours.architecture == "arm64" and wanted[0] != have[0]:
        return -1
    return 1 + 100 * wanted[0] + wanted[1] if wanted <= have else -1


def _level(text: str) -> tuple[int, int] | None:
    """Return "v8.2" as (8, 2)."""
    major, _, minor = text.removeprefix("v").partition(".")
    numbers = [part for part in (major, minor or "0") if part.isascii() and part.isdigit()]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def find(stores: tuple[str, ...], reference: Reference) -> store_find.Image | None:
    """Return the image of that name for the best variant that this CPU has, or None."""
    ours = here()
    keys: set[str] = set()
    for store in stores:
        try:
            keys.update(os.listdir(f"{store}/names"))
        except OSError:
            continue
    known = [Platform("linux", *key.split("-", 1)) for key in keys if "-" in key]
    fitting = [one for one in known if suitability(one, ours) >= 0]
    for one in sorted(fitting, key=lambda one: -suitability(one, ours)):
        found = store_find.find(stores, reference, one)
        if found is not None:
            return found
    return None


def check(image: Image, asked: Platform | None) -> None:
    """Raise UdiError where an image is of a variant that was not `asked` for or, where none was,
    that this CPU has not: what is pulled without a platform is the best for who pulls."""
    theirs = Platform("linux", *(str(image.facts.get(key)) for key in ("architecture", "variant")))
    ours = asked or here()
    if theirs.architecture == ours.architecture and suitability(theirs, ours) < 0:
        wanted = f"{asked} is asked for" if asked else f"this node's CPU is {ours}"
        least = asked or Platform("linux", theirs.architecture)
        raise UdiError(
            f"image {image.request} of the store is for {theirs}, and {wanted}",
            f"udi pull --platform={least} {image.request} takes one that "
            + ("suits" if asked else "every node runs"),
        )
