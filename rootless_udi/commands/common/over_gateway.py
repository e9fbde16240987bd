"""What commands with --site ask of the site's image gateway (docs/gateway.md)."""

import socket
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Reference
from rootless_udi.plan.site import Site
from rootless_udi.pull.gateway import GatewayClient
from rootless_udi.pull.progress import Progress


def client(site: Site) -> GatewayClient:
    """Return the site's gateway. Raises UdiError where the configuration names none."""
    if not site.gateway:
        raise UdiError(
            "--site: the configuration names no image gateway",
            'its address is gateway.address: "unix:/PATH" or "https://HOST"',
        )
    system = site.name or socket.gethostname().partition(".")[0]
    return GatewayClient(site.gateway, system, site.gateway_munge)


def pull(one: GatewayClient, reference: Reference, platform: str, progress: Progress) -> str:
    """Have the gateway pull an image; return its digest. Raises UdiError."""
    stages = {"PULLING": "fetch", "CONVERSION": "convert", "TRANSFER": "store"}
    last = ""

    def tell(record: dict[str, Any]) -> None:
        nonlocal last
        status, done, total = (record.get(name) for name in ("status", "done", "total"))
        if status != last and status in stages:
            progress.stage(stages[status], reference.canonical)
        if isinstance(done, int) and isinstance(total, int) and 0 < done < total:
            progress.blob("layers", done, total, "running")
        last = str(status)

    progress.stage("resolve", f"{reference.canonical}, by the gateway at {one.address}")
    found = one.pull(reference, tell, platform=platform)
    return f"sha256:{found.get('id', '')}"


def images(one: GatewayClient) -> list[tuple[str, str, int, float]]:
    """Return (name, digest, bytes, when pulled) of each name that the gateway has.

    Raises UdiError.
    """
    found = []
    for record in one.images():
        tags, size, pulled = (record.get(name) for name in ("tag", "size", "last_pull"))
        for tag in tags if isinstance(tags, list) else []:
            amount = size if isinstance(size, int) else 0
            when = float(pulled) if isinstance(pulled, int | float) else 0.0
            found.append((str(tag), f"sha256:{record.get('id', '')}", amount, when))
    return sorted(found, key=lambda row: -row[3])
