"""What a test needs from the machine. Absent means skipped, unless UDI_MUST_HAVE names it: failed.

UDI_MUST_HAVE is a comma-separated list of the words below; CI sets it, so that CI can't pass by
skipping. An unknown word is an error.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.kit.places import TREE

APPTAINER = "/opt/peers/root/usr/bin/apptainer"
"""Put there by bench/get-peers."""


def _command(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _userns() -> bool:
    argv = ["unshare", "--user", "--map-current-user", "--mount", "true"]
    return shutil.which("unshare") is not None and subprocess.run(argv).returncode == 0


def _fuse() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK)


def _gpu() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


def lmod() -> str:
    """Return Lmod's file for bash, below its version's folder as Debian has it; "" for none."""
    found = sorted(Path("/usr/share/lmod").glob("*/init/bash"))
    return str(found[0]) if found else ""


def _installers() -> bool:
    """pip, pipx, uv, and the packages that they need (tests/setup.sh)."""
    return _command("pipx", "uv")() and (Path(sys.prefix) / "wheels").is_dir()


def _decompressors() -> bool:
    """Every package and library that can undo one of squashfs's compressors."""
    from rootless_udi.fuse import decompress

    try:
        for candidates in decompress._CANDIDATES.values():
            for candidate in candidates:
                candidate()
    except (ImportError, OSError):
        return False
    return True


def _module(name: str) -> Callable[[], bool]:
    def probe() -> bool:
        from importlib.util import find_spec

        spec = find_spec(name)  # a bare folder of that name (our fuse/) has no origin
        return spec is not None and spec.origin is not None

    return probe


def postgres_programs() -> str:
    """Return the folder with initdb and pg_ctl, as Debian has it for each version; "" for none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return str(found[-1].parent) if found else ""


def _gateway() -> bool:
    from rootless_udi.gateway import extra

    return all(_module(name)() for name in extra.MODULES)


def _chromium() -> bool:
    modules = ("selenium", "axe_core_python")
    return _command("chromium", "chromedriver")() and all(_module(name)() for name in modules)


def _openmpi4() -> bool:
    command = ["mpirun.openmpi", "--version"]
    return _command(command[0])() and b" 4." in subprocess.check_output(command)


PROBES: dict[str, Callable[[], bool]] = {
    "userns": _userns,
    "fuse": _fuse,
    "gpu": _gpu,
    "squashfuse": _command("squashfuse_ll"),
    "mksquashfs": _command("mksquashfs", "unsquashfs"),
    "tar2sqfs": _command("tar2sqfs"),
    "nginx": lambda: (
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None
    ),
    "registry": _command("docker-registry", "htpasswd", "openssl"),
    "skopeo": _command("skopeo"),
    "umoci": _command("umoci"),
    "dockerd": _command("dockerd", "docker"),
    "mmdebstrap": _command("mmdebstrap"),
    "busybox": _command("busybox"),
    "zstd": _command("zstd"),
    "curl": _command("curl"),
    "sshd": lambda: (
        bool(shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")) and _command("ssh", "sftp")()
    ),
    "rsync": _command("rsync"),
    "strace": _command("strace"),
    "gcc": _command("gcc"),
    "aarch64": _command("aarch64-linux-gnu-gcc", "qemu-aarch64-static"),
    "joiner": (TREE / "build/joiner/udi-run").exists,
    "apptainer": _command(APPTAINER),
    "bwrap": _command("bwrap"),
    "musl": _command("musl-gcc"),
    "slurm": _command("srun", "slurmctld", "slurmd", "munged"),
    # Debian's Slurm 26 was built without it.
    "slurm-pmix": lambda: any(Path("/usr/lib").glob("*/slurm*/mpi_pmix*.so")),
    "gridengine": _command("qsub", "sge_qmaster"),
    "mpich": _command("mpicc.mpich", "mpiexec.hydra"),
    "openmpi": _command("mpicc.openmpi", "mpiexec.openmpi"),
    "openmpi4": _openmpi4,
    "openmpi-c++": lambda: any(Path("/usr/lib").glob("*/libmpi_cxx.so.40")),
    "fuse-overlayfs": _command("fuse-overlayfs"),
    "fuse2fs": _command("fuse2fs", "mke2fs"),
    "qemu": _command("qemu-system-x86_64", "cpio", "mmdebstrap"),
    "qemu-user": _command("qemu-x86_64-static"),
    "go-program": _module("lefthook"),
    "zsh": _command("zsh"),
    "fish": _command("fish"),
    "tcsh": _command("tcsh"),
    "snakemake": _command("snakemake"),
    "man": _command("man", "groff"),
    "lmod": lambda: bool(lmod()),
    "installers": _installers,
    "pyfuse3": _module("pyfuse3"),
    "fuse-python": _module("fuse"),
    "pyroute2": _module("pyroute2"),
    "prctl": _module("prctl"),
    "buildah": _command("buildah", "newuidmap"),
    "zensical": _module("zensical"),
    "gateway": _gateway,
    "chromium": _chromium,
    "postgresql": lambda: bool(postgres_programs()) and _module("psycopg")(),
    "loop": lambda: os.access("/dev/loop-control", os.W_OK) and _command("mkfs.ext4")(),
    "systemd-analyze": _command("systemd-analyze"),
    "munge": _command("munged", "munge", "unmunge"),
    "tensors": lambda: _module("torch")() or _module("cupy")(),
    "no-gpu": lambda: not _gpu() and not any(map(os.path.exists, ("/dev/kfd", "/dev/dri"))),
    "decompressors": _decompressors,
}


def check_words() -> None:
    """Fail where UDI_MUST_HAVE has a word that is no probe."""
    unknown = set(_must_have()) - set(PROBES)
    if unknown:
        raise pytest.UsageError(f"UDI_MUST_HAVE: unknown {sorted(unknown)}; of {sorted(PROBES)}")


def _must_have() -> list[str]:
    return [w for w in os.environ.get("UDI_MUST_HAVE", "").split(",") if w]


@cache
def has(word: str) -> bool:
    """Tell whether this machine has what `word` stands for."""
    return PROBES[word]()


def need(word: str) -> None:
    """Skip the running test without `word`; fail it where UDI_MUST_HAVE asks for `word`."""
    if not has(word):
        if word in _must_have():
            pytest.fail(f"UDI_MUST_HAVE names {word}, and this machine has it not")
        pytest.skip(f"this machine has no {word}")
