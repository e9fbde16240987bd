"""Has the image code for the site's GPUs? "no kernel image is available", told beforehand.

A program's part (what one source file became) fails where it has no code for the GPU. Libraries of
the GPU's maker have parts for one GPU each, and choose at run time; so do parts that are for one
GPU by design (sm_90a). Any other program runs for certain only if all its parts have code.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.forecast import gpucode_cuda, isa_process
from rootless_udi.forecast import gpucode_rules as rules
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.site import Capture

NAMES = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_NAME = "gpu code"
_OWN = ("libcu", "libnv", "libnpp", "libnccl", "libcaffe2_nvrtc", "libroc", "libhip", "libMIOpen")
"""How the file names of NVIDIA's and AMD's own libraries begin, which choose among their parts."""
_OWN_FOLDERS = ("/nvidia/", "/opt/rocm", "/usr/local/cuda")
_SHOWN = 3
"""Files, and architectures of a file, that a finding names; it tells how many there are."""


_LISTS, _MOST_FIT = 4, 0.9
"""A file whose parts have at least so many lists of GPUs, of which this much has code for one, has
parts for other GPUs by design: PyTorch with cuDNN linked in has 12 lists, and 95 % for the V100.
What was compiled for GPUs in one go has one list, or one for each library in it."""


class Judged(Record):
    """What a file has for a GPU: `answer` of gpucode_rules; `fits` of `parts` have code for it.

    `needs` are the names of other such files that it is linked to. `apart` parts more are for other
    GPUs alone, in a file that has a part for each kind.
    """

    path: str
    answer: str
    fits: int
    parts: int
    codes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    apart: int = 0

    @property
    def name(self) -> str:
        """The name of the file alone."""
        return self.path.rpartition("/")[2]


def wants_gpu(site: Capture, asked: Asked) -> bool:
    """Tell whether a launch of this kind brings GPUs in: by option, or by a default module."""
    request = asked.request
    if request.gpu is not None or request.device:
        return request.gpu != "none" or bool(request.device)
    return "gpu" in (site.table("config").get("default_modules") or ())


def check(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Compare the code for GPUs in an image with the site's GPUs (check.Check)."""
    code = (facts.get("forecast") or {}).get("gpucode")
    wants = wants_gpu(site, asked)
    if not isinstance(code, dict):
        yield CheckFinding(_NAME, UNKNOWN, "the image was not searched for code for GPUs")
        return
    files = [*code.get("files", ()), *code.get("folders", ())]
    vendors = [vendor for vendor in ("nvidia", "amd") if any(vendor in one for one in files)]
    yield from _unread(code)
    if not site.knows("gpus"):
        if vendors or wants:
            what = "the image has code for GPUs, and the capture does not say which the site has"
            yield CheckFinding(_NAME, UNKNOWN, what, _files(files), Evidence("gpus", "not known"))
        return
    gpus = site.rows("gpus")
    if not vendors:
        yield CheckFinding(_NAME, RUNS, "the image's programs have no code for GPUs")
        return
    here = [vendor for vendor in vendors if any(gpu.get("vendor") == vendor for gpu in gpus)]
    if not here:
        yield _elsewhere(files, vendors, gpus, wants, asked)
    for vendor in here:
        for gpu in _distinct(gpus, vendor):
            yield from _judge(files, vendor, gpu, wants, gpucode_cuda.driver(site, facts))


def _unread(code: Mapping[str, Any]) -> Iterator[CheckFinding]:
    for path, why in code.get("damaged", ()):
        yield CheckFinding(_NAME, UNKNOWN, f"{path} can't be read for GPU code: {why}")
    if code.get("more"):
        what = f"{code['more']} more files have code for GPUs than are listed"
        yield CheckFinding(_NAME, UNKNOWN, what)


def _files(files: list[Mapping[str, Any]]) -> Evidence:
    """Return the first file, and the architectures of it."""
    if not files:
        return Evidence()
    one = files[0]
    codes = [c for vendor in ("nvidia", "amd") for sig in one.get(vendor, ()) for c in sig.split()]
    return Evidence(one["path"], _list(tuple(dict.fromkeys(codes))))


def _list(words: tuple[str, ...], most: int = 12) -> str:
    text = " ".join(words[:most])
    return text if len(words) <= most else f"{text} and {len(words) - most} more"


