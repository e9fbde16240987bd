"""Which GPU runs which code. Pure.

NVIDIA (CUDA C++ Programming Guide, "Application Compatibility"; Blackwell Compatibility Guide):
a cubin sm_XY runs on GPUs X.Z with Z >= Y; those of Jetson run only their own. PTX compute_XY is
compiled by the driver for X.Y and all later ones, if the driver is new enough for the version of
the PTX language. An "a" (sm_90a) is for that GPU alone, an "f" for its family: X.Z with Z >= Y.

AMD (LLVM, User Guide for AMDGPU Backend): code is for one processor, or for a group ("generic"). A
feature that is named, as in gfx90a:xnack-, must be as the GPU is set; one that is not, fits both.
"""

from collections.abc import Iterable, Mapping
from itertools import product

YES, JIT, NEWER, MAYBE, NO = "yes", "jit", "newer", "maybe", "no"
"""It runs; the driver compiles it; it would if the driver were new enough; can't be told; no."""
_BEST = (YES, JIT, MAYBE, NEWER, NO)
_JETSON = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
_PTX_BY_CUDA = """
6.0=4.0 6.5=4.1 7.0=4.2 7.5=4.3 8.0=5.0 9.0=6.0 9.1=6.1 9.2=6.2 10.0=6.3 10.1=6.4 10.2=6.5
11.0=7.0 11.1=7.1 11.2=7.2 11.3=7.3 11.4=7.4 11.5=7.5 11.6=7.6 11.7=7.7 11.8=7.8
12.0=8.0 12.1=8.1 12.2=8.2 12.3=8.3 12.4=8.4 12.5=8.5 12.7=8.6 12.8=8.7 12.9=8.8 13.0=9.0 13.1=9.1
"""
"""CUDA=PTX: the CUDA whose driver is the first to know a version of the PTX language (PTX ISA,
"Release Notes")."""
_GENERIC = {
    "gfx9-generic": "gfx900 gfx902 gfx904 gfx906 gfx909 gfx90c",
    "gfx9-4-generic": "gfx942 gfx950",
    "gfx10-1-generic": "gfx1010 gfx1011 gfx1012 gfx1013",
    "gfx10-3-generic": "gfx1030 gfx1031 gfx1032 gfx1033 gfx1034 gfx1035 gfx1036",
    "gfx11-generic": "gfx1100 gfx1101 gfx1102 gfx1103 gfx1150 gfx1151 gfx1152 gfx1153",
    "gfx12-generic": "gfx1200 gfx1201",
}
_FEATURES = {
    "gfx906": ("sramecc", "xnack"),
    "gfx908": ("sramecc", "xnack"),
    "gfx90a": ("sramecc", "xnack"),
    "gfx942": ("sramecc", "xnack"),
    "gfx950": ("sramecc", "xnack"),
}
"""Features that can be on or off, of processors that have any; others of the ninth generation have
xnack alone."""


def numbers(text: str) -> tuple[int, ...]:
    """Return a version's numbers; () for what is none."""
    parts = text.split(".")
    ascii_digits = all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts)
    return tuple(map(int, parts)) if ascii_digits else ()


_PTX = {numbers(p): numbers(c) for c, p in (row.split("=") for row in _PTX_BY_CUDA.split())}


def nvidia(code: str, capability: tuple[int, int], cuda: tuple[int, ...]) -> str:
    """Tell whether `code` runs on a GPU; `cuda` is the newest that its driver knows, () unknown."""
    kind, _, rest = code.partition("_")
    name, _, version = rest.partition("@")
    digits = name.rstrip("af")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 6):
        return MAYBE
    made, suffix = divmod(int(digits), 10), name[len(digits) :]
    same = made == capability
    family = made[0] == capability[0] and made[1] <= capability[1]
    if kind == "sm":
        if {made, capability} & _JETSON or suffix == "a":
            return YES if same else NO
        return YES if family else NO
    if kind == "cubin":  # it may be of the kind "a" or "f", which begin with 90
        return YES if same or (family and made < (9, 0)) else MAYBE if family else NO
    if kind not in ("compute", "lto"):
        return MAYBE
    fits = same if suffix == "a" else family if suffix == "f" else made <= capability
    if not fits:
        return NO
    return _compiled(version, cuda) if kind == "compute" else MAYBE


def _compiled(version: str, cuda: tuple[int, ...]) -> str:
    """Tell whether a driver for `cuda` can compile PTX of a version of the language."""
    ptx = numbers(version)
    needed = _PTX.get(ptx[:2]) if len(ptx) == 2 else None
    if needed is None:
        return JIT if ptx and ptx < min(_PTX) else MAYBE
    if not cuda:
        return MAYBE
    return JIT if cuda[:2] >= needed else NEWER


def ptx_cuda(code: str) -> str:
    """Return the CUDA that PTX "compute_90@8.4" needs of a driver ("12.4"), "" where not known."""
    needed = _PTX.get(numbers(code.partition("@")[2]))
    return ".".join(map(str, needed)) if needed else ""


def amd(codes: Iterable[str], arch: str) -> str:
    """Tell whether a part that has these `codes` runs on a GPU ("gfx90a:sramecc+:xnack-").

    A feature that `arch` does not name is not known: YES needs code for both ways.
    """
    name, _, given = arch.partition(":")
    known = {word[:-1]: word[-1] for word in given.split(":") if word[-1:] in ("+", "-")}
    possible = _FEATURES.get(name, ("xnack",) if name.startswith("gfx9") else ())
    open_ones = [feature for feature in possible if feature not in known]
    codes = tuple(codes)
    ways = [
        any(
            _fits(code, name, {**known, **dict(zip(open_ones, states, strict=True))})
            for code in codes
        )
        for states in product("+-", repeat=len(open_ones))
    ]
    if all(ways):
        return YES
    if any(ways) or any(not code.startswith("gfx") for code in codes):
        return MAYBE  # "spirv" is compiled by new drivers; what is not known may be anything
    return NO


def _fits(code: str, name: str, state: Mapping[str, str]) -> bool:
    target, _, features = code.partition(":")
    if target != name and name not in _GENERIC.get(target, "").split():
        return False
    return all(state.get(word[:-1], word[-1]) == word[-1] for word in features.split(":") if word)


def best(answers: Iterable[str]) -> str:
    """Return the most hopeful of several answers, NO for none."""
    found = set(answers)
    return next((answer for answer in _BEST if answer in found), NO)


def special(codes: Iterable[str]) -> bool:
    """Tell whether a part has code for one GPU alone by design (all its codes end with a or f).

    Libraries choose such parts at run time, after they asked what the GPU is.
    """
    return all(code.partition("@")[0].endswith(("a", "f")) for code in codes)
