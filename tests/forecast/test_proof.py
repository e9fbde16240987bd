"""The proof of `udi check`: forecasts for real images at three sites, each compared with a run.

A site is this machine with a host MPI in a tree, as a processor that qemu-user stands for, or with
a mount of its own: captured by `udi site capture` and changed only in what is changed for the run
too. Slow; UDI_DOCS=write writes the table of docs/forecast.md, which is otherwise compared.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from rootless_udi.base.records import Record
from rootless_udi.forecast import elfwriter
from rootless_udi.forecast.elfwriter import WrittenLibrary
from tests.conftest import User
from tests.kit import images, mpi, probes, tables
from tests.kit.places import TREE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("userns", "fuse", "mmdebstrap", "mksquashfs", "mpich", "openmpi"),
    pytest.mark.needs("gcc", "musl", "busybox", "qemu-user"),
]
RANKS = 2
BEGIN, END = "<!-- proof: written by the run -->\n", "<!-- end of proof -->\n"


class ProofSite(Record):
    """`host` is one of mpi.HOSTS; `cpu` archspec's name and qemu's model, "" for this CPU.

    `mount` is a folder of the image that the site mounts something over, "" for none.
    """

    name: str
    host: str
    cpu: str = ""
    model: str = ""
    mount: str = ""


SITES = (
    ProofSite("lab: MPICH 4, this CPU", "debian-mpich", mount="/app/data"),
    ProofSite("old: MPICH 3.4, Nehalem", "mpich-3.4.3", "nehalem", "Nehalem"),
    ProofSite("ompi: Open MPI 4.1, zen3", "openmpi-4.1.8", "zen3", "EPYC-Milan"),
)


class ProofImage(Record):
    """An image: its reference for udi-run, made by `make`; the command; what the output has.

    `mpi` says that the command is started by the site's launcher, `program` is a static program of
    the image that stands for it where a processor is emulated.
    """

    name: str
    make: Callable[[], str]
    command: tuple[str, ...]
    says: str
    mpi: bool = False
    program: str = ""


def layout(name: str, entries: list[images.Entry], below: Path | None = None) -> str:
    """Pull an image of these entries into the store of the cache; return its reference.

    `below` is the tar of the layer below them.
    """
    layers = [images.tar(entries)] if below is None else [below.read_bytes(), images.tar(entries)]
    state = hashlib.sha256(layers[-1]).hexdigest()[:8]
    folder = mpi.store().parent / f"proof-{name}-{state}"
    if not (folder / "pulled").exists():
        one = images.Layout(folder)
        one.image("latest", layers, {"Labels": {"name": name}}, compress=None, suffix="")
        mpi.pull(f"oci:{folder}:latest")
        (folder / "pulled").touch()
    return f"oci:{folder}:latest"


MODE = {"mode": 0o755}
USES = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
    static float a[4096], b[4096];
    float sum = 0;
    for (int i = 0; i < 4096; i++) { a[i] = i * argc; b[i] = a[i] * 3 + argc; sum += b[i] * a[i]; }
    return printf("sum %g\\n", sum) < 0;
}
"""


@cache
def program(*flags: str, compiler: str = "gcc", source: str = USES) -> bytes:
    """Return a program that is compiled here."""
    name = hashlib.sha256(repr((flags, compiler, source)).encode()).hexdigest()[:12]
    target = mpi.store().parent / f"proof-{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    argv = [compiler, "-xc", "-", "-xnone", *flags, "-o", str(target)]
    subprocess.run(argv, input=source, text=True, check=True)
    return target.read_bytes()


def static(level: str) -> ProofImage:
    flags = ("-O3", "-ffast-math", "-static", f"-march={level}")
    return ProofImage(
        f"static C, -march={level}",
        lambda: layout(level, [("bin", None, {}), ("bin/calc", program(*flags), MODE)]),
        ("/bin/calc",),
        "sum ",
        program=level,
    )


SCRIPTS = {
    "plain": "#!/bin/sh\necho done\n",
    "lost": "#!/usr/bin/tclsh\n",
    "itself": "#!/bin/sh\necho x > /app/log && echo done\n",
    "tmp": "#!/bin/sh\nf=/tmp/udi-proof-$$; echo x > $f && rm $f && echo done\n",
    "secret": "#!/bin/sh\ncat /app/secret && echo done\n",
}


