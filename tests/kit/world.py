"""Where the documents' commands run: an ordinary user's home, and a registry in Docker Hub's place.

The registry has small images of busybox by the names that the pages use. So what a page says of
commands is tried with them; what it says of the images of those names is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit import images
from tests.kit.registry import Registry, open_registry

SOLVE = b"""#!/bin/sh
# Stands for a program of the user's.
echo "rank ${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-0}} of ${PMI_SIZE:-${OMPI_COMM_WORLD_SIZE:-1}}"
"""

NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "library/alpine:latest": ("Alpine Linux", {"Cmd": ["/bin/sh"]}),
    "library/ubuntu:24.04": ("Ubuntu 24.04 LTS", {"Cmd": ["/bin/sh"]}),
    "my/app:2.1": (
        "Debian GNU/Linux 12 (bookworm)",
        {
            "Env": ["PATH=/usr/local/bin:/bin", "APP_DATA=/opt/app/data"],
            "Entrypoint": ["/opt/app/solve"],
            "Cmd": ["--help"],
            "WorkingDir": "/opt/app",
        },
    ),
}
"""Repository and tag: PRETTY_NAME of its os-release, and its config."""


def write_layout(folder: Path) -> None:
    """Write an OCI layout with an image for each of NAMES, by tags 0, 1, ..."""
    layout = images.Layout(folder)
    base = images.tar(images.busybox_entries())
    for tag, (pretty, config) in enumerate(NAMES.values()):
        own: list[images.Entry] = [
            ("etc/os-release", f'PRETTY_NAME="{pretty}"\n'.encode(), {}),
            ("opt/app/data", None, {}),
            ("opt/app/solve", SOLVE, {"mode": 0o755}),
            ("usr/local/bin/solve", SOLVE, {"mode": 0o755}),
        ]
        layout.image(str(tag), [base, images.tar(own)], config)


@contextmanager
def hub(folder: Path) -> Iterator[Registry]:
    """Yield a registry that has NAMES, with its files below `folder`."""
    write_layout(folder / "layout")
    with open_registry(folder / "registry", folder / "data") as registry:
        for tag, name in enumerate(NAMES):
            registry.push(folder / "layout", str(tag), name)
        yield registry


def furnish(home: Path, registry: Registry) -> dict[str, str]:
    """Put into `home` what the pages take for given; return the variables that they do."""
    config = home / ".config/rootless_udi"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(f'[registry."docker.io"]\nmirrors = ["{registry.host}"]\n')
    scratch = home / "scratch"
    (scratch / "run1").mkdir(parents=True)
    (scratch / "run1/simulate").write_bytes(SOLVE)
    (scratch / "run1/simulate").chmod(0o755)
    (scratch / "run1/input.txt").write_text("1 2 3\n")
    return {"SCRATCH": str(scratch), "COLUMNS": "80"}


MACHINES_OWN = (
    "etc/apt/apt.conf.d/*",
    "etc/apt/apt.conf",
    "etc/apt/auth.conf.d/*",
    "etc/pip.conf",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/share/ca-certificates/*.crt",
)
"""What brings this machine to its mirrors and package index."""


def push_debian(registry: Registry, folder: Path) -> None:
    """Put a minimal Debian 12 into `registry` as library/debian:12; it installs as this machine."""
    own: list[images.Entry] = [
        (str(path)[1:], path.read_bytes(), {})
        for pattern in MACHINES_OWN
        for path in sorted(Path("/").glob(pattern))
        if path.is_file() and not path.name.startswith("docker-")
    ]
    layout = images.Layout(folder)
    root = images.debian_root("bookworm").read_bytes()
    layout.image("12", [root, images.tar(own)], {"Cmd": ["bash"]}, compress=None, suffix="")
    registry.push(folder, "12", "library/debian:12")


def building(home: Path, registry: Registry) -> dict[str, str]:
    """Return the variables by which buildah builds without root, and `registry` is Docker Hub."""
    config = home / ".config/containers"
    config.mkdir(parents=True)
    (config / "registries.conf").write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        f'[[registry]]\nprefix = "docker.io"\nlocation = "{registry.host}"\ninsecure = true\n'
    )
    return {
        "CONTAINERS_REGISTRIES_CONF": str(config / "registries.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "STORAGE_DRIVER": "vfs",
    }
