"""The grammar of volumes: `SRC:DST[:FLAG...]`, `;`-joined, to records and back. Pure.

Quoting: text between double quotes is literal, and a backslash makes the next character literal
(both inside and outside quotes; it may not be a letter or a digit, which would look like C's
escapes). Nothing is ever stripped from a name: Shifter drops what it does not know, so that a
space leads to another directory; here a name is taken as written or refused.

Sources are looked at by `host.look`, which may ask the file system.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan import sizes

FLAGS = ("ro", "rw", "rec", "slave", "private")
"""mount(8)'s words; Shifter gives its users `ro` only and the rest to its administrators."""
CACHE_FLAG = "perNodeCache"
CACHE_KEYS = ("size", "bs", "fs", "method")
PATH_MAX = 4096
"""linux/limits.h: bytes of a path with its final NUL."""
NAME_MAX = 255

_ELSEWHERE = "choose another destination, for example /data"
_FORBIDDEN = (
    ("/etc", "the container's /etc holds the accounts, hosts and resolver that it runs with"),
    ("/var", "it is the image's own, but for /var/tmp"),
    ("/opt/udiImage", "the site's modules, MPI and GPU libraries live there"),
    ("/dev", "devices are the host's"),
    ("/proc", "the kernel's own files live there"),
    ("/sys", "the kernel's own files live there"),
)
_FORBIDDEN_EXACTLY = {
    "/": "it is the image itself",
    "/opt": "it would hide the image's /opt and /opt/udiImage; /opt/NAME is allowed",
}
_ALLOWED = "/var/tmp"
_SITE_FORBIDDEN = (
    "/",
    "/etc",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/opt",
    "/opt/udiImage",
    "/var",
)


class PerNodeCache(Record):
    """A private file system of one node and job step, empty at its start and gone at its end.

    `size` and `block` in bytes (0: the method's own). `method` is "tmpfs", "file" or "" (the
    site's default), `fs` is "ext4" or "" (what the method gives).
    """

    size: int
    block: int = 0
    fs: str = ""
    method: str = ""


class Volume(Record):
    """`source` (host) appears at `destination` (container); both absolute and normal.

    `options` are words of FLAGS in the order given; `cache` is there for a perNodeCache, whose
    source is the directory that backs it. `origin` says who asked: "--volume", a file and key.
    """

    source: str
    destination: str
    options: tuple[str, ...] = ()
    cache: "PerNodeCache | None" = None
    origin: str = "--volume"


def parse(text: str, site: bool = False, origin: str = "--volume") -> tuple[Volume, ...]:
    """Return the volumes of one option's or variable's text, in its order; empty for empty text.

    A single path stands for itself on both sides. `site` reads Shifter's siteFs: the site may mount
    where users may not. Raises UdiError, saying which entry and why.
    """
    found = [
        _volume(fields, raw, site, origin)
        for raw, fields in _entries(text, origin)
        if fields != [""]
    ]
    together(found)
    return tuple(found)


def together(volumes: "tuple[Volume, ...] | list[Volume]") -> tuple[Volume, ...]:
    """Check volumes against each other; return them in mount order: parents before children.

    Raises UdiError for two volumes on one destination and for one inside a perNodeCache, which is
    empty when it starts and so has no mount points.
    """
    at: dict[str, Volume] = {}
    for volume in volumes:
        other = at.setdefault(volume.destination, volume)
        if other is not volume:
            raise UdiError(
                f"{volume.origin}: two volumes on {shown(volume.destination)}: "
                f"{shown(other.source)} ({other.origin}) and {shown(volume.source)}",
                "give each its own destination",
            )
    for volume in volumes:
        for parent in parents(volume.destination):
            other = at.get(parent, volume)
            if other.cache is not None and other is not volume:
                raise UdiError(
                    f"{volume.origin}: {shown(volume.destination)} is inside the perNodeCache "
                    f"{shown(parent)}: a cache is empty when it starts",
                    "put the volume beside the cache, not in it",
                )
    return tuple(sorted(volumes, key=lambda v: v.destination.count("/")))


def parents(path: str) -> list[str]:
    """Return the proper parents of a normal absolute path, nearest first, without `/`."""
    found = []
    while "/" in path[1:]:
        path = path[: path.rindex("/")]
        found.append(path)
    return found


