"""Check whether the host's driver has what a CUDA image requires, by NVIDIA_REQUIRE_CUDA.

The grammar is nvidia-container-runtime's: a space is "or", a comma is "and", a condition is
PROPERTY OPERATOR VALUE with = != < <= > >=. Known properties are cuda and driver (versions) and
brand (a word). Conditions on others (arch, ...), which can't be known without loading the driver,
are ignored, as NVIDIA's runtime ignores properties that it does not know.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.placing import numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DISABLE = "NVIDIA_DISABLE_REQUIRE"
_OPERATORS = ("!=", "<=", ">=", "=", "<", ">")

_CUDA = (
    (367, "8.0"),
    (384, "9.0"),
    (387, "9.1"),
    (396, "9.2"),
    (410, "10.0"),
    (418, "10.1"),
    (440, "10.2"),
    (450, "11.0"),
    (455, "11.1"),
    (460, "11.2"),
    (465, "11.3"),
    (470, "11.4"),
    (495, "11.5"),
    (510, "11.6"),
    (515, "11.7"),
    (520, "11.8"),
    (525, "12.0"),
    (530, "12.1"),
    (535, "12.2"),
    (545, "12.3"),
    (550, "12.4"),
    (555, "12.5"),
    (560, "12.6"),
    (565, "12.7"),
    (570, "12.8"),
    (575, "12.9"),
    (580, "13.0"),
    (590, "13.1"),
    (595, "13.2"),
    (610, "13.3"),
)
"""Driver branch -> newest CUDA that it runs: the table "CUDA Toolkit and Corresponding Driver
Versions" of the release notes of CUDA 13.3 (docs.nvidia.com/cuda/cuda-toolkit-release-notes), for
9.1 that of 9.2 (387.26; later ones say 390.46); 565, which came with no toolkit, says 12.7 in
nvidia-smi.

It is a table, since no file of a driver says it. To ask the driver it would have to be loaded,
which takes 30 ms and wakes up the card.
"""
_STEP = 5
"""Least difference between branches. A driver that is newer than the last branch by as much is of
another branch, whose CUDA is not known here."""

_BRANDS = (
    ("TESLA", "tesla"),
    ("QUADRO RTX", "quadrortx"),
    ("QUADRO", "quadro"),
    ("GEFORCE", "geforce"),
    ("TITAN", "titan"),
    ("NVS", "nvs"),
    ("RTX", "nvidiartx"),
    ("GRID", "grid"),
)
"""As nvidia-smi -q says it ("Product Brand"): GeForce and Titan for their RTX cards too."""


def cuda_of(driver: str) -> tuple[str, bool]:
    """Return the newest CUDA that a driver runs, and whether that is certain.

    It is not for a driver newer than the table, which may run a newer CUDA than the table's last.
    """
    version = numbers(driver)
    if not version:
        return "", False
    found = ""
    for branch, cuda in _CUDA:
        if version[0] >= branch:
            found = cuda
    return found, version[0] < _CUDA[-1][0] + _STEP


def brand_of(model: str) -> str:
    """Return NVML's word for the product line of "NVIDIA A100-SXM4-40GB" and the like."""
    name = model.upper().removeprefix("NVIDIA ")
    for start, brand in _BRANDS:
        if name.startswith(start):
            return brand
    return "nvidia" if name else "unknown"


def satisfied(requirement: str, have: "Mapping[str, str]") -> bool:
    """Tell whether `have` (cuda, driver, brand; any may be missing) meets `requirement`.

    Raises UdiError for a condition that can't be read.
    """
    alternatives = 0
    for term in requirement.split():
        results = [_holds(factor, have) for factor in term.split(",") if factor]
        known = [r for r in results if r is not None]
        if not known:
            continue
        alternatives += 1
        if all(known):
            return True
    return alternatives == 0


def _holds(factor: str, have: "Mapping[str, str]") -> bool | None:
    """Tell whether one condition holds; None where its property is not known here."""
    end = 0
    while end < len(factor) and factor[end] not in "<>=!":
        end += 1
    name, rest = factor[:end], factor[end:]
    operator = next((o for o in _OPERATORS if rest.startswith(o)), "")
    value = rest[len(operator) :]
    if not name or not operator or not value:
        raise _unreadable(factor)
    mine = have.get(name, "")
    if name == "brand":
        if operator not in ("=", "!="):
            raise _unreadable(factor)
        return (mine == value) is (operator == "=")
    if name not in ("cuda", "driver"):
        return None
    wanted = numbers(value)
    if not wanted:
        raise _unreadable(factor)
    return _compare(numbers(mine), operator, wanted) if mine else None


def _unreadable(factor: str) -> UdiError:
    return UdiError(
        f"reading NVIDIA_REQUIRE_CUDA of the image failed: {factor!r} is no condition",
        f"mend the image, or set {_DISABLE}=1",
    )


