"""Host roots with GPU drivers, built for the tests: real small ELF files, a real ld.so.cache."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.plan.steps import Injection
from tests.kit import images

MACHINE = os.uname().machine
MULTIARCH = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}.get(MACHINE, "")
VERSION = "550.54.14"
OLD = "470.82.01"

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)

SONAMES = {
    "libcuda": "libcuda.so.1",
    "libcudadebugger": "libcudadebugger.so.1",
    "libnvidia-ml": "libnvidia-ml.so.1",
    "libnvidia-cfg": "libnvidia-cfg.so.1",
    "libnvidia-ptxjitcompiler": "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-nvvm": "libnvidia-nvvm.so.4",
    "libnvidia-opencl": "libnvidia-opencl.so.1",
    "libnvidia-gpucomp": "",
    "libnvidia-encode": "libnvidia-encode.so.1",
    "libnvcuvid": "libnvcuvid.so.1",
    "libGLX_nvidia": "libGLX_nvidia.so.0",
    "libEGL_nvidia": "libEGL_nvidia.so.0",
    "libnvidia-glcore": "",
}
"""Library -> SONAME; "" where NVIDIA uses the whole file name."""

SOURCE = """
int cuInit(unsigned int flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = %d; return 0; }
"""


def compile(soname: str, source: str = SOURCE % 12040, *flags: str) -> Path:
    """Return a cached shared library with this SONAME."""
    import hashlib

    text = "\0".join((soname, source, *flags))
    name = hashlib.sha256(text.encode()).hexdigest()[:16] + ".so"
    folder = images.cache() / "gpu"
    folder.mkdir(exist_ok=True)
    target = folder / name
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        argv: list[str | Path] = [
            "gcc",
            "-shared",
            "-fPIC",
            "-x",
            "c",
            "-",
            f"-Wl,-soname,{soname}",
            "-o",
            part,
        ]
        subprocess.run([*argv, *flags], input=source.encode(), check=True)
        part.rename(target)
    return target


class Host:
    """A host's root at `path`; every method adds something and returns the host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = str(path)
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: str, text: str = "", mode: int = 0o644) -> "Host":
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return self

    def link(self, path: str, to: str) -> "Host":
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(to)
        return self

    def copy(self, path: str, source: Path) -> "Host":
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return self

    def libraries(
        self,
        folder: str,
        version: str = VERSION,
        names: "dict[str, str]" = SONAMES,
        source: str = SOURCE % 12040,
        *flags: str,
    ) -> "Host":
        """Put a driver's libraries into `folder` as NVIDIA's installer does: files and links."""
        for base, soname in names.items():
            real = f"{base}.so.{version}"
            self.copy(f"{folder}/{real}", compile(soname or real, source, *flags))
            if soname:
                self.link(f"{folder}/{soname}", real)
        if "libcuda" in names:
            self.link(f"{folder}/libcuda.so", "libcuda.so.1")
        return self

    def kernel(self, version: str = VERSION, cards: int = 1, text: str = NVRM) -> "Host":
        """Add what the NVIDIA kernel module shows: /proc and device nodes (here plain files)."""
        self.write("/proc/driver/nvidia/version", text.format(version))
        self.nodes("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
        for number in range(cards):
            self.nodes(f"nvidia{number}")
            self.write(
                f"/proc/driver/nvidia/gpus/0000:0{number}:00.0/information",
                "Model: \t\t NVIDIA A100-SXM4-40GB\n"
                f"GPU UUID: \t GPU-0000000{number}-aaaa-bbbb-cccc-dddddddddddd\n"
                f"Bus Location: \t 0000:0{number}:00.0\nDevice Minor: \t {number}\n",
            )
        return self

    def nodes(self, *names: str, mode: int = 0o666) -> "Host":
        for name in names:
            self.write(f"/dev/{name}", mode=mode)
        return self

    def drm(self, number: int, vendor: str, driver: str, device: str = "0x740c") -> "Host":
        """Add a card with a render node, as the kernel shows it in sysfs."""
        bus = f"0000:{number:02x}:00.0"
        place = f"/sys/devices/pci0000:00/{bus}"
        self.write(f"{place}/vendor", vendor + "\n").write(f"{place}/device", device + "\n")
        self.write(f"/sys/bus/pci/drivers/{driver}/uevent")
        self.link(f"{place}/driver", f"../../../bus/pci/drivers/{driver}")
        self.write(f"/sys/class/drm/renderD{128 + number}/uevent")
        self.link(
            f"/sys/class/drm/renderD{128 + number}/device", f"../../../devices/pci0000:00/{bus}"
        )
        return self.nodes(f"dri/renderD{128 + number}")

    def gaudi(self, number: int) -> "Host":
        """Add a Gaudi card: its compute node and its control node."""
        place = f"/sys/devices/pci0000:00/0000:a{number}:00.0"
        self.write(f"{place}/vendor", "0x1da3\n").write(f"{place}/device", "0x1020\n")
        self.write(f"/sys/class/accel/accel{number}/uevent")
        self.link(f"/sys/class/accel/accel{number}/device", f"../../..{place.removeprefix('/sys')}")
        return self.nodes(f"accel/accel{number}", f"accel/accel_controlD{number}")

    def ldconfig(self, *folders: str) -> "Host":
        """Make a real /etc/ld.so.cache of the root's folders by ldconfig(8)."""
        self.write("/etc/ld.so.conf", "".join(f + "\n" for f in folders))
        subprocess.run(
            ["unshare", "--map-root-user", "/sbin/ldconfig", "-X", "-r", self.root],
            check=True,
            capture_output=True,
        )
        return self


def debian(path: Path, version: str = VERSION, cards: int = 1) -> Host:
    """Debian's packages: nvidia/current behind /etc/alternatives, everything in the cache."""
    host = Host(path)
    folder = f"/usr/lib/{MULTIARCH}"
    host.libraries(f"{folder}/nvidia/current", version, {"libcuda": SONAMES["libcuda"]})
    rest = {k: v for k, v in SONAMES.items() if k != "libcuda"}
    host.libraries(folder, version, rest)
    link = f"/etc/alternatives/nvidia--libcuda.so.1-{MULTIARCH}"
    host.link(link, f"{folder}/nvidia/current/libcuda.so.1")
    host.link(f"{folder}/libcuda.so.1", link)
    host.write("/usr/lib/nvidia/current/nvidia-smi", "#!/bin/sh\n", 0o755)
    host.link("/etc/alternatives/nvidia--nvidia-smi", "/usr/lib/nvidia/current/nvidia-smi")
    host.link("/usr/bin/nvidia-smi", "/etc/alternatives/nvidia--nvidia-smi")
    host.write("/usr/bin/nvidia-cuda-mps-control", "", 0o755)
    return host.kernel(version, cards).ldconfig(folder)


def rhel(path: Path, version: str = VERSION, cards: int = 2) -> Host:
    """NVIDIA's RPMs: /usr/lib64, the open kernel module, persistenced running."""
    host = Host(path).libraries("/usr/lib64", version)
    host.write("/usr/bin/nvidia-smi", "", 0o755).write("/usr/bin/nvidia-persistenced", "", 0o755)
    host.write("/run/nvidia-persistenced/socket")
    host.write("/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "{}")
    host.nodes("nvidia-caps/nvidia-cap1", "nvidia-caps-imex-channels/channel0", "gdrdrv")
    return host.kernel(version, cards, OPEN).ldconfig("/usr/lib64")


def wsl(path: Path) -> Host:
    """WSL 2: no kernel module of NVIDIA's, libraries without versions, Windows' driver store."""
    host = Host(path).nodes("dxg")
    for name in ("libcuda.so.1.1", "libnvidia-ml.so.1", "libdxcore.so", "libnvidia-encode.so.1"):
        soname = name.replace(".so.1.1", ".so.1")
        host.copy(f"/usr/lib/wsl/lib/{name}", compile(soname))
    host.link("/usr/lib/wsl/lib/libcuda.so.1", "libcuda.so.1.1")
    host.link("/usr/lib/wsl/lib/libcuda.so", "libcuda.so.1.1")
    host.write("/usr/lib/wsl/lib/nvidia-smi", "", 0o755)
    return host.write("/usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/nvcubins.bin")


def local(path: Path) -> Host:
    """/usr/local/nvidia: a driver that the node got from a container (Kubernetes, clouds)."""
    host = Host(path).libraries("/usr/local/nvidia/lib64")
    return host.write("/usr/local/nvidia/bin/nvidia-smi", "", 0o755).kernel()


def operator(path: Path) -> Host:
    """NVIDIA's GPU operator: the driver is in the root of a container, below /run."""
    root = "/run/nvidia/driver/usr"
    host = Host(path).libraries(f"{root}/lib/{MULTIARCH}")
    host.write(f"{root}/bin/nvidia-smi", "", 0o755)
    host.write(f"{root}/share/vulkan/icd.d/nvidia_icd.json", "{}")
    return host.kernel()


class Facts(Record):
    """Image facts with the parts that GPU planning reads."""

    libc: str = "glibc"
    glibc: str = "2.36"
    machine: str = MACHINE
    env: tuple[str, ...] = ()
    compat: str = ""
    drivers: tuple[int, ...] | None = None

    def json(self) -> dict[str, Any]:
        libraries = []
        if self.compat:
            path = f"/usr/local/cuda-12.4/compat/libcuda.so.{self.compat}"
            note = {} if self.drivers is None else {"drivers": list(self.drivers)}
            libraries.append({"path": path, **note})
        versions = [f"GLIBC_{self.glibc}"] if self.libc == "glibc" else []
        return {
            "env": list(self.env),
            "elf": {
                "machine": self.machine,
                "libc": self.libc,
                "libc_versions": versions,
                "libraries": libraries,
            },
        }


def text(injection: Injection, root: str) -> str:
    """Return an injection for a golden file: a line each, fields as JSON, the root as $ROOT."""
    rows = [type(s).__name__ + json.dumps(s.values()) for s in injection.steps]
    rows += [type(e).__name__ + json.dumps(e.values()) for e in injection.environment]
    rows += ["Note" + json.dumps([n]) for n in injection.notes]
    plain = "\n".join(rows).replace(root, "$ROOT") + "\n"
    return plain.replace(MULTIARCH, "$MULTIARCH") if MULTIARCH else plain
