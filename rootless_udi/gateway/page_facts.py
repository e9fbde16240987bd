"""One image's facts in words: its parts, MPI, GPUs, and how it is run.

The facts were written by a pull, but what an image's maker chooses is in them (labels, history):
all of it is shown as text, and as much of it as a page can hold.
"""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.gpu import cuda_require
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.mpi import planner
from rootless_udi.plan.reference import DOCKER_HUB, parse
from rootless_udi.shifter.lines import tag_of

_ROWS = 100
"""Most labels, variables and layers that are shown."""
_LONGEST = 400
_GPU = {"libcudart.so": "CUDA", "libamdhip64.so": "ROCm", "libze_loader.so": "oneAPI Level Zero"}


class LayerStep(Record):
    """A step of an image's history: bytes of its compressed layer, -1 where it has none."""

    how: str
    size: int
    digest: str = ""


class ImageFacts(Record):
    """What a page shows of an image; texts may be of any kind and length up to _LONGEST."""

    layers: tuple[LayerStep, ...]
    more_layers: int
    looked: bool
    """Whether anybody has looked for MPI and GPU libraries in it: not in what was imported."""
    mpi: str
    mpi_hint: str
    gpu: str
    gpu_hint: str
    libc: str
    command: str
    workdir: str
    user: str
    created: str
    size: int
    files: int
    env: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    """Those of udi-run that an image like this wants."""


def read(facts: Mapping[str, Any]) -> ImageFacts:
    """Return the facts for a page."""
    elf = facts.get("elf") or {}
    env = dict(line.partition("=")[::2] for line in facts.get("env", ()))
    families = _families(elf)
    mpi, mpi_hint = _mpi(elf, families)
    gpu, gpu_hint = _gpu(elf, env)
    layers = _layers(facts)
    command = [*facts.get("entrypoint", ()), *facts.get("cmd", ())]
    options = (["--mpi"] if families else []) + (["--gpu"] if gpu else [])
    return ImageFacts(
        layers=layers[:_ROWS],
        more_layers=max(0, len(layers) - _ROWS),
        looked="elf" in facts,
        mpi=mpi,
        mpi_hint=mpi_hint,
        gpu=gpu,
        gpu_hint=gpu_hint,
        libc=_libc(elf),
        command=_short(shlex.join(map(str, command))),
        workdir=_short(facts.get("workdir", "")),
        user=_short(facts.get("user", "")),
        created=_short(facts.get("created", "")),
        size=int(facts.get("size", 0)),
        files=int(facts.get("files", 0)),
        env=_pairs(env.items()),
        labels=_pairs(dict(facts.get("labels", {})).items()),
        options=tuple(options),
    )


def shown(name: str, registry: str) -> str:
    """Return a name of the store as users type it, where `registry` is the site's default."""
    try:
        reference = parse(name)
    except UdiError:
        return name
    return tag_of(reference) if registry == DOCKER_HUB else reference.canonical


def commands(name: str, digest: str, options: Iterable[str]) -> list[tuple[str, str]]:
    """Return (title, text) of each way to run an image."""
    words = " ".join(["udi-run", *options])
    image = shlex.quote(name)
    batch = f"#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --image={image}\nsrun {words} ./app"
    return [
        ("On this machine", f"{words} {image} ./app"),
        ("In a job", f"srun -n 64 {words} {image} ./app"),
        ("A batch script, where Slurm has the plugin", batch),
        ("Shifter's words", f"srun -n 64 shifter --image={image} ./app"),
        ("This very image, whatever the tag comes to mean", f"{words} {digest} ./app"),
    ]


def _families(elf: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return planner.wanted_families(dict(elf))
    except (KeyError, TypeError):
        # Written by a version that did not look.
        return ()


def _mpi(elf: Mapping[str, Any], families: tuple[str, ...]) -> tuple[str, str]:
    if families:
        through = " through mpi4py" if elf.get("mpi4py") else ""
        text = " and ".join(abi.NAMES[one] for one in families)
        return f"{text}{through}", "--mpi puts the site's own in its place"
    static = elf.get("static") or ()
    if static:
        return f"linked into {_short(static[0])}", "the site's own can't replace it"
    return "", ""


def _gpu(elf: Mapping[str, Any], env: Mapping[str, str]) -> tuple[str, str]:
    version = cuda_require.wants(env)
    provides = [str(one) for one in elf.get("provides") or ()]
    found = [name for start, name in _GPU.items() if any(x.startswith(start) for x in provides)]
    if version:
        found = [f"CUDA {version}", *(x for x in found if x != "CUDA")]
    needs = env.get("NVIDIA_REQUIRE_CUDA", "")
    return _short(", ".join(found)), f"needs {_short(needs)}" if needs else ""


def _libc(elf: Mapping[str, Any]) -> str:
    name, versions = str(elf.get("libc") or ""), elf.get("libc_versions") or ()
    glibc = [str(one) for one in versions if str(one).startswith("GLIBC_2")]
    return f"{name} {glibc[-1].removeprefix('GLIBC_')}" if glibc else name


def _layers(facts: Mapping[str, Any]) -> tuple[LayerStep, ...]:
    """Return the steps of the history, the first at the top; bare layers where there is none."""
    digests = iter(facts.get("layers", ()))
    history = facts.get("history", ())
    if not history:
        return tuple(LayerStep("", -1, str(one)) for one in digests)
    found = []
    for _, how, size in history:
        digest = str(next(digests, "")) if size >= 0 else ""
        found.append(LayerStep(_step(str(how)), int(size), digest))
    return tuple(found)


def _step(how: str) -> str:
    """Return a step without what Docker writes around it."""
    how = how.removeprefix("/bin/sh -c ").removeprefix("#(nop) ").removesuffix("# buildkit")
    return _short(" ".join(how.split()))


def _pairs(rows: Iterable[tuple[Any, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((_short(str(name)), _short(str(value))) for name, value in list(rows)[:_ROWS])


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