def render(volumes: "tuple[Volume, ...] | list[Volume]") -> str:
    """Return text that `parse` reads back to equal volumes (origins aside)."""
    return ";".join(":".join(_rendered(volume)) for volume in volumes)


def quote(name: str) -> str:
    """Return `name` quoted where the grammar needs it."""
    if not name or any(c in ':;"\\\n' for c in name):
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return name


def shown(text: str) -> str:
    """Return a name for a message: as it is, or quoted with escapes where it has odd characters."""
    text = text if len(text) <= 120 else text[:100] + "..."
    return text if text and text.isprintable() and " " not in text else repr(text)


def normal(path: str, what: str) -> str:
    """Return an absolute path without doubled slashes, `.` and a trailing slash.

    `what` begins the message, as in "volume '/a:b': destination". Raises UdiError for a relative
    path, a `..`, a NUL and a path or name that Linux can't hold.
    """
    if not path:
        raise UdiError(f"{what} is empty", "is a variable before or after the ':' unset?")
    if not path.startswith("/"):
        raise UdiError(f"{what} {shown(path)} is not absolute", 'begin it with "/" ($PWD/...)')
    if "\0" in path:
        raise UdiError(f"{what} has a NUL character", "a path can't hold one")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UdiError(f"{what} {shown(path)} has a '..'", "write the path without it")
    whole = "/" + "/".join(parts)
    try:
        if len(whole.encode("utf-8", "surrogateescape")) >= PATH_MAX:
            raise UdiError(f"{what} is longer than {PATH_MAX - 1} bytes", "Linux has no such path")
        for part in parts:
            if len(part.encode("utf-8", "surrogateescape")) > NAME_MAX:
                raise UdiError(
                    f"{what} has a name of more than {NAME_MAX} bytes: {shown(part)}",
                    "Linux has no such file",
                )
    except UnicodeEncodeError:
        raise UdiError(f"{what} {shown(path)} has a character that no file name can hold") from None
    return whole


def allowed(destination: str, what: str) -> None:
    """Raise UdiError where a user's volume may not be mounted, with the reason.

    By path component: /etcfoo is allowed, where Shifter's comparison of strings refuses it.
    """
    reason = _FORBIDDEN_EXACTLY.get(destination)
    if reason:
        raise UdiError(f"{what} {destination} is not allowed: {reason}", _ELSEWHERE)
    if _within(destination, _ALLOWED):
        return
    for folder, reason in _FORBIDDEN:
        if _within(destination, folder):
            inside = "" if destination == folder else f" (inside {folder})"
            raise UdiError(
                f"{what} {shown(destination)}{inside} is not allowed: {reason}", _ELSEWHERE
            )


def allowed_for_site(destination: str, what: str) -> None:
    """Raise UdiError where even the site may not mount: what every container is made of."""
    if destination in _SITE_FORBIDDEN:
        raise UdiError(
            f"{what} {destination} is not allowed: it would hide what every container is made of",
            "mount below it, or choose another destination",
        )


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _entries(text: str, origin: str) -> list[tuple[str, list[str]]]:
    """Split into entries: each with its raw text (for messages) and its unquoted fields."""
    entries: list[tuple[str, list[str]]] = []
    fields: list[str] = []
    word: list[str] = []
    quoted = False
    begin = at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
            if at >= len(text) or text[at].isalnum():
                raise UdiError(
                    f"{origin} {shown(text)}: a backslash before "
                    f"{shown(text[at]) if at < len(text) else 'the end'} means nothing",
                    "write two for one that is part of a name",
                )
            word.append(text[at])
        elif char == '"':
            quoted = not quoted
        elif quoted or char not in ":;\n":
            word.append(char)
        elif char == "\n":
            raise UdiError(f"{origin} {shown(text)}: a bare newline", "put the name in quotes")
        else:
            fields.append("".join(word))
            word = []
            if char == ";":
                entries.append((text[begin:at], fields))
                fields, begin = [], at + 1
        at += 1
    if quoted:
        raise UdiError(f"{origin} {shown(text)}: a double quote is not closed", 'write \\" for one')
    fields.append("".join(word))
    entries.append((text[begin:], fields))
    return entries


