"""Find a squashfs that was pushed for an image (`artifact`), and that is believed (`claims`)."""

from collections.abc import Callable

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import artifact
from rootless_udi.pull.artifact import Artifact, FoundSquashfs
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.registry import Endpoint
from rootless_udi.pull.repository import Repository, referrers
from rootless_udi.pull.retry import GaveUp
from rootless_udi.pull.sources import parse

_MOST = 16
"""Claims about one image that are looked at: anybody who may push may make thousands."""


def find_squashfs(
    repository: Repository,
    digest: str,
    believed: Believed,
    told: Callable[[str], object] = lambda why: None,
) -> FoundSquashfs | None:
    """Return a squashfs for the image whose manifest is `digest`, None where there is none.

    `told` is called with each reason why one is not used. Each registry or mirror is believed, or
    not, by its own name. Nothing is asked where nobody would be believed. Raises UdiError where
    none was found, and one that was asked has not answered well; the image itself may be there.
    """
    reference = repository.reference
    if not believed.anybody(reference, [one.host for one in repository.endpoints]):
        told("no registry is trusted and no key named: what others pushed for it is not looked for")
        return None
    failure: UdiError | None = None
    for endpoint in repository.endpoints:
        try:
            found = _at(endpoint, repository, digest, believed, told)
        except UdiError as error:
            failure = failure or error
            continue
        if found is not None:
            return found
    if failure is not None:
        raise failure
    return None


def _at(
    endpoint: Endpoint,
    repository: Repository,
    digest: str,
    believed: Believed,
    told: Callable[[str], object],
) -> FoundSquashfs | None:
    found = referrers(endpoint, digest, artifact.TYPE)
    if not found:
        told(f"{endpoint.host} has no squashfs for it (udi push)")
    if len(found) > _MOST:
        told(f"{endpoint.host} has {len(found)} squashfs for it, of which {_MOST} are looked at")
    # Clients append to such an index: the newest is the last.
    for _, one in reversed(found[-_MOST:]):
        name = f"{endpoint.host}'s squashfs {one.digest}"
        try:
            parts, why = _judged(endpoint, repository, one.digest, believed)
        except GaveUp:
            raise
        except UdiError as error:
            told(f"{name} is not used: {error.message}")
            continue
        if parts.subject == digest:
            return FoundSquashfs(digest, one.digest, parts, endpoint.host, why)
        told(f"{name} is not used: it is for {parts.subject or 'no image'}")
    return None


def _judged(
    endpoint: Endpoint, repository: Repository, claim: str, believed: Believed
) -> tuple[Artifact, str]:
    """Return what the artifact `claim` says, and why it is believed. Raises UdiError."""
    why, against = believed.judge(repository.reference, endpoint.host, claim, repository.signatures)
    if against:
        raise UdiError(against)
    what = f"reading {endpoint}@{claim}"
    document = parse(endpoint.manifest(claim)[0], what)
    if not artifact.is_one(document):
        raise UdiError(f"{what}: is no squashfs that udi push made")
    return artifact.parsed(document, what), why