def scripts() -> str:
    """Return the image with SCRIPTS: a distribution's, with a file for its owner alone."""
    owner = {"uid": 1000, "gid": 1000, "mode": 0o700}
    entries: list[images.Entry] = [
        ("app", None, {}),
        ("app/data", None, {}),
        ("app/secret", b"secret\n", owner),
        *((f"app/{name}", text.encode(), MODE) for name, text in SCRIPTS.items()),
    ]
    return layout("scripts", entries, images.debian_root("bookworm", ("mpich",)))


def hidden() -> str:
    """Return an image with a file where a site mounts something of its own."""
    entries: list[images.Entry] = [
        ("app", None, {}),
        ("app/data", None, {}),
        ("app/data/file", b"data\n", {}),
        ("app/run", b"#!/bin/sh\ncat /app/data/file && echo done\n", MODE),
    ]
    return layout("hidden", entries, images.debian_root("bookworm", ("mpich",)))


def foreign() -> str:
    program = elfwriter.write(WrittenLibrary("aarch64"))
    return layout("aarch64", [("bin", None, {}), ("bin/app", program, MODE)])


def script(name: str, says: str = "done") -> ProofImage:
    """Return one of SCRIPTS as a row."""
    return ProofImage(f"Debian, a script: {name}", scripts, (f"/app/{name}",), says)


MUSL = (
    "#include <stdio.h>\n#include <stdlib.h>\n"
    'int main(void) { return puts(getenv("HOME") ? "musl" : "musl?") < 0; }\n'
)


def musl() -> str:
    loader = Path("/lib/ld-musl-x86_64.so.1")
    entries: list[images.Entry] = [
        *images.busybox_entries(),
        ("lib", None, {}),
        ("lib/ld-musl-x86_64.so.1", loader.resolve().read_bytes(), MODE),
        ("bin/hello", program(compiler="musl-gcc", source=MUSL), MODE),
    ]
    return layout("musl", entries)


def kit(name: str, words: tuple[str, ...] = (mpi.PROGRAM,), called: str = "") -> ProofImage:
    return ProofImage(called or name, lambda: mpi.pulled(name), words, "rank=", mpi=True)


def mpi4py(name: str, release: str) -> ProofImage:
    """Return an image with the wheel of mpi4py and this MPI."""
    return kit(name, ("python3", "-c", mpi.PYTHON), f"mpi4py on {release}")


IMAGES = (
    kit("slurm-mpich"),
    kit("slurm-openmpi"),
    kit("slurm-newer", (mpi.NEWER,)),
    kit("fortran-mpich", (f"{mpi.PROGRAM}-{mpi.IMAGES['fortran-mpich'].languages[0]}",)),
    mpi4py("local-mpich-3.4.3", "MPICH 3.4"),
    mpi4py("bookworm-mpich", "MPICH 4.0"),
    mpi4py("local-mpich-5.0.2", "MPICH 5.0"),
    mpi4py("bookworm-openmpi", "Open MPI 4.1"),
    mpi4py("spack-openmpi-5.0.11", "Open MPI 5.0"),
    static("x86-64"),
    static("x86-64-v3"),
    static("x86-64-v4"),
    ProofImage("musl, dynamic", musl, ("/bin/hello",), "musl"),
    *map(script, SCRIPTS),
    ProofImage("Debian, a script: needs /app/data", hidden, ("/app/run",), "done"),
    ProofImage("a program for aarch64", foreign, ("/bin/app",), "done"),
    ProofImage("no such command", scripts, ("/app/other",), "done"),
)


@cache
def captured(name: str, folder: Path) -> Path:
    """Return the file with the capture of a site, made once."""
    one = next(site for site in SITES if site.name == name)
    user = User(folder)
    env = environment(user, one)
    target = folder / f"{one.name.partition(':')[0]}.json"
    argv = [sys.executable, "-m", "rootless_udi", "site", "capture", "--name=proof"]
    argv.append("--on=compute")
    env["PYTHONPATH"] = str(TREE)
    done = user.run(*argv, env=env)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    if one.cpu:
        import archspec.cpu

        cpu = archspec.cpu.TARGETS[one.cpu]
        document["cpu"] |= {
            "name": cpu.name,
            "generic": cpu.generic.name,
            "features": sorted(cpu.features),
            "model": "",
        }
    target.write_text(json.dumps(document))
    return target


