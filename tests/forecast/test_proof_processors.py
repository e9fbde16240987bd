"""The proof of what `udi check` finds by running: forecasts for processors, compared with runs.

A site is this machine as a processor that qemu-user stands for. Forecasts run the command in its
image, below qemu in the place of the dynamic linker; the run that they are compared with is of the
same program on this machine, started by qemu itself, and for what no processor decides by udi-run.
Slow; UDI_DOCS=write writes the table of docs/forecast.md, which is otherwise compared.
"""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import archspec.cpu
import pytest

from rootless_udi.base.records import Record
from tests.conftest import User
from tests.kit import gpuimages, images, tables
from tests.kit.places import TREE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("userns", "fuse", "mksquashfs", "gcc", "busybox", "qemu-user", "go-program"),
]
BEGIN, END = "<!-- processors: written by the run -->\n", "<!-- end of processors -->\n"
CPUS = {"ivybridge": "IvyBridge", "haswell": "Haswell-noTSX", "zen3": "EPYC-Milan"}
"""archspec's names -> qemu's."""
MODE = {"mode": 0o755}
EXTENSION = """
#include <Python.h>
static float a[4096], b[4096];
static PyObject *work(PyObject *self, PyObject *args) {
    double sum = 0;
    for (int i = 0; i < 4096; i++) { a[i] = a[i] * 3 + i; b[i] += a[i]; }
    for (int i = 0; i < 4096; i++) sum += b[i];
    return PyFloat_FromDouble(sum);
}
static PyMethodDef methods[] = {{"work", work, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "work", "", -1, methods};
PyMODINIT_FUNC PyInit_work(void) { return PyModule_Create(&module); }
"""
WORKS = "import work; print('sum', work.work())"


class ProcessorImage(Record):
    """An image's files and configuration, its command, what that prints.

    `alone` is the same command outside of the container, for qemu; () where no processor decides.
    """

    name: str
    entries: list[images.Entry]
    command: tuple[str, ...]
    says: str
    alone: tuple[str, ...] = ()
    config: dict[str, Any] = {}  # noqa: RUF012 - never changed


