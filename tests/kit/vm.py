"""A small virtual machine with another kernel: those of Debian's suites and Ubuntu's, in qemu.

The root file system is the initramfs: a Debian root with the tree in /opt/udi, packed once and kept
beside the other roots (see `images.cache`). What a test adds, files and the list of commands, is a
second archive that the kernel unpacks over it. qemu translates (no KVM is needed), as an ordinary
user, without a network. `tests/programs/vminit` is the first process there, `vmguest.py` runs the
commands; both speak on the console, in lines that begin with "@@".
"""

import fcntl
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kit import images
from tests.kit.places import PROGRAMS, TREE

PACKAGES = (
    "python3-minimal",
    "libpython3-stdlib",
    "squashfs-tools",
    "squashfuse",
    "fuse3",
    "fuse2fs",
    "fuse-overlayfs",
    "kmod",
    "procps",
    "strace",
)
MODULES = ("fuse", "overlay", "loop", "squashfs")
"""Loaded in this order: insmod(8) knows of no dependencies. Those built in are fine."""
USER = 1500


@dataclass(frozen=True)
class Step:
    """A command of the guest: `user` runs as uid 1500 with HOME /home/u, else as root."""

    name: str
    argv: tuple[str, ...]
    user: bool = True
    env: tuple[tuple[str, str], ...] = ()
    seconds: int = 600
    """After which it is killed: everything takes ten times as long as outside."""


@dataclass(frozen=True)
class Done:
    """What a step did; `status` is negative for a signal, as in subprocess."""

    status: int
    stdout: str
    stderr: str


def step(name: str, *argv: str, user: bool = True, seconds: int = 600, **env: str) -> Step:
    """Return a Step."""
    return Step(name, argv, user, tuple(env.items()), seconds)


def kernel(suite: str) -> Path:
    """Return the folder of a suite's newest kernel, unpacked: boot/, lib/modules/. Of Debian it is
    the one for clouds, of Ubuntu the generic one, which it has alone."""
    with open(images.cache() / f"kernel-{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = images.cache() / f"kernel-{suite}"
        if not target.exists():
            _fetch(suite, target)
        return target


def _fetch(suite: str, target: Path) -> None:
    work = target.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "deb"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "list").write_text("".join(f"{line}\n" for line in images.sources(suite)))
    flavour = "generic" if suite in images.UBUNTU else "cloud-amd64"
    options = [
        f"-oDir::Etc::sourcelist={work}/list",
        "-oDir::Etc::sourceparts=/dev/null",
        f"-oDir::State::lists={work}/lists",
        f"-oDir::State::status={work}/status",
        f"-oDir::Cache={work}/cache",
        "-oAPT::Sandbox::User=",
        "-oAcquire::Languages=none",
        "-qq",
    ]

    def run(*argv: str) -> str:
        argv = (argv[0], *options, *argv[1:])
        return subprocess.run(
            argv, cwd=work / "deb", check=True, capture_output=True, text=True
        ).stdout

    run("apt-get", "update")
    found = run("apt-cache", "search", f"^linux-image-[0-9].*-{flavour}$").splitlines()
    names = [line.split()[0] for line in found if "-rt-" not in line and "unsigned" not in line]
    newest = max(names, key=lambda name: [int(x) for x in re.findall(r"\d+", name)])
    # In Debian 14 it holds nothing, and needs packages of the same release with kernel and modules.
    release = newest.removeprefix("linux-image-")
    words = run("apt-cache", "depends", newest).split()
    parts = sorted({word for word in words if word.startswith("linux-") and release in word})
    run("apt-get", "download", newest, *(part for part in parts if part != newest))
    unpacked = work / "unpacked"
    for package in (work / "deb").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    unpacked.rename(target)
    shutil.rmtree(work)


def _root(suite: str, packages: tuple[str, ...]) -> Path:
    """Return the packed root file system, without the tree."""
    tar = images.debian_root(suite, packages)
    target = tar.with_suffix(".cpio.gz")
    with open(images.cache() / "vm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = target.with_suffix(".part")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            subprocess.run(
                ["tar", "-xf", tar, "-C", work, "--exclude=./dev/*", "--no-same-owner"], check=True
            )
            _pack(work, target)
            shutil.rmtree(work)
    return target


