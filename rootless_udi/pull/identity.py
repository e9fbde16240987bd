"""Does the name in a signature fit the image that is asked for (containers-policy.json(5),
signedIdentity)? Texts in, truth out.

Names are compared in full: HOST/REPOSITORY[:TAG|@DIGEST], Docker Hub's with docker.io and library/.
"""

from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Reference, parse

_PARAMETERS = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}
DEFAULT = {"type": "matchRepoDigestOrExact"}


class Name(Record):
    """A repository, and ":TAG" or "@DIGEST", or "" for neither."""

    repository: str
    rest: str = ""

    def __str__(self) -> str:
        return self.repository + self.rest


class Identity(Record):
    """A signedIdentity of a policy: its type, and its parameters in the specification's order."""

    kind: str
    words: tuple[str, ...] = ()

    def fits(self, wanted: Name, signed: Name) -> bool:
        """Tell whether a signature for `signed` is one for the image `wanted`."""
        if self.kind == "matchRepository":
            return wanted.repository == signed.repository
        if self.kind == "exactRepository":
            return name(self.words[0]).repository == signed.repository
        if self.kind == "exactReference":
            return bool(signed.rest) and name(self.words[0]) == signed
        if self.kind == "remapIdentity":
            wanted = _remapped(wanted, *self.words)
        if self.kind != "matchExact" and wanted.rest.startswith("@"):
            return wanted.repository == signed.repository
        return bool(signed.rest) and wanted == signed


def _remapped(one: Name, prefix: str, signed: str) -> Name:
    """Return a name with `signed` in place of `prefix`, where it begins with that."""
    if one.repository == prefix or one.repository.startswith(f"{prefix}/"):
        return one.replace(repository=signed + one.repository[len(prefix) :])
    return one


def _check_prefix(prefix: str) -> None:
    """Raise ValueError unless names in the fully expanded form can begin with `prefix`."""
    try:
        fine = name(f"{prefix}/x/x") == Name(f"{prefix}/x/x")
    except UdiError:
        fine = False
    if not fine:
        raise ValueError(f"signedIdentity remapIdentity: {prefix!r} is no host or repository")


def name(text: str) -> Name:
    """Return the name that a text is. Raises UdiError for what is none."""
    found = parse(text)
    if found.kind != "registry":
        raise UdiError(f"{text!r} is no name of an image in a registry")
    last = text.rpartition("/")[2]
    rest = f"@{found.digest}" if found.digest else f":{found.tag}" if ":" in last else ""
    return Name(f"{found.registry}/{found.repository}", rest)


def of(reference: Reference) -> Name:
    """Return the name of a registry's image."""
    rest = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    return Name(f"{reference.registry}/{reference.repository}", rest)


def parsed(value: Any) -> Identity:
    """Return the signedIdentity that a policy has. Raises ValueError."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in _PARAMETERS:
        raise ValueError(f"signedIdentity of type {kind!r}")
    keys = _PARAMETERS[kind]
    if set(value) != {"type", *keys} or not all(isinstance(value[key], str) for key in keys):
        raise ValueError(f"signedIdentity {kind} has {', '.join(keys) or 'no members'}")
    one = Identity(kind, tuple(value[key] for key in keys))
    if kind == "remapIdentity":
        for prefix in one.words:
            _check_prefix(prefix)
    if kind.startswith("exact"):
        try:
            exact = name(one.words[0])
        except UdiError as error:
            raise ValueError(f"signedIdentity: {error.message}") from None
        if bool(exact.rest) != (kind == "exactReference"):
            raise ValueError(f"signedIdentity {kind}: {one.words[0]!r}")
    return one
