"""udi jupyter: real kernels of real jupyter_client in an image."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import User
from tests.kit import fuseimages, images
from tests.kit.probes import need

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture(scope="module")
def python() -> Path:
    """A Debian 12 with Python 3.11."""
    need("mmdebstrap")
    return fuseimages.from_cache(images.debian_root("bookworm", ("python3-numpy",)), "fuse")


@pytest.fixture(scope="module")
def modules() -> Path:
    """A folder with ipykernel for that Python; the image itself has none."""
    folder = images.cache() / "ipykernel-311"
    with open(images.cache() / "ipykernel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            argv = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            argv += ["--upgrade", "--target", str(folder), "--only-binary=:all:"]
            argv += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3"]
            argv += ["--abi=none"]
            argv += [f"--platform=manylinux{x}_{os.uname().machine}" for x in ("2014", "_2_28")]
            subprocess.run([*argv, "ipykernel"], check=True)
            (folder / "whole").touch()
    return folder


@pytest.fixture
def kernel(
    user: User, python: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Yield a manager of the installed kernel, which `start_kernel` starts in the user's folder."""
    words = (f"--volume={modules}:/opt/kernel", "--env=PYTHONPATH=/opt/kernel", "--name=inside")
    done = user.run("udi", "jupyter", "install", python, *words)
    assert done.returncode == 0, done.stderr
    assert "the kernel inside is there: Jupyter shows it as Python 3.11." in done.stderr
    for name, value in user.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "0")
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="inside")
    manager.start_kernel(cwd=str(user.home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield manager
    if manager.is_alive():
        manager.shutdown_kernel(now=True)


def told(client: Any, code: str) -> str:
    """Return what the kernel prints for `code`, or the name of the exception."""
    found: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            found.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=120)
    return str(reply["content"].get("ename") or "".join(found))


def test_a_kernel(kernel: Any, user: User) -> None:
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        code = "import os, sys; print(sys.version_info[:2], os.getcwd(), os.listdir('/opt'))"
        assert told(client, code).startswith(f"(3, 11) {user.home} ['")
        # Its own child: what Jupyter signals is the kernel.
        pid = int(told(client, "print(os.getpid())"))
        assert pid == kernel.provisioner.pid
        # An interrupt reaches it while it computes.
        request = client.execute("print('begun', flush=True)\nwhile True: pass")
        while client.get_iopub_msg(timeout=120)["content"].get("text") != "begun\n":
            pass
        kernel.interrupt_kernel()
        reply = client.get_shell_msg(timeout=120)
        while reply["parent_header"]["msg_id"] != request:
            reply = client.get_shell_msg(timeout=120)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        kernel.restart_kernel()
        client.wait_for_ready(timeout=120)
        assert told(client, "print('os' in dir())") == "False\n"
        file = kernel.connection_file
        kernel.shutdown_kernel()
        assert not os.path.exists(file) and not os.path.exists(f"/proc/{pid}")
    finally:
        client.stop_channels()


def test_an_image_that_is_gone_is_told_of(user: User, box: Path) -> None:
    done = user.run("udi", "jupyter", "install", "my/gone:1", "--", "sh", "{connection_file}")
    assert done.returncode == 0, done.stderr
    argv = json.loads(Path(done.stdout.strip()).read_text())["argv"]
    (user.home / "c.json").write_text("{}")
    found = [str(user.home / "c.json") if x == "{connection_file}" else x for x in argv]
    done = user.run(*found)
    assert done.returncode == 125
    assert "my/gone:1" in done.stderr and "Traceback" not in done.stderr


def test_list_and_remove(user: User, box: Path) -> None:
    assert "no kernel runs in an image" in user.run("udi", "jupyter", "list").stderr
    kernels = user.home / ".local/share/jupyter/kernels"
    (kernels / "theirs").mkdir(parents=True)
    (kernels / "theirs/kernel.json").write_text('{"argv": ["x"], "display_name": "x"}')
    (kernels / "broken").mkdir()
    (kernels / "broken/kernel.json").write_text("[" * 100_000)
    words = ("--name=ours", "--home", "--language=sh", "--display=A shell")
    done = user.run("udi", "jupyter", "install", *words, box, "--", "sh", "{connection_file}")
    assert done.stdout.strip() == str(kernels / "ours/kernel.json"), done.stderr
    document = json.loads((kernels / "ours/kernel.json").read_text())
    assert document["display_name"] == "A shell" and document["language"] == "sh"
    assert user.run("udi", "jupyter", "list").stdout == f"ours  {box} --home\n"
    rows = json.loads(user.run("udi", "jupyter", "list", "--json").stdout)
    assert rows == [{"name": "ours", "image": str(box), "options": ["--home"]}]
    again = user.run("udi", "jupyter", "install", *words, box, "--", "sh", "{connection_file}")
    assert again.returncode == 125 and "is there already" in again.stderr
    for name in ("theirs", "broken", "no", "../kernels/ours"):
        done = user.run("udi", "jupyter", "remove", name)
        assert done.returncode == 125
        assert f"{name} is no kernel that runs in an image" in done.stderr
    done = user.run(
        "udi", "jupyter", "install", box, "--name=theirs", "--", "a", "{connection_file}"
    )
    assert "is there already, and not of an image" in done.stderr
    assert user.run("udi", "jupyter", "remove", "ours").returncode == 0
    assert not (kernels / "ours").exists() and (kernels / "theirs").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "udi jupyter install: no image is given"),
        (("{box}",), "can't run a kernel of Python: python3: not found"),
        (("{box}", "python3"), "udi jupyter install: python3: what is that?"),
        (("{box}", "--", "sh"), "udi jupyter install: the command has no {connection_file}"),
        (("{box}", "--name=a b", "--", "{connection_file}"), "'a b' is no kernel's name"),
        (("./no.sqfs",), "trying image ./no.sqfs failed: opening image"),
        (("--gpus", "2", "{box}"), "which GPUs a command sees"),
    ],
)
def test_refused(user: User, box: Path, words: tuple[str, ...], line: str) -> None:
    done = user.run("udi", "jupyter", "install", *(w.replace("{box}", str(box)) for w in words))
    assert done.returncode == 125
    assert line in done.stderr and "Traceback" not in done.stderr
    assert not (user.home / ".local/share/jupyter/kernels").exists()


def test_where_kernels_lie(user: User, box: Path) -> None:
    command = ("udi", "jupyter", "install", box, "--name=k", "--", "{connection_file}")
    for env, place in (
        ({"JUPYTER_DATA_DIR": f"{user.home}/j"}, "j/kernels"),
        ({"XDG_DATA_HOME": f"{user.home}/x"}, "x/jupyter/kernels"),
    ):
        assert user.run(*command, env=env).stdout.strip() == f"{user.home}/{place}/k/kernel.json"
    done = user.run("env", "-u", "HOME", *command, env={"XDG_DATA_HOME": ""})
    assert "no place for Jupyter's kernels: HOME is not set" in done.stderr


def test_a_connection_file_that_is_not_there(user: User, box: Path) -> None:
    done = user.run("udi", "jupyter", "start", user.home / "no.json", box, "true")
    assert done.returncode == 125
    assert "starting a kernel: " in done.stderr and "no.json is not there" in done.stderr