def environment(user: User, one: ProofSite) -> dict[str, str]:
    """Return the variables of a user at a site; the site's mount is in its configuration."""
    env = mpi.environment(user, one.host)
    # The host's module has named a PATH without this environment's Python, which udi needs.
    env["PATH"] = f"{env.get('PATH', user.env['PATH'])}:{Path(sys.executable).parent}"
    folder = user.home / f"site-{one.host}"
    folder.mkdir(exist_ok=True)
    text = mpi.SITE
    if one.mount:
        (user.home / "empty").mkdir(exist_ok=True)
        text += f'[[mount]]\nsource = "{user.home}/empty"\ndestination = "{one.mount}"\n'
    (folder / "udi.toml").write_text(text)
    return env | {"UDI_SITE_DIR": str(folder)}


def forecast(
    user: User, image: ProofImage, one: ProofSite, file: Path
) -> tuple[str, list[str], str]:
    """Return verdict, options and the finding that decides, of `udi check`."""
    argv = [sys.executable, "-m", "rootless_udi", "check", image.make(), "--site", str(file)]
    argv += ["--json", "--no-cwd"]
    env = {"UDI_STORE": str(mpi.store()), "PYTHONPATH": str(TREE)}
    done = user.run(*argv, "--", *image.command, env=env, timeout=600)
    assert done.returncode in (0, 1, 3), done.stderr
    (answer,) = json.loads(done.stdout)["sites"]
    first = [f for f in answer["findings"] if f["verdict"] == answer["verdict"]]
    return answer["verdict"], answer["options"], f"{first[0]['check']}: {first[0]['what']}"


def started(image: ProofImage, one: ProofSite) -> str:
    """Return whose launcher starts an image's ranks: the site's, else that of its distribution."""
    family = "openmpi" if "openmpi" in image.name.lower().replace(" ", "") else "mpich"
    return one.host if family in mpi.families(one.host) else f"debian-{family}"


def ran(user: User, image: ProofImage, one: ProofSite, options: list[str]) -> bool:
    """Tell whether the command does its work at the site, with the options of the forecast."""
    env = environment(user, one)
    if image.program and one.model:
        # The program as the site's processor: no container changes what instructions there are.
        made = user.home / "calc"
        made.write_bytes(program("-O3", "-ffast-math", "-static", f"-march={image.program}"))
        made.chmod(0o755)
        done = user.run("qemu-x86_64-static", "-cpu", one.model, made)
        return done.returncode == 0 and image.says in done.stdout
    launcher = mpi.launcher(started(image, one), RANKS) if image.mpi else []
    argv = [*launcher, str(TREE / "bin/udi-run"), "--no-cwd", *options, image.make()]
    try:
        done = user.run(*argv, *image.command, env=env, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    lines = re.findall(r"^rank=(\d+) (?:size=|sum=\d+ of )(\d+)", done.stdout, re.M)
    together = sorted(lines) == [(str(n), str(RANKS)) for n in range(RANKS)]
    return done.returncode == 0 and (together if image.mpi else image.says in done.stdout)


WORDS = {"runs": "will run", "with": "will run with", "fails": "will not", "unknown": "can't tell"}


def test_each_forecast_is_what_happens(user: User) -> None:
    """No false "will run"; at most one "can't tell" where a run could, one false "will not"."""
    probes.need("userns")
    rows: list[str] = []
    wrong: dict[str, list[str]] = {"will run": [], "will not": [], "can't tell": []}
    for image in IMAGES:
        cells = []
        for one in SITES:
            verdict, options, why = forecast(user, image, one, captured(one.name, user.home))
            happened = ran(user, image, one, options)
            said = WORDS[verdict] + (f" `{' '.join(options)}`" if options else "")
            cells.append(f"{said}; {'ran' if happened else 'did not'}")
            place = f"{image.name} at {one.name}: {why}"
            if verdict in ("runs", "with") and not happened:
                wrong["will run"].append(place)
            elif verdict == "fails" and happened:
                wrong["will not"].append(place)
            elif verdict == "unknown":
                wrong["can't tell"].append(place)
        rows.append(f"| {image.name} | " + " | ".join(cells) + " |")
    heads = " | ".join(one.name for one in SITES)
    table = "\n".join([f"| image | {heads} |", "|---" * (len(SITES) + 1) + "|", *rows]) + "\n"
    print(table, json.dumps(wrong, indent=1))
    same = tables.held("forecast", BEGIN, END, table)
    assert wrong["will run"] == []
    assert len(wrong["will not"]) <= 1 and len(wrong["can't tell"]) <= 1, wrong
    # The page's table is of a processor with AVX-512, which the row of -march=x86-64-v4 shows.
    if "avx512f" in Path("/proc/cpuinfo").read_text():
        assert same