def _elsewhere(
    files: list[Mapping[str, Any]],
    vendors: list[str],
    gpus: list[dict[str, Any]],
    wants: bool,
    asked: Asked,
) -> CheckFinding:
    """Return the finding for an image whose code is for no maker's GPUs that the site has."""
    made = " and ".join(NAMES[vendor] for vendor in vendors)
    have = " and ".join(dict.fromkeys(NAMES.get(g.get("vendor", ""), "unknown") for g in gpus))
    site = Evidence("gpus", f"{have} GPUs" if gpus else "none")
    if wants:
        what = (
            f"its code is for GPUs of {made}; the site has {f'those of {have}' if have else 'none'}"
        )
        remedy = f"use a site with GPUs of {made}, or an image for those of {have or 'none'}"
        return CheckFinding(_NAME, FAILS, what, _files(files), site, remedy)
    ran = asked.memo.get("run")
    if isinstance(ran, isa_process.Outcome) and ran.fine:
        what = f"it has code for GPUs of {made}; the command ran here without any, as it will there"
        return CheckFinding(_NAME, RUNS, what, _files(files), site)
    what = (
        f"it has code for GPUs of {made}, which the site has not; no file says whether it does"
        " without"
    )
    return CheckFinding(
        _NAME, UNKNOWN, what, _files(files), site, "give the command to check (-- CMD)"
    )


def _distinct(gpus: list[dict[str, Any]], vendor: str) -> list[dict[str, Any]]:
    """Return one GPU of each architecture."""
    found: dict[Any, dict[str, Any]] = {}
    for gpu in gpus:
        if gpu.get("vendor") == vendor:
            found.setdefault(str(gpu.get("capability") or gpu.get("arch")), gpu)
    return list(found.values())


def _judge(
    files: list[Mapping[str, Any]],
    vendor: str,
    gpu: Mapping[str, Any],
    wants: bool,
    driver: gpucode_cuda.CapturedDriver,
) -> Iterator[CheckFinding]:
    """Yield the findings for one kind of GPU."""
    name = f"{gpu.get('name') or NAMES[vendor] + ' GPU'}"
    arch = str(gpu.get("capability" if vendor == "nvidia" else "arch") or "")
    word = f"sm_{arch.replace('.', '')}" if vendor == "nvidia" else arch
    fits = _judge_of(driver, vendor, arch)
    if fits is None:
        what = f"the capture does not say which architecture the site's {name} has"
        yield CheckFinding(_NAME, UNKNOWN, what, _files(files), Evidence("gpus", name))
        return
    there = Evidence("gpus", f"{name}: {word}")
    judged = [_file(one, vendor, fits) for one in files if vendor in one]
    mine = [one for one in judged if not _is_own(one.path)]
    deciding = mine or judged
    useless = _useless(deciding)
    if all(one.path in useless for one in deciding):
        without = [one for one in deciding if one.answer in (rules.NO, rules.NEWER)]
        yield _none(without, word, there, driver)
        return
    yield from _partly(mine, judged, word, there)
    have = [one for one in judged if one.answer in (rules.YES, rules.JIT)]
    compiled = [one for one in have if one.answer == rules.JIT]
    if have:
        one = (compiled or have)[0]
        how = "; the driver compiles it at the first start" if compiled else ""
        yield CheckFinding(
            _NAME,
            RUNS if wants else WITH,
            f"{len(have)} of {len(judged)} files with GPU code have some for {word}{how}",
            Evidence(one.path, _list(one.codes)),
            there,
            options=() if wants else ("--gpu",),
        )


def _judge_of(
    driver: gpucode_cuda.CapturedDriver, vendor: str, arch: str
) -> "Callable[[tuple[str, ...]], str] | None":
    """Return what tells of a part's codes whether they run on a GPU; None for an unknown GPU."""
    if vendor == "amd":
        return (lambda codes: rules.amd(codes, arch)) if arch.startswith("gfx") else None
    number = rules.numbers(arch)
    if len(number) != 2:
        return None
    capability, cuda = (number[0], number[1]), driver.cuda
    return lambda codes: rules.best(rules.nvidia(code, capability, cuda) for code in codes)


def _file(one: Mapping[str, Any], vendor: str, fits: "Callable[[tuple[str, ...]], str]") -> Judged:
    """Judge all parts of a file."""
    answers, fit, parts = [], 0, 0
    for text, count in one[vendor].items():
        codes = tuple(text.split())
        answer = fits(codes)
        answers.append(answer)
        if answer in (rules.YES, rules.JIT) or not rules.special(codes):
            parts += count
            fit += count if answer in (rules.YES, rules.JIT) else 0
    every = tuple(dict.fromkeys(code for text in one[vendor] for code in text.split()))
    needs = tuple(one.get("needs", ()))
    apart = 0
    if len(answers) >= _LISTS and fit >= _MOST_FIT * parts:
        parts, apart = fit, parts - fit
    return Judged(one["path"], rules.best(answers), fit, parts, every, needs, apart)