def extension(folder: Path, level: str, python: list[images.Entry]) -> ProcessorImage:
    """Return an image of this Python with a C extension for a level of x86-64."""
    target = folder / level
    target.mkdir()
    (target / "work.c").write_text(EXTENSION)
    argv = ["gcc", "-O3", f"-march={level}", "-shared", "-fPIC", "-o", str(target / "work.so")]
    argv += [f"-I{sysconfig.get_path('include')}", str(target / "work.c")]
    subprocess.run(argv, check=True)
    entries = [*python, ("app", None, {}), ("app/work.so", (target / "work.so").read_bytes(), MODE)]
    program = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    alone = (program, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {WORKS}")
    command = ("/bin/python3", "-c", f"import sys; sys.path.insert(0, '/app'); {WORKS}")
    return ProcessorImage(f"C extension, -march={level}", entries, command, "sum ", alone)


def go_program() -> Path:
    """Return a static program that is written in Go: lefthook, of the wheel of that name."""
    spec = importlib.util.find_spec("lefthook")
    assert spec and spec.origin
    return Path(spec.origin).parent / "bin/lefthook-linux-x86_64/lefthook"


def script(name: str, text: str, extra: dict[str, Any], config: dict[str, Any]) -> ProcessorImage:
    entries = [*images.busybox_entries(), ("app", None, extra)]
    entries.append(("app/run", f"#!/bin/sh\n{text}\n".encode(), {"mode": 0o700, **extra}))
    return ProcessorImage(name, entries, ("/app/run",), "done", config=config)


def made(folder: Path) -> list[ProcessorImage]:
    python = gpuimages.python_entries()
    go = go_program()
    app = {"mode": 0o700, "uid": 1000, "gid": 1000}
    return [
        *(extension(folder, level, python) for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4")),
        ProcessorImage(
            "static Go, no shell in the image",
            [("bin", None, {}), ("bin/tool", go.read_bytes(), MODE)],
            ("/bin/tool", "version"),
            ".",
            (str(go), "version"),
        ),
        script("USER app, files of mode 0700", "echo done", app, {"User": "app"}),
        script("writes into itself", "echo x > /app/log && echo done", MODE, {}),
    ]


def pulled(folder: Path, image: ProcessorImage) -> str:
    """Return the squashfs file of an image that was pulled."""
    layout = images.Layout(folder / "layout")
    layout.image("latest", [images.tar(image.entries)], image.config)
    argv: list[str | Path] = [TREE / "bin/udi", "pull", "-q", f"oci:{folder}/layout:latest"]
    environ = {**os.environ, "UDI_STORE": str(folder / "store")}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(folder / "store/images" / (done.stdout.strip().replace(":", "-") + ".sqfs"))


def capture(folder: Path, name: str) -> Path:
    """Return the file with this machine's capture, as if it had another processor."""
    argv = [sys.executable, "-m", "rootless_udi", "site", "capture", "--name=proof", "--on=compute"]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | PYTHON)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    cpu = archspec.cpu.TARGETS[name]
    features = sorted(cpu.features)
    document["cpu"] |= {"name": cpu.name, "generic": cpu.generic.name, "features": features}
    document["cpu"]["model"] = ""
    target = folder / f"{name}.json"
    target.write_text(json.dumps(document))
    return target


PYTHON = {"PYTHONPATH": str(TREE)}
SAID = {"runs": "will run", "with": "will run with", "fails": "will not", "unknown": "can't tell"}


def forecast(
    user: User, file: str, image: ProcessorImage, site: Path
) -> tuple[str, list[str], str]:
    argv = [sys.executable, "-m", "rootless_udi", "check", file, "--site", str(site), "--json"]
    done = user.run(*argv, "--no-cwd", "--", *image.command, env=PYTHON, timeout=600)
    assert done.returncode in (0, 1, 3), done.stderr
    (answer,) = json.loads(done.stdout)["sites"]
    rows = [one["what"] for one in answer["findings"] if one["verdict"] == answer["verdict"]]
    return answer["verdict"], answer["options"], rows[0]


def ran(user: User, file: str, image: ProcessorImage, model: str, options: list[str]) -> bool:
    """Tell whether the command does its work on a processor, with the forecast's options."""
    argv: list[str | Path] = [TREE / "bin/udi-run", "--no-cwd", *options, file, *image.command]
    if image.alone:
        argv = ["qemu-x86_64-static", "-cpu", model, *image.alone]
    done = user.run(*argv, timeout=300)
    return done.returncode == 0 and image.says in done.stdout


def test_each_forecast_is_what_happens(user: User, tmp_path: Path) -> None:
    """No false "will run" and no "will not" that ran; all can be told."""
    sites = {name: capture(tmp_path, name) for name in CPUS}
    rows, wrong = [], []
    for number, image in enumerate(made(tmp_path)):
        folder = tmp_path / f"image-{number}"
        folder.mkdir()
        file, cells = pulled(folder, image), []
        for name, model in CPUS.items():
            verdict, options, why = forecast(user, file, image, sites[name])
            happened = ran(user, file, image, model, options)
            said = SAID[verdict] + (f" `{' '.join(options)}`" if options else "")
            cells.append(f"{said}; {'ran' if happened else 'did not'}")
            if (verdict in ("runs", "with")) is not happened or verdict == "unknown":
                wrong.append(f"{image.name} as {name}: {said}: {why}; {happened}")
        rows.append(f"| {image.name} | " + " | ".join(cells) + " |")
    table = (
        f"| image | {' | '.join(CPUS)} |\n{'|---' * (len(CPUS) + 1)}|\n" + "\n".join(rows) + "\n"
    )
    assert wrong == [], table
    assert tables.held("forecast", BEGIN, END, table)
