"""What a registry has: the tags of a repository, the repositories of a registry; for people."""

import urllib.parse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import DOCKER_HUB
from rootless_udi.pull import parties
from rootless_udi.pull.http import Transport
from rootless_udi.pull.manifest import DOCUMENT_MAX
from rootless_udi.pull.registry import Endpoint, Missing
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.sources import parse

MOST = 100_000
"""Most names that are listed."""
_HUB_SEARCH = "https://index.docker.io/v1/search"
"""What `docker search` asks: Docker Hub lists its repositories by no other way."""


_CATALOG = "registry:catalog:*"
"""The scope of a list of all repositories (distribution, "token/scope")."""


def tags(
    host: str, repository: str, insecure: bool = False, patience: Patience | None = None
) -> list[str]:
    """Return the tags of a repository, in the registry's order. Raises UdiError."""
    what = f"listing the tags of {host}/{repository}"
    transport = Transport()
    try:
        endpoint = Endpoint(host, repository, transport, patience, insecure)
        return list(islice(_names(endpoint.listing("tags/list", what), "tags", what), MOST))
    finally:
        transport.close()


def search(
    host: str, term: str, insecure: bool = False, patience: Patience | None = None
) -> list[tuple[str, str]]:
    """Return (name, description) of repositories at `host` with `term` in their names.

    Raises UdiError, also where the registry shows no list.
    """
    what = f"searching {host}"
    transport = Transport()
    try:
        if host == DOCKER_HUB:
            return hub(_hub_answer(transport, term, what), what)
        endpoint = Endpoint(host, "", transport, patience, insecure, scope=_CATALOG)
        names = _names(endpoint.listing("_catalog", what), "repositories", what)
        return list(islice(((name, "") for name in names if term in name), MOST))
    except Missing as error:
        raise UdiError(error.message, "it shows no list: `udi tags REPOSITORY`") from None
    finally:
        transport.close()


def _names(pages: Iterable[bytes], key: str, what: str) -> Iterator[str]:
    for body in pages:
        document = parse(body, what)
        found = document.get(key) if isinstance(document, dict) else None
        # The list is null for a repository whose tags have all been removed.
        if not isinstance(document, dict) or not isinstance(found, list | None):
            raise UdiError(f"{what}: the answer has no list of {key}")
        yield from (name for name in found or () if isinstance(name, str) and len(name) < 512)


def _hub_answer(transport: Transport, term: str, what: str) -> bytes:
    query = urllib.parse.urlencode({"q": term, "n": 100})
    try:
        reply = transport.get(f"{_HUB_SEARCH}?{query}", {}, parties.NOTHING, False)
    except OSError as error:
        raise UdiError(f"{what}: {error.strerror or error}") from None
    try:
        if reply.status != 200:
            raise UdiError(f"{what}: it answers {reply.status}")
        return reply.read_all(DOCUMENT_MAX, what)
    finally:
        reply.close()


def hub(body: bytes, what: str) -> list[tuple[str, str]]:
    """Return (name, description) of each repository in an answer of Docker Hub. Raises UdiError."""
    document: Any = parse(body, what)
    rows = document.get("results") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise UdiError(f"{what}: the answer has no list of results")
    found = []
    for row in rows:
        texts = [row.get(key) for key in ("name", "description")] if isinstance(row, dict) else []
        if texts and isinstance(texts[0], str):
            found.append((texts[0], texts[1] if isinstance(texts[1], str) else ""))
    return found