def _volume(fields: list[str], raw: str, site: bool, origin: str) -> Volume:
    what = f"{origin} {shown(raw)}:"
    if len(fields) == 1:
        fields = [fields[0], fields[0]]
    source = normal(fields[0], f"{what} source")
    destination = normal(fields[1], f"{what} destination")
    (allowed_for_site if site else allowed)(destination, f"{what} destination")
    options: list[str] = []
    cache: PerNodeCache | None = None
    for flag in fields[2:]:
        name, has_value, value = flag.partition("=")
        if name.lower() == CACHE_FLAG.lower():
            if cache is not None:
                raise UdiError(f"{what} perNodeCache is given twice", "give it once")
            cache = _cache(value, what)
        elif name.lower() in FLAGS and not has_value:
            if name.lower() not in options:
                options.append(name.lower())
        else:
            raise UdiError(
                f"{what} unknown flag {shown(flag)}",
                f"flags are {', '.join(FLAGS)} and {CACHE_FLAG}=size=..., each after a ':'",
            )
    _agree(options, cache, what)
    return Volume(source, destination, tuple(options), cache, origin)


def _agree(options: list[str], cache: "PerNodeCache | None", what: str) -> None:
    """Refuse flags that contradict each other."""
    for one, two in (("ro", "rw"), ("slave", "private")):
        if one in options and two in options:
            raise UdiError(f"{what} {one} and {two} contradict each other", "give one of them")
    others = [option for option in options if option != "rw"]
    if cache is not None and others:
        raise UdiError(
            f"{what} perNodeCache with {', '.join(others)}: a cache is always private and writable",
            "leave the other flags out",
        )


def _cache(text: str, what: str) -> PerNodeCache:
    """Read `size=100G[,bs=1M][,fs=ext4][,method=tmpfs|file]`; keys in any case, as in Shifter."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        key, _, value = pair.partition("=")
        key = key.lower()
        if key not in CACHE_KEYS:
            raise UdiError(
                f"{what} perNodeCache has no {shown(key)}", f"its keys are {', '.join(CACHE_KEYS)}"
            )
        if key in found:
            raise UdiError(f"{what} perNodeCache: {key} is given twice", "give it once")
        found[key] = value
    if "size" not in found:
        raise UdiError(f"{what} perNodeCache needs a size", "write perNodeCache=size=100G")
    size = sizes.parse(found["size"], f"{what} perNodeCache: size")
    block = sizes.parse(found["bs"], f"{what} perNodeCache: bs") if "bs" in found else 0
    if block > size:
        raise UdiError(f"{what} perNodeCache: bs={found['bs']} is more than size={found['size']}")
    return PerNodeCache(size, block, *_kind(found, what))


def _kind(found: dict[str, str], what: str) -> tuple[str, str]:
    """Return (fs, method). Shifter's one fs, xfs, means "what you have" here; its loop a file."""
    fs = found.get("fs", "").lower()
    method = found.get("method", "").lower()
    if method not in ("", "tmpfs", "file", "loop"):
        raise UdiError(
            f"{what} perNodeCache: unknown method {shown(method)}", "methods are tmpfs and file"
        )
    if fs not in ("", "xfs", "ext4", "tmpfs"):
        raise UdiError(
            f"{what} perNodeCache: unknown fs {shown(fs)}",
            "leave it out: method=tmpfs is a tmpfs, method=file an ext4",
        )
    method = "file" if method == "loop" else method
    if fs in ("ext4", "tmpfs"):
        wanted = "file" if fs == "ext4" else "tmpfs"
        if method not in ("", wanted):
            raise UdiError(f"{what} perNodeCache: method={method} makes no {fs}", "leave fs out")
        method = wanted
    return ("ext4" if fs == "ext4" else "", method)


def _rendered(volume: Volume) -> list[str]:
    words = [quote(volume.source), quote(volume.destination), *volume.options]
    if volume.cache is not None:
        cache = volume.cache
        block = sizes.show(cache.block) if cache.block else ""
        pairs = [f"size={sizes.show(cache.size)}"]
        for key, value in (("bs", block), ("fs", cache.fs), ("method", cache.method)):
            pairs += [f"{key}={value}"] if value else []
        words.append(f"{CACHE_FLAG}={','.join(pairs)}")
    return words