def _useless(judged: list[Judged]) -> set[str]:
    """Return the paths of files without code for the GPU, and of those that need such a one."""
    bad = {one.path for one in judged if one.answer in (rules.NO, rules.NEWER)}
    while True:
        names = {one.name for one in judged if one.path in bad}
        more = {one.path for one in judged if names & set(one.needs)} - bad
        if not more:
            return bad
        bad |= more


def _is_own(path: str) -> bool:
    """Tell whether a file is a library of the GPU's maker."""
    return path.rpartition("/")[2].startswith(_OWN) or any(part in path for part in _OWN_FOLDERS)


def _none(
    without: list[Judged], word: str, there: Evidence, driver: gpucode_cuda.CapturedDriver
) -> CheckFinding:
    """Return the finding for an image of which no program has code for the site's GPU."""
    one = without[0]
    more = f" (nor have {len(without) - 1} more files)" if len(without) > 1 else ""
    image = Evidence(one.path, _list(one.codes))
    if one.answer == rules.NEWER:
        return _too_new(image, one, word, driver)
    error = "hipErrorNoBinaryForGpu: unable to find code object for all current devices"
    option = f"--offload-arch={word}"
    if word.startswith("sm_"):
        error = "no kernel image is available for execution on the device"
        option = _gencode(word)
    what = f'it has no code for {word}: it would fail with "{error}"{more}'
    remedy = f"rebuild with {option}, or use a release of that program for these GPUs"
    return CheckFinding(_NAME, FAILS, what, image, there, remedy)


def _too_new(
    image: Evidence, one: Judged, word: str, driver: gpucode_cuda.CapturedDriver
) -> CheckFinding:
    """Return the finding for PTX of a newer CUDA than the driver can compile."""
    made = filter(None, map(rules.ptx_cuda, one.codes))
    needs, offers = ", ".join(dict.fromkeys(made)), driver.offers()
    what = (
        f"for {word} it has PTX alone, of CUDA {needs}, and the driver compiles that of CUDA"
        f" {offers} at most: it would fail with cudaErrorUnsupportedPtxVersion"
    )
    remedy = (
        f"rebuild with {_gencode(word)}, or with CUDA {offers}, or ask the site for a driver of"
        f" CUDA {needs}"
    )
    there = Evidence("drivers.nvidia.version", f"{driver.version}, CUDA {offers}")
    return CheckFinding(_NAME, FAILS, what, image, there, remedy)


def _gencode(word: str) -> str:
    return f"-gencode arch={word.replace('sm', 'compute')},code={word}"


def _partly(
    mine: list[Judged], judged: list[Judged], word: str, there: Evidence
) -> Iterator[CheckFinding]:
    """Yield what only some parts, or some files, have code for."""
    for one in judged:
        sure = one.answer in (rules.YES, rules.JIT)
        if one in mine and (not sure or one.fits < one.parts):
            what = (
                f"{one.fits} of its {one.parts} parts have code for {word}"
                if sure
                else f"whether it has code for {word} can't be told"
                if one.answer == rules.MAYBE
                else f"it has no code for {word}: what calls it fails"
            )
            remedy = "try it there, or use a release that was built for these GPUs"
            codes = Evidence(one.path, _list(one.codes))
            yield CheckFinding(_NAME, UNKNOWN, f"{one.path}: {what}", codes, there, remedy)
    for one in judged:
        if one.apart and one in mine:
            every = one.parts + one.apart
            what = f"{one.path}: {one.apart} of its {every} parts are for other GPUs than {word}; a"
            what += " library with many lists of GPUs chooses by the GPU what it calls"
            codes = Evidence(one.path, _list(one.codes))
            yield CheckFinding(_NAME, UNLOOKED, what, codes, there)
    others = [one for one in judged if one not in mine and one.answer not in (rules.YES, rules.JIT)]
    if others:
        what = (
            f"{len(others)} of the GPU maker's libraries have no code for {word}; who calls them is"
            " not looked at"
        )
        yield CheckFinding(
            _NAME, UNLOOKED, what, Evidence(others[0].path, _list(others[0].codes)), there
        )
