"""Parse image references (`NAME:TAG`, `oci:DIR`, a path) and platforms (`linux/arm64`). Pure.

No file is looked at, so that a path may be a file or a directory. The grammar is that of
distribution/reference (names, tags, digests) and containers-transports(5) (prefixes). Each start
imports this; documents like manifests, which only a pull needs, are in `pull.manifest`.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.options import SIF, SQUASHFS_SUFFIXES

DOCKER_HUB = "docker.io"
_FORMS = (
    "one of NAME[:TAG], HOST[:PORT]/NAME[:TAG], NAME@sha256:HEX, oci:DIR[:TAG], "
    "docker-archive:FILE, docker-daemon:NAME, containers-storage:NAME, a .sqfs file, a directory "
    "(./DIR); of udi-run an https:// URL of a .sqfs file and gateway://HOST/NAME, too"
)
_HUB_ALIASES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_OTHER_TRANSPORTS = (
    "dir",
    "library",
    "oras",
    "ostree",
    "shub",
    "sif",
    "tarball",
)
REMOTE = ("https://", "http://")
"""How the name of an image begins that is read from a web server; `launch.away` takes these."""
GATEWAY = "gateway://"
"""How the name of an image begins that an image gateway (docs/gateway.md) has."""
ELSEWHERE = ("registry", "web", "gateway")
"""Kinds of references whose image may be read where it is (`remote`)."""
STORAGES = ("docker-daemon", "containers-storage")
"""Where other tools of this machine keep images: Docker's daemon; podman, buildah and skopeo."""
_HEX = "0123456789abcdef"
_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_DIGEST_LENGTHS = {"sha256": 64, "sha512": 128}


class Reference(Record):
    """What a user means by IMAGE. `kind` says which other fields are set:

    - "registry": registry, repository, and tag or digest; if both are set, the digest counts.
    - "oci", "archive": path of an OCI image layout, or of a docker-archive or oci-archive file; tag
      or digest if it has several images.
    - one of STORAGES: path is the image's name there, as the tool takes it.
    - "stream": an archive that comes through a pipe; only `udi pull` makes such a reference.
    - "squashfs", "directory": path. "path": a path that may be either, as stat(2) tells.
    - "store": digest of an image in the store.
    - "web": path is the URL of a squashfs file (`web`), perhaps digest.
    - "gateway": path is the gateway's HOST[:PORT], "" for the site's own; and as for "registry".

    `canonical` is the complete reference, equal for all spellings of one image; paths in it are as
    given.
    """

    kind: str
    canonical: str
    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    path: str = ""


class Platform(Record):
    """Operating system, architecture and variant, by their names in the OCI image index (Go's)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self.values() if part)

    def key(self) -> str:
        """Return the platform's part of a file name: amd64, arm64, arm-v7."""
        if self.architecture == "arm64" and self.variant in ("", "v8"):
            return "arm64"
        return self.architecture + (f"-{self.variant}" if self.variant else "")


def platform_of_key(key: str) -> Platform:
    """Return the platform of which `key` is the `Platform.key`."""
    return Platform("linux", *key.split("-", 1))


_MACHINES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
}
_SPELLINGS = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
"""Other names for architectures -> (Go's name, variant), as in containerd's normalizeArch."""


def platform_of(machine: str) -> Platform:
    """Return the platform of a uname(2) machine; an unknown name is taken as the architecture."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def normal(platform: Platform) -> Platform:
    """Return a platform in Go's spelling: linux/amd64 for Linux/x86_64, and for linux/amd64/v1."""
    architecture = platform.architecture.lower()
    architecture, variant = _SPELLINGS.get(architecture, (architecture, ""))
    variant = platform.variant.lower() or variant
    if variant[:1].isdigit():
        variant = f"v{variant}"
    if (architecture, variant) == ("amd64", "v1"):
        variant = ""
    return Platform(platform.os.lower(), architecture, variant)


def parse_platform(text: str) -> Platform:
    """Parse "linux/arm64", "linux/arm/v7" or "arm64". Raises UdiError."""
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(part and _only(part, _LOWER + "_.-") for part in parts):
        raise UdiError(f"platform {text!r}: not of the form OS/ARCHITECTURE[/VARIANT]")
    if parts[0] != "linux":
        raise UdiError(f"platform {text!r}: only linux images can be run")
    found = normal(Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else ""))
    usual = {"arm64": "v8", "arm": "v7"}.get(found.architecture, "")
    return found if found.variant else found.replace(variant=usual)


