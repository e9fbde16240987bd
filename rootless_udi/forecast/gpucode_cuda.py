"""Does the site's NVIDIA driver run the CUDA that the image was made for?

What udi-run checks at a start is asked with the captured driver in place of the host's
(mpi_inject.gpu.cuda_require). Images that declare nothing, as those made by pip, are told by their
CUDA runtime: its driver must be of the same major version or newer, before CUDA 11 of the same
minor version (CUDA Compatibility, "Minor Version Compatibility").
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.forecast import gpucode_rules as rules
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, CheckFinding, Evidence
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.gpu import cuda_require
from rootless_udi.mpi_inject.gpu.checks import image_compat

_NAME = "cuda"
_KEY = "drivers.nvidia.version"
_SINCE = 11
"""The first major version whose minor versions run on each other's drivers."""


class CapturedDriver(Record):
    """The site's driver as the image will see it.

    `cuda` is the newest that it offers, () where not known, and `compat` the image's newer driver
    libraries that udi-run will put first, None for none; `unfit` says why newer ones don't suit.
    """

    version: str
    model: str
    cuda: tuple[int, ...]
    compat: cuda_require.Compat | None = None
    unfit: str = ""

    def offers(self) -> str:
        """Return the newest CUDA as text."""
        return ".".join(map(str, self.cuda)) or "?"


def driver(site: Capture, facts: Mapping[str, Any]) -> CapturedDriver:
    """Return the site's NVIDIA driver, with the image's newer libraries if they go first."""
    known = site.table("drivers").get("nvidia")
    known = known if isinstance(known, dict) else {}
    version, cuda = (
        text if isinstance(text := known.get(k), str) else "" for k in ("version", "cuda")
    )
    models = [gpu.get("name") for gpu in site.rows("gpus") if gpu.get("vendor") == "nvidia"]
    model = next((name for name in models if isinstance(name, str)), "")
    found = image_compat(facts)
    first = cuda_require.compat(environment(facts), found, version, model)
    newest = rules.numbers(cuda) or rules.numbers(cuda_require.cuda_of(version)[0])
    if first and found:
        theirs = rules.numbers(cuda_require.cuda_of(found.version)[0])
        return CapturedDriver(version, model, max(newest, theirs), found)
    return CapturedDriver(version, model, newest, None, cuda_require.unfit(found, version))


def environment(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of an image's configuration."""
    pairs = [text.partition("=") for text in facts.get("env") or () if isinstance(text, str)]
    return {name: value for name, _, value in pairs}


def check(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Compare the CUDA that an image needs with the site's NVIDIA driver (check.Check)."""
    env, runtimes = environment(facts), _runtimes(facts)
    needs = cuda_require.asked(env)
    if not (needs or runtimes):
        return
    if not any(gpu.get("vendor") == "nvidia" for gpu in site.rows("gpus")):
        return  # what that means, the check of GPU code says
    mine = driver(site, facts)
    there = Evidence(_KEY, f"{mine.version}, CUDA {mine.offers()}")
    if not mine.version or not mine.cuda:
        what = "the image needs CUDA, and the capture does not say which driver the site has"
        yield CheckFinding(
            _NAME, UNKNOWN, what, _image(needs, runtimes), Evidence(_KEY, "not known")
        )
        return
    if needs:
        yield _declared(env, needs, mine, there)
    yield from _needed(runtimes, mine, there)


def _image(needs: str, runtimes: list[tuple[str, tuple[int, ...]]]) -> Evidence:
    if needs:
        return Evidence("NVIDIA_REQUIRE_CUDA", needs)
    path, version = runtimes[0]
    return Evidence(path, f"CUDA {'.'.join(map(str, version))}")


def _declared(
    env: Mapping[str, str], needs: str, mine: CapturedDriver, there: Evidence
) -> CheckFinding:
    """Return the answer to NVIDIA_REQUIRE_CUDA, as a start would give it."""
    newer = mine.compat.version if mine.compat else ""
    side = Evidence("NVIDIA_REQUIRE_CUDA", needs)
    try:
        note = cuda_require.check(env, {}, mine.version, mine.model, newer, mine.unfit)
    except UdiError as why:
        return CheckFinding(_NAME, FAILS, str(why), side, there, why.hint)
    if note:
        return CheckFinding(_NAME, UNKNOWN, note, side, there)
    how = f", with the image's own libraries in {mine.compat.folder}" if mine.compat else ""
    what = f"the driver runs the CUDA that the image asks for{how}"
    return CheckFinding(_NAME, RUNS, what, side, there)


def _runtimes(facts: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Return (path, version) of each libcudart of the image, as exactly as a name says it."""
    found = []
    for one in (facts.get("elf") or {}).get("libraries", ()):
        names = [name for name in one.get("names", ()) if name.startswith("libcudart.so.")]
        versions = [rules.numbers(name.removeprefix("libcudart.so.")) for name in names]
        if version := max(versions, key=len, default=()):
            found.append((one["path"], version))
    return found


def _needed(
    runtimes: list[tuple[str, tuple[int, ...]]], mine: CapturedDriver, there: Evidence
) -> Iterator[CheckFinding]:
    """Yield whether the driver runs each CUDA runtime of the image."""
    bad = [one for one in runtimes if not _runs(one[1], mine.cuda)]
    for path, version in runtimes:
        text = ".".join(map(str, version))
        side = Evidence(path, f"CUDA {text}")
        if (path, version) not in bad:
            minor = len(version) > 1 and version[:2] > mine.cuda[:2]
            how = " by minor version compatibility, without compiling PTX" if minor else ""
            yield CheckFinding(_NAME, RUNS, f"the driver runs this CUDA runtime{how}", side, there)
            continue
        yield CheckFinding(
            _NAME,
            FAILS if len(bad) == len(runtimes) else UNKNOWN,
            f"{path} is of CUDA {text}, and the driver {mine.version} offers {mine.offers()}:"
            ' programs that use it fail with "CUDA driver version is insufficient for CUDA runtime'
            ' version"',
            side,
            there,
            f"use an image for CUDA {mine.offers()} or older, or one with NVIDIA's package"
            " cuda-compat, or ask the site for a newer driver",
        )


def _runs(version: tuple[int, ...], cuda: tuple[int, ...]) -> bool:
    if version[0] >= _SINCE:
        return cuda[0] >= version[0]
    return cuda[:2] >= version[:2]