def _compare(mine: tuple[int, ...], operator: str, wanted: tuple[int, ...]) -> bool:
    length = max(len(mine), len(wanted))
    left = mine + (0,) * (length - len(mine))
    right = wanted + (0,) * (length - len(wanted))
    return {
        "=": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[operator]


def asked(env: "Mapping[str, str]") -> str:
    """Return the image's requirement; for an old image with CUDA_VERSION alone, "cuda>=x.y"."""
    if "NVIDIA_REQUIRE_CUDA" in env:
        return env["NVIDIA_REQUIRE_CUDA"]
    version = numbers(env.get("CUDA_VERSION", ""))
    return f"cuda>={version[0]}.{version[1]}" if len(version) > 1 else ""


def wants(env: "Mapping[str, str]") -> str:
    """Return the CUDA version that the image is made for ("12.4"), or ""."""
    for factor in asked(env).replace(",", " ").split():
        if factor.startswith("cuda>="):
            return factor[6:]
    return ""


def _disabled(env: "Mapping[str, str]", environ: "Mapping[str, str]") -> bool:
    """Tell whether image or caller have switched the check off."""
    value = environ.get(_DISABLE, env.get(_DISABLE, ""))
    return value.lower() in ("1", "t", "true")


class Compat(Record):
    """An image's CUDA compatibility libraries: directory and driver version.

    `drivers` are the branches of the host's driver that they suit, None if they don't say so
    (libraries.cuda_compat).
    """

    folder: str
    version: str
    drivers: "Sequence[int] | None" = None


def compat(env: "Mapping[str, str]", found: Compat | None, driver: str, model: str) -> str:
    """Return why the image's compatibility libraries must go first, "" where they must not.

    NVIDIA's rule (enable-cuda-compat): they must be newer than the host's driver, and say that they
    suit its branch; if they say nothing, they must be of a newer branch. Never on GeForce cards, on
    which forward compatibility does not work (CUDA error 804).
    """
    mine = numbers(driver)
    if found is None or not mine or not numbers(found.version):
        return ""
    if not _newer(found, mine) or brand_of(model).startswith("geforce"):
        return ""
    if found.drivers is not None and mine[0] not in found.drivers:
        return ""
    version = wants(env)
    image = f"CUDA {version}" if version else f"driver {found.version}"
    return f"the image is made for {image}, the host's driver is {driver}: compatibility libraries"


def _newer(found: Compat, mine: tuple[int, ...]) -> bool:
    theirs = numbers(found.version)
    return theirs[0] > mine[0] if found.drivers is None else theirs > mine


def unfit(found: Compat | None, driver: str) -> str:
    """Return why newer compatibility libraries do not suit the host's driver, "" where they do."""
    mine = numbers(driver)
    if found is None or not found.drivers or not mine or mine[0] in found.drivers:
        return ""
    if not _newer(found, mine):
        return ""
    branches = ", ".join(map(str, found.drivers))
    return (
        f"the image's compatibility libraries {found.version} are for host drivers of the branches"
        f" {branches}, not for {driver}"
    )


def check(
    env: "Mapping[str, str]",
    environ: "Mapping[str, str]",
    driver: str,
    model: str,
    newer: str,
    why: str = "",
) -> str:
    """Raise UdiError for an image that the host's driver can't run; else return a note, or "".

    `newer` is the driver version of compatibility libraries that will be used, or ""; `why` is what
    `unfit` returned. The error names both versions.
    """
    requirement = asked(env)
    if not requirement or not driver:
        return ""
    if _disabled(env, environ):
        return f"{_DISABLE} is set: the image's {requirement!r} is not checked"
    cuda, sure = cuda_of(newer or driver)
    have = {"driver": driver, "brand": brand_of(model)}
    if cuda:
        have["cuda"] = cuda
    if satisfied(requirement, have):
        return ""
    if not sure:
        return f"driver {driver} is newer than this program knows: {requirement!r} is taken as met"
    needed = wants(env)
    branch = next((d for d, c in _CUDA if _compare(numbers(c), ">=", numbers(needed))), 0)
    image = f"CUDA {needed}" if needed else repr(requirement)
    newer_driver = f"a driver of branch {branch} or newer" if branch else "a newer driver"
    raise UdiError(
        f"the image needs {image}; the host's NVIDIA driver {driver} runs CUDA {cuda or '?'} at"
        f" most (NVIDIA_REQUIRE_CUDA: {requirement})" + (f"; {why}" if why else ""),
        f"use an image for CUDA {cuda or 'of the host'} or older, or ask the site for"
        f" {newer_driver}; {_DISABLE}=1 tries it all the same",
    )