def parse(text: str, default_registry: str = DOCKER_HUB) -> Reference:
    """Return the reference that `text` is.

    A name without a host (`alpine`) is in `default_registry`; in Docker Hub a name of one part
    means `library/alpine`. Raises UdiError, which says what is wrong.
    """
    if not text:
        raise UdiError("image reference is empty", _FORMS)
    if text in (".", "..") or text.startswith(("/", "./", "../")):
        kind = "squashfs" if text.endswith(SQUASHFS_SUFFIXES) else "path"
        return Reference(kind, text, path=text)
    prefix, colon, rest = text.partition(":")
    if colon and prefix in ("oci", "docker-archive", "oci-archive"):
        return _local(text, "oci" if prefix == "oci" else "archive", rest)
    if colon and prefix in STORAGES:
        return _kept(text, prefix, rest)
    if colon and prefix in _OTHER_TRANSPORTS:
        raise UdiError(f"image reference {text!r}: {prefix}: is not supported", _FORMS)
    if colon and prefix == "docker":
        # docker://NAME is containers' form, docker:NAME is Shifter's.
        return _registry(text, rest.removeprefix("//"), default_registry)
    if colon and prefix in ("id", *_DIGEST_LENGTHS) and _is_hex_digest(prefix, rest):
        digest = f"sha256:{rest}" if prefix == "id" else text
        return Reference("store", digest, digest=digest)
    if text.endswith(SIF):
        return Reference("path", text, path=text)
    if "://" in text:
        raise UdiError(f"image reference {text!r}: no URL can be used here", _FORMS)
    if text.endswith(SQUASHFS_SUFFIXES):
        return Reference("squashfs", text, path=text)
    return _registry(text, text, default_registry)


def named(text: str, default_registry: str = DOCKER_HUB) -> Reference:
    """Return what `parse` does, also for a URL and an image of a gateway. Raises UdiError."""
    if text.startswith(REMOTE):
        return web(text)
    return (
        _of_gateway(text, default_registry)
        if text.startswith(GATEWAY)
        else parse(text, default_registry)
    )


def _of_gateway(text: str, default_registry: str) -> Reference:
    host, _, name = text.removeprefix(GATEWAY).partition("/")
    host = host.lower()
    fault = _host_fault(host) if host else ""
    if fault or not name:
        raise UdiError(
            f"image reference {text!r}: {fault or 'names no image of a gateway'}",
            "gateway://HOST/NAME:TAG; gateway:///NAME:TAG asks the one of gateway.address",
        )
    one = _registry(text, name, default_registry)
    return one.replace(kind="gateway", canonical=f"{GATEWAY}{host}/{one.canonical}", path=host)


def web(text: str) -> Reference:
    """Return the reference of a URL (REMOTE), as an image that a store has of it is called.

    That is without a name and password, and with a digest in place of a query, which may be a
    signature. "#sha256:HEX" behind it is the digest of its list of windows.
    """
    url, _, digest = text.partition("#")
    scheme, _, rest = url.partition("://")
    where, slash, path = rest.partition("/")
    path, mark, query = path.partition("?")
    name = f"{scheme}://{where.rpartition('@')[2]}{slash}{path}"
    if mark:
        from rootless_udi.base.windows import sha256

        name += f"?{sha256(query.encode()).hex()[:16]}"
    canonical = f"{name}@{digest}" if digest else name
    return Reference("web", canonical, digest=digest, path=url)


def _local(text: str, kind: str, rest: str) -> Reference:
    """Parse PATH[:TAG] or PATH@DIGEST; the first colon ends the path (containers-transports(5))."""
    path, _, digest = rest.partition("@sha256:")
    if digest and not _is_hex_digest("sha256", digest):
        raise UdiError(f"image reference {text!r}: a sha256 digest has 64 of 0-9 and a-f")
    tag = ""
    if not digest:
        path, colon, tag = rest.partition(":")
        if colon and not tag:
            raise UdiError(f"image reference {text!r}: the tag is empty")
    if not path:
        raise UdiError(f"image reference {text!r}: the path is empty", _FORMS)
    return Reference(kind, text, path=path, tag=tag, digest=f"sha256:{digest}" if digest else "")


def _kept(text: str, storage: str, name: str) -> Reference:
    """Parse NAME[:TAG] or an image id, sha256:HEX: what `docker save` and `podman save` take.

    The name stays as it is written: podman knows short names that are of no registry.
    """
    prefix, colon, rest = name.partition(":")
    if not (colon and prefix == "sha256" and _is_hex_digest(prefix, rest)):
        found = _registry(text, name, DOCKER_HUB)
        if not found.digest and not name.endswith(f":{found.tag}"):
            name = f"{name}:{found.tag}"
    return Reference(storage, f"{storage}:{name}", path=name)


