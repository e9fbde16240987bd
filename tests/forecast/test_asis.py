"""The image as such: an ordinary user runs it, read-only."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.forecast import asis, imagefacts
from rootless_udi.forecast.asis_facts import AsIsFacts
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, WITH, CheckFinding
from rootless_udi.forecast.site import Capture
from rootless_udi.plan.options import parse
from tests.kit.gpuimages import needed

SCRIPTS = {
    "fine": "exit 0",
    "writes": "echo x > /opt/new && mkdir /opt/dir && echo y >> /opt/old && rm /opt/gone/old",
    "fails": "echo no licence >&2; exit 3",
    "gosu-entry.sh": 'chown me /data && exec gosu me "$@"',
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with a shell and scripts."""
    root = tmp_path_factory.mktemp("asis") / "root"
    for folder in ("bin", "opt/gone", "private"):
        (root / folder).mkdir(parents=True)
    for name in ("sh", "mkdir", "rm", "sleep"):
        (root / "bin" / name).write_bytes(Path(f"/bin/{name}").resolve().read_bytes())
    for name, text in SCRIPTS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (root / "private/tool").write_text("#!/bin/sh\n")
    for path in (*(root / "bin").iterdir(), root / "private/tool"):
        path.chmod(0o755)
    for path in (root / "opt/old", root / "opt/gone/old"):
        path.write_text("old\n")
    for library in needed(*(root / "bin" / name for name in ("sh", "mkdir", "rm", "sleep"))):
        copy = root / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(library).read_bytes())
        copy.chmod(0o755)
    return root


def looked(
    check: Any,
    root: Path,
    *words: str,
    system: dict[str, Any] | None = None,
    size: int = 0,
    limit: float = 60,
    **facts: Any,
) -> list[CheckFinding]:
    """Return what a check finds for udi-run's options and command, `words`."""
    options = [word for word in words if word.startswith("--")]
    command = [word for word in words if not word.startswith("--")]
    request = parse(["--no-cwd", *options, f"--image={root}", "--", *command], {})
    asked = Asked(str(root), str(root), request, {}, size, limit=limit)
    facts = {"env": ["PATH=/bin"], **facts}
    where = Capture("there", {"system": system or {}})
    found: Iterator[CheckFinding] = check(where, facts, asked)
    return list(found)


RUN = pytest.mark.needs("userns")


@RUN
def test_a_command_that_writes_nothing(root: Path) -> None:
    (one,) = looked(asis.run, root, "fine")
    assert (one.verdict, "with a read-only root" in one.what) == (RUNS, True)
    assert looked(asis.run, root) == []


@RUN
def test_what_a_command_writes_is_listed(root: Path) -> None:
    (one,) = looked(asis.run, root, "writes")
    assert (one.verdict, one.options) == (WITH, ("--writable",))
    assert set(one.what.partition(": ")[2].split()) == {
        "/opt/new",
        "/opt/dir",
        "/opt/old",
        "/opt/gone",
    }
    (one,) = looked(asis.run, root, "writes", "--writable")
    assert (one.verdict, "with a writable root" in one.what) == (RUNS, True)
    assert (root / "opt/old").read_text() == "old\n"


@RUN
def test_a_site_without_overlay_has_no_writable_root(root: Path) -> None:
    (one,) = looked(asis.run, root, "writes", system={"overlay": False})
    assert (one.verdict, "--volume=FOLDER:/opt" in one.remedy) == (FAILS, True)


@RUN
def test_a_command_that_fails_either_way(root: Path) -> None:
    (one,) = looked(asis.run, root, "fails")
    assert (one.verdict, one.image.fact) == (UNKNOWN, "no licence")
    assert looked(asis.run, root, "sleep", "99", limit=2) == []  # said by another check


def gathered(root: Path) -> dict[str, Any]:
    found = imagefacts.gather(str(root), (AsIsFacts,))["asis"]
    assert isinstance(found, dict)
    return found


def test_facts(root: Path) -> None:
    shadow = root / "etc"
    shadow.mkdir(exist_ok=True)
    for name in ("etc/shadow", "opt/secret", "private/key"):
        (root / name).write_text("x")
        (root / name).chmod(0o600)
    (root / "bin/rm").chmod(0o4755)
    (root / "private").chmod(0o700)
    try:
        found = gathered(root)
    finally:
        (root / "private").chmod(0o755)
        (root / "bin/rm").chmod(0o755)
    uid = os.getuid()
    assert found == {
        "private": [["/opt/secret", 0o600, uid], ["/private", 0o700, uid]],
        "setuid": ["/bin/rm"],
        "scripts": [["/bin/gosu-entry.sh", "chown"]],
    }