def _pack(folder: Path, target: Path) -> None:
    """Pack `folder` as an archive for the kernel, all of it root's."""
    names = b"\0".join(os.fsencode(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    with open(f"{target}.part", "wb") as file:
        cpio = subprocess.Popen(
            ["cpio", "-o0", "-H", "newc", "-R", "0:0", "--quiet"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        gzip = subprocess.Popen(["gzip", "-1n"], stdin=cpio.stdout, stdout=file)
        assert cpio.stdout is not None
        cpio.stdout.close()
        cpio.communicate(names + b"\0")
        assert (cpio.returncode, gzip.wait()) == (0, 0)
    os.rename(f"{target}.part", target)


def _added(
    work: Path, release: str, source: Path, modules: tuple[str, ...], files: Mapping[str, Path]
) -> None:
    """Lay out what this boot adds: modules, the tree, the first process, the test's files."""
    target = work / "mods" / release
    target.mkdir(parents=True)
    for number, module in enumerate(modules):
        # Packages of trixie and later have them below /usr.
        for top in ("lib", "usr/lib"):
            for found in (source / top / "modules").rglob(f"{module}.ko*"):
                shutil.copy(found, target / f"{number:02}-{found.name}")
    (work / "opt/udi").mkdir(parents=True)
    for name in ("bin", "rootless_udi", "fuse", "idmap", "mpi_inject"):
        subprocess.run(["cp", "-a", TREE / name, work / "opt/udi" / name], check=True)
    for name in ("vminit", "vmguest.py"):
        shutil.copy(PROGRAMS / name, work / name)
    (work / "vminit").chmod(0o755)
    for name, path in files.items():
        target = work / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", path, target], check=True)


def boot(
    suite: str,
    steps: Iterable[Step],
    work: Path,
    files: Mapping[str, Path] | None = None,
    *,
    root: str = "bookworm",
    packages: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
    words: str = "",
    seconds: int = 1200,
) -> dict[str, Done]:
    """Boot the kernel of `suite`, run `steps` in order there and return what each did.

    `files` are the test's own, {path in the guest: path here}; `work` is an empty folder. The root
    is Debian's `root` with PACKAGES and `packages`; `modules` are loaded after MODULES; `words` go
    to the kernel, and those with a "=" that it does not know to the first process. After `seconds`
    it is killed (subprocess.TimeoutExpired).
    """
    source = kernel(suite)
    (image,) = source.rglob("vmlinuz*")
    tree = work / "added"
    tree.mkdir(parents=True)
    (release,) = (
        path.name for top in ("lib", "usr/lib") for path in (source / top).glob("modules/*")
    )
    _added(tree, release, source, (*MODULES, *modules), files or {})
    rows = [[s.name, list(s.argv), s.user, dict(s.env), s.seconds] for s in steps]
    (tree / "steps.json").write_text(json.dumps(rows))
    _pack(tree, work / "added.cpio.gz")
    shutil.rmtree(tree)
    with open(work / "initramfs", "wb") as whole:
        for part in (_root(root, (*PACKAGES, *packages)), work / "added.cpio.gz"):
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole)
    argv: list[str | Path] = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
        *("-m", "3000", "-nographic", "-no-reboot", "-nic", "none", "-kernel", image),
        *("-initrd", work / "initramfs"),
        # no_timer_check: a machine of which others take nearly all gets no tick in time, and the
        # kernel would say "IO-APIC + timer doesn't work!" and stop.
        *(
            "-append",
            f"console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check rdinit=/vminit {words}",
        ),
    ]
    # To a file: who looks at it sees how far it is, also where the time was too short.
    with open(work / "console", "wb") as console:
        subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, timeout=seconds
        )
    (work / "initramfs").unlink()
    return _said((work / "console").read_bytes())


def _said(console: bytes) -> dict[str, Done]:
    found: dict[str, Done] = {}
    text = console.decode(errors="replace").replace("\r", "")
    ended = False
    for line in io.StringIO(text):
        _, mark, rest = line.partition("@@")
        if mark and rest.startswith("done "):
            name, status, out, err = json.loads(rest[5:])
            found[name] = Done(status, out, err)
        ended = ended or (bool(mark) and rest.startswith("end"))
    assert ended, f"the machine did not come to its end:\n{text[-4000:]}"
    return found
