"""Shared fixtures. The tests run as an ordinary user; `make test` drops to one when root calls it.

Tests marked `root` start real services (Slurm, Grid Engine) or compare with the kernel's squashfs;
they run as root and run the product as the ordinary user through `user`.
"""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.kit import images, probes
from tests.kit.places import TREE

if TYPE_CHECKING:
    from tests.kit.browser import Browser

# A plugin of some modules, which others import before pytest hears of it.
pytest.register_assert_rewrite("tests.kit.pulling")

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


# The tree may not be the user's to write to, and a shared machine is no place for deadlines.
settings.register_profile(
    "udi", database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("udi")


def pytest_configure(config: pytest.Config) -> None:
    probes.check_words()
    config.addinivalue_line("markers", "root: runs as root, the product as an ordinary user")
    config.addinivalue_line(
        "markers", "needs(word, ...): skips without it; see tests/kit/probes.py"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Root runs the tests marked `root` and nothing else; an ordinary user all the others."""
    want = os.getuid() == 0
    keep = [item for item in items if (item.get_closest_marker("root") is not None) is want]
    drop = [item for item in items if item not in keep]
    if drop:
        config.hook.pytest_deselected(items=drop)
        items[:] = keep


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what failed in the file UDI_FAILED, a line each, for tests/run."""
    if report.failed and (path := os.environ.get("UDI_FAILED")):
        with open(path, "a") as out:
            out.write(f"{report.nodeid}\n")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for word in mark.args:
            probes.need(word)


class User:
    """An ordinary user to run commands as: the caller, or root's test user."""

    def __init__(self, home: Path) -> None:
        name = os.environ.get("UDI_TEST_USER", "udi-test") if os.getuid() == 0 else ""
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
        self.name, self.uid, self.gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        self.home = home
        self.env = {
            "HOME": str(home),
            "USER": self.name,
            "PATH": f"{TREE}/bin:{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "UDI_STORE": str(home / "store"),
            "XDG_RUNTIME_DIR": str(home / "run"),
        }

    def argv(self, *argv: object) -> list[str]:
        """Return `argv` with what drops root's privileges before it."""
        words = [os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in argv]
        if os.getuid() != 0:
            return words
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *words]

    def run(
        self,
        *argv: object,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
        input: str | None = None,
        timeout: float = 120,
        check: bool = False,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `argv` as this user with a clean environment plus `env`; text in and out."""
        return subprocess.run(
            self.argv(*argv),
            env={**self.env, **(env or {})},
            cwd=cwd or self.home,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=check,
        )

    def popen(self, *argv: object, **kwargs: object) -> "subprocess.Popen[str]":
        """Start `argv` as this user; keyword arguments as for subprocess.Popen."""
        env = {**self.env, **kwargs.pop("env", {})}  # type: ignore[dict-item]
        kwargs.setdefault("cwd", self.home)
        return subprocess.Popen(self.argv(*argv), env=env, text=True, **kwargs)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """An ordinary user with an empty home, store and runtime directory of this test's own."""
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    one = User(home)
    for path in (tmp_path, home, home / "run"):
        path.chmod(0o755 if path != home / "run" else 0o700)
        if os.getuid() == 0:
            os.chown(path, one.uid, one.gid)
    if os.getuid() == 0:
        # pytest's temporary folders are for root's eyes alone.
        for folder in tmp_path.parents:
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)
    yield one


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A squashfs file with its facts, made by `udi pull` from an image of busybox.

    ENV has PATH=/bin and GREETING=image; ENTRYPOINT is /bin/echo entry, CMD is "from cmd",
    WORKDIR is /usr.
    """
    folder = tmp_path_factory.mktemp("box")
    config = {
        "Env": ["PATH=/bin", "GREETING=image", "EMPTY=", "NOEQUALS"],
        "Entrypoint": ["/bin/echo", "entry"],
        "Cmd": ["from", "cmd"],
        "WorkingDir": "/usr",
        "User": "nobody",
    }
    images.busybox_layout(folder / "layout", config=config)
    done = subprocess.run(
        [TREE / "bin/udi", "pull", "-q", f"oci:{folder}/layout:latest"],
        env={**os.environ, "UDI_STORE": str(folder / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "store/images" / (done.stdout.strip().replace(":", "-") + ".sqfs")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """The one Chromium of this run; tests take `browser`."""
    probes.need("chromium")
    from tests.kit import browser

    with browser.chromium(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture
def browser(chromium: "Browser") -> "Browser":
    """A Chromium that knows nothing yet: wide, light, with JavaScript."""
    chromium.reset()
    return chromium