CLOSED = {"asis": {"private": [["/app", 0o700, 7], ["/app2", 0o600, 0]], "setuid": ["/bin/rm"]}}


@pytest.mark.parametrize(
    ("words", "size", "facts", "verdicts", "says"),
    [
        ([], 9, {"user": "app"}, [RUNS], "USER is app, and it runs as yourself; all files are"),
        ([], 9, {}, [RUNS], "all files are the caller's own"),
        (
            ["--fuse=squashfuse_ll"],
            9,
            {"user": "app"},
            [UNLOOKED],
            "1 files and folders are closed",
        ),
        ([], 0, {"user": "app"}, [UNLOOKED], "2 files and folders are closed to others than"),
        (["rm"], 9, {}, [UNKNOWN, RUNS], "/bin/rm is a setuid program"),
        (["sh"], 9, {"left_out": {"setuid_paths": ["bin/sh"]}}, [UNKNOWN, RUNS], "/bin/sh is a"),
        ([], 9, {"forecast": {}}, [UNKNOWN], "was not looked at"),
        ([], 9, {"forecast": {"asis": {}}}, [], ""),
    ],
)
def test_rights(
    root: Path, words: list[str], size: int, facts: dict[str, Any], verdicts: list[str], says: str
) -> None:
    found = looked(asis.rights, root, *words, size=size, **{"forecast": CLOSED, **facts})
    assert [one.verdict for one in found] == verdicts
    assert not says or says in found[0].what


def test_a_command_in_a_folder_that_is_closed(root: Path) -> None:
    entries: dict[str, list[Any]] = {"private": [], "setuid": []}
    (root / "private").chmod(0o600)
    try:
        # The caller's own folder, without the right to enter it.
        found = looked(asis.rights, root, "/private/tool", forecast={"asis": entries})
    finally:
        (root / "private").chmod(0o755)
    assert [one.verdict for one in found] in ([FAILS], [])
    assert looked(asis.rights, root, "/private/tool", forecast={"asis": entries}) == []


@pytest.mark.parametrize(
    ("words", "facts", "verdicts", "says"),
    [
        ([], {"ports": ["80/tcp", "8080/tcp"]}, [UNKNOWN], "listen on 80/tcp, where only root may"),
        ([], {"ports": ["8080/tcp", "x", "²/tcp"]}, [], ""),
        ([], {"entrypoint": ["/bin/gosu-entry.sh"]}, [UNLOOKED], "ENTRYPOINT is not run"),
        (["--entrypoint"], {"entrypoint": ["gosu-entry.sh"]}, [UNKNOWN], "started by root: it has"),
        (["--entrypoint"], {"entrypoint": ["/bin/fine"]}, [], ""),
        (["--mpi"], {"env": ["FI_PROVIDER=tcp"]}, [UNKNOWN], "it steers the host's MPI, too"),
        (["--mpi", "--env=FI_PROVIDER="], {"env": ["FI_PROVIDER=tcp"]}, [], ""),
        ([], {"env": ["FI_PROVIDER=tcp", "LD_PRELOAD=/x.so"]}, [], ""),
        (["--gpu"], {"env": ["LD_PRELOAD=/x.so"]}, [UNKNOWN], "loaded before the host's libraries"),
        (["--gpu"], {"env": ["LD_LIBRARY_PATH=/a:/cuda/stubs"]}, [UNKNOWN], "/cuda/stubs may hide"),
        (["--gpu"], {"env": ["LD_LIBRARY_PATH=/usr/local/cuda/lib64"]}, [], ""),
        ([], {"env": ["HOME=/home/app"]}, [UNLOOKED], "sets HOME to /home/app"),
    ],
)
def test_configuration(
    root: Path, words: list[str], facts: dict[str, Any], verdicts: list[str], says: str
) -> None:
    scripts = {"asis": {"scripts": [["/bin/gosu-entry.sh", "chown"]]}}
    found = looked(asis.configuration, root, *words, forecast=scripts, **facts)
    assert [one.verdict for one in found] == verdicts
    assert not says or says in found[0].what
    assert all(one.remedy for one in found if one.verdict == UNKNOWN)
