"""Real images for the tests: OCI image layouts made of tar layers, Debian roots made by mmdebstrap.

Roots are kept in UDI_TEST_CACHE (by default /var/tmp/rootless_udi-cache-UID), since a debootstrap
takes most of a minute; everything else is made anew in a test's own folder.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import pwd
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Entry = tuple[str, bytes | str | None, dict[str, Any]]
"""A member: name, content (bytes: file, str: link, None: directory), attributes of TarInfo."""

MEDIA = "application/vnd.oci.image"


def cache() -> Path:
    """Return the folder that outlives a test run."""
    default = f"/var/tmp/rootless_udi-cache-{os.getuid()}"
    path = Path(os.environ.get("UDI_TEST_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


def tar(entries: Iterable[Entry]) -> bytes:
    """Return an uncompressed PAX tar of `entries`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, extra in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if content is None else 0o644
            data = None
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                data, info.size = io.BytesIO(content), len(content)
            for key, value in extra.items():
                setattr(info, key, value)
            archive.addfile(info, data)
    return out.getvalue()


def busybox_entries() -> list[Entry]:
    """A root file system of one static binary, its applets, and the accounts of a distribution."""
    path = shutil.which("busybox") or "/bin/busybox"
    names = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout
    entries: list[Entry] = [(d, None, {}) for d in ("bin", "etc", "usr", "usr/bin", "var", "root")]
    entries.append(("bin/busybox", Path(path).read_bytes(), {"mode": 0o755}))
    entries += [(f"bin/{n}", "busybox", {}) for n in names.split() if n != "busybox"]
    entries.append(("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", {}))
    entries.append(("etc/group", b"root:x:0:\n", {}))
    return entries


class Layout:
    """An OCI image layout being written at `path` (image-spec 1.1, image-layout.md)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media: str) -> dict[str, Any]:
        """Write a blob and return its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    def image(
        self,
        tag: str,
        layers: list[bytes],
        config: dict[str, Any] | None = None,
        arch: str = "amd64",
        compress: Callable[[bytes], bytes] | None = lambda data: gzip.compress(data, 1, mtime=0),
        suffix: str = "+gzip",
    ) -> dict[str, Any]:
        """Add an image of uncompressed tar `layers`; return its manifest's descriptor."""
        diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        blobs = [
            self.blob(x, f"{MEDIA}.layer.v1.tar")
            if compress is None
            else self.blob(compress(x), f"{MEDIA}.layer.v1.tar{suffix}")
            for x in layers
        ]
        document = {
            "architecture": arch,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA}.manifest.v1+json",
            "config": self.blob(json.dumps(document).encode(), f"{MEDIA}.config.v1+json"),
            "layers": blobs,
        }
        found = self.blob(json.dumps(manifest).encode(), f"{MEDIA}.manifest.v1+json")
        self.tag(tag, found | {"platform": {"os": "linux", "architecture": arch}})
        return found

    def tag(self, tag: str, descriptor: dict[str, Any]) -> None:
        """Put `descriptor` into the layout's index under `tag`."""
        name = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(descriptor | {"annotations": name})
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))


def busybox_layout(path: Path, tag: str = "latest", config: dict[str, Any] | None = None) -> Layout:
    """Write a one-layer busybox image as an OCI layout at `path`."""
    layout = Layout(path)
    layout.image(tag, [tar(busybox_entries())], config or {"Cmd": ["/bin/sh"]})
    return layout


def debian_root(suite: str, packages: tuple[str, ...] = ()) -> Path:
    """Return a cached tar of a minimal Debian `suite`, or Ubuntu's, with `packages`."""
    name = "-".join((suite, *packages))
    target = cache() / f"{name}.tar"
    with open(cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            made = made_before(target.name)
            if made is not None:
                shutil.copyfile(made, f"{target}.part")
                Path(f"{target}.part").rename(target)
            else:
                _mmdebstrap(suite, packages, target)
    return target


def made_before(name: str) -> Path | None:
    """Return what root's test user has of that name in his cache, for root, who runs after him."""
    if os.getuid() != 0:
        return None
    try:
        user = pwd.getpwnam(os.environ.get("UDI_TEST_USER", "udi-test"))
    except KeyError:
        return None
    path = Path(f"/var/tmp/rootless_udi-cache-{user.pw_uid}") / name
    return path if path.exists() else None


def mirror() -> str:
    """Return the address of the mirror that this machine's own apt uses."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    mirrors = [s for s in sites if "security" not in s]
    return max(set(mirrors), key=mirrors.count)


UBUNTU = {"noble": ("noble",), "noble-updates": ("noble", "noble-updates")}
"""Ubuntu's suites: 24.04 as it came out, with Linux 6.8, and with its updates, which bring newer
kernels."""


def sources(suite: str) -> list[str]:
    """Return apt's lines for a suite, Debian's or Ubuntu's."""
    if suite not in UBUNTU:
        return [f"deb {mirror()} {suite} main"]
    # Debian 12 has no package with Ubuntu's keys: the server's certificate says whose files these
    # are.
    site = "[trusted=yes] https://archive.ubuntu.com/ubuntu"
    return [f"deb {site} {name} main universe" for name in UBUNTU[suite]]


def _mmdebstrap(suite: str, packages: tuple[str, ...], target: Path) -> None:
    partial = target.with_suffix(".part.tar")
    argv = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--mode={'root' if os.getuid() == 0 else 'unshare'}",
        *([f"--include={','.join(packages)}"] if packages else []),
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "5"',
        # A mirror's copy of a suite may be older than its Release file allows.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        suite.partition("-")[0],
        str(partial),
        *sources(suite),
    ]
    # A mirror may be in the middle of an update: what its lists name is there a moment later.
    for last in (False, False, True):
        if subprocess.run(argv, check=last, stdin=subprocess.DEVNULL).returncode == 0:
            break
    partial.rename(target)
