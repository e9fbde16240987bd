"""A kernel in an image as people use it: in JupyterLab, in a real Chromium."""

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_jupyter import modules, python
from tests.conftest import User
from tests.kit import images
from tests.kit.browser import Browser

__all__ = ["modules", "python"]

pytestmark = [
    pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox", "chromium"),
    # JupyterLab has 219 MB.
    pytest.mark.slow,
]

CELLS = (
    "import os, platform; print(platform.python_version(), os.path.exists('/opt/kernel'))",
    "print('begun')\nwhile True: pass",
    "print('os' in dir())",
)


@pytest.fixture(scope="module")
def lab() -> Path:
    """A folder with JupyterLab for the tests' own Python."""
    folder = images.cache() / "jupyterlab-{}{}".format(*sys.version_info)
    with open(images.cache() / "jupyterlab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            argv = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run(
                [*argv, "--upgrade", "--target", str(folder), "jupyterlab>=4"], check=True
            )
            (folder / "whole").touch()
    return folder


@pytest.fixture
def server(user: User, lab: Path, python: Path, modules: Path) -> Iterator[str]:
    """JupyterLab with the kernel "inside"; yields the address of a notebook of CELLS."""
    words = (f"--volume={modules}:/opt/kernel", "--env=PYTHONPATH=/opt/kernel", "--name=inside")
    user.run("udi", "jupyter", "install", python, *words, check=True)
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell{n}",
                "metadata": {},
                "source": text,
                "outputs": [],
                "execution_count": None,
            }
            for n, text in enumerate(CELLS)
        ],
        "metadata": {"kernelspec": {"name": "inside", "display_name": "x", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (user.home / "work").mkdir()
    (user.home / "work/inside.ipynb").write_text(json.dumps(notebook))
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    argv += ["--ServerApp.port=0", "--IdentityProvider.token=secret", "--LabApp.news_url="]
    argv += [f"--ServerApp.root_dir={user.home}/work"]
    # Of what is installed with --target nothing is where Jupyter looks by itself.
    env = {"PYTHONPATH": str(lab), "JUPYTERLAB_DIR": f"{lab}/share/jupyter/lab"}
    env |= {"JUPYTER_PATH": f"{lab}/share/jupyter", "JUPYTER_CONFIG_PATH": f"{lab}/etc/jupyter"}
    log = user.home / "lab.log"
    with open(log, "w") as out:
        process = user.popen(*argv, env=env, stdout=out, stderr=out)
    try:
        found = None
        while found is None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/lab", log.read_text())
        yield f"http://127.0.0.1:{found[1]}/lab/tree/inside.ipynb?token=secret"
    finally:
        process.terminate()
        process.wait(60)


def test_a_notebook_runs_in_the_image(browser: Browser, server: str, user: User) -> None:
    browser.open(server)

    def output(number: int) -> str:
        cells = browser.all(".jp-Notebook .jp-CodeCell")
        return "".join(one.text for one in cells[number].find_elements("css selector", "pre"))

    def run(number: int) -> None:
        browser.all(".jp-Notebook .jp-CodeCell .jp-InputArea-editor")[number].click()
        button('jp-button[data-command="notebook:run-cell-and-select-next"]')

    def idle() -> bool:
        return re.search(r"Python 3\.11\.\d+ \(.*\) \| Idle", browser.text) is not None

    def button(selector: str) -> None:
        browser.until(lambda: browser.all(selector))[0].click()

    browser.until(lambda: len(browser.all(".jp-Notebook .jp-CodeCell")) == len(CELLS))
    browser.until(idle)
    browser.picture("lab-begins")
    run(0)
    browser.until(lambda: re.match(r"3\.11\.\d+ True", output(0)))
    run(1)
    browser.until(lambda: output(1).startswith("begun"))
    button('jp-button[data-command="notebook:interrupt-kernel"]')
    browser.until(lambda: "KeyboardInterrupt" in output(1))
    run(2)
    browser.until(lambda: output(2).startswith("True"))
    browser.picture("lab-interrupted")
    button('jp-button[data-command="notebook:restart-kernel"]')
    button(".jp-Dialog .jp-mod-accept")
    browser.until(idle)
    run(2)
    browser.until(lambda: output(2).startswith("False"))
    browser.picture("lab-restarted")