def _registry(text: str, name: str, default_registry: str) -> Reference:
    """Parse [HOST[:PORT]/]NAME[:TAG][@DIGEST]."""
    for character in text:
        if character.isspace() or not character.isprintable():
            raise UdiError(f"image reference {text!r}: has a space or a control character", _FORMS)
    digest = ""
    if "@" in name:
        name, _, digest = name.partition("@")
        reason = digest_fault(digest)
        if reason:
            raise UdiError(f"image reference {text!r}: {reason}")
    registry = default_registry
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, name = first, rest
    tag = ""
    if ":" in name:
        name, _, tag = name.rpartition(":")
        reason = _tag_fault(tag)
        if reason:
            raise UdiError(f"image reference {text!r}: {reason}")
    for reason in (_host_fault(registry), _name_fault(name)):
        if reason:
            raise UdiError(f"image reference {text!r}: {reason}", _FORMS)
    registry = registry.lower()
    if registry in _HUB_ALIASES:
        registry = DOCKER_HUB
        if "/" not in name:
            name = f"library/{name}"
    if not tag and not digest:
        tag = "latest"
    # A digest names the image; a tag beside it is for people.
    canonical = f"{registry}/{name}" + (f"@{digest}" if digest else f":{tag}")
    return Reference(
        "registry", canonical, registry=registry, repository=name, tag=tag, digest=digest
    )


def digest_fault(digest: object) -> str:
    """Say why `digest` is not ALGORITHM:HEX of sha256 or sha512; "" if it is."""
    if not isinstance(digest, str) or ":" not in digest:
        return f"{digest!r} is no digest: sha256:HEX is"
    algorithm, _, text = digest.partition(":")
    if algorithm not in _DIGEST_LENGTHS:
        return f"digest algorithm {algorithm!r} is unknown; sha256 and sha512 are known"
    if not _is_hex_digest(algorithm, text):
        return f"a {algorithm} digest has {_DIGEST_LENGTHS[algorithm]} of 0-9 and a-f"
    return ""


def _tag_fault(tag: str) -> str:
    """Say why `tag` is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}; "" if it is."""
    if not tag:
        return "the tag is empty"
    if len(tag) > 128:
        return "the tag has more than 128 characters"
    if tag[0] not in _WORD or not _only(tag, _WORD + ".-"):
        return f"{tag!r} is no tag: letters, digits, '_', '.' and '-' only, no '.' or '-' first"
    return ""


def _only(text: str, allowed: str) -> bool:
    return all(character in allowed for character in text)


def _is_hex_digest(algorithm: str, text: str) -> bool:
    return len(text) == _DIGEST_LENGTHS.get(algorithm, 64) and _only(text, _HEX)


def _host_fault(host: str) -> str:
    """Say why `host` is not HOST[:PORT] or [IPV6][:PORT]; "" if it is."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, "0"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        return f"{port!r} is no port"
    if name.startswith("[") and name.endswith("]"):
        known = name != "[]" and _only(name[1:-1].lower(), _HEX + ":.")
        return "" if known else f"{name!r} is no IPv6 address"
    for label in name.lower().split("."):
        if (
            not 0 < len(label) < 64
            or not _only(label, _LOWER + "-_")
            or "-" in (label[0], label[-1])
        ):
            return f"{name!r} is no host name"
    return ""


def _name_fault(name: str) -> str:
    """Say why `name` is not a repository's name; "" if it is."""
    if not name:
        return "the name is empty"
    if len(name) > 255:
        return "the name has more than 255 characters"
    if name != name.lower():
        return f"repository name {name!r} must be lower case"
    for part in name.split("/"):
        if not part:
            return f"repository name {name!r} has an empty part"
        if not _only(part, _LOWER + "._-"):
            return f"repository name {name!r}: letters, digits, '.', '_' and '-' only"
        if part[0] not in _LOWER or part[-1] not in _LOWER:
            return f"repository name {name!r}: each part begins and ends with a letter or digit"
        if ".." in part or "___" in part or "._" in part or "_." in part or _mixed(part):
            return f"repository name {name!r}: separators in {part!r} must be '.', '_', '__' or '-'"
    return ""


def _mixed(part: str) -> bool:
    return any(pair in part for pair in ("-.", ".-", "-_", "_-"))
