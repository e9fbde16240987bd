"""Parse volumes: `SRC:DST[:FLAG...]`, several joined by `;`. Pure.

Text between double quotes is taken literally, and so is a character after a backslash, inside and
outside of quotes. That may be no letter or digit, as in the escapes of C. Shifter drops characters
that it does not know, so that a name with a space means another directory there; here a name is
taken as written, or refused. Whether a source exists is not looked at here.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan import sizes
from rootless_udi.plan.mountpoints import within

FLAGS = ("ro", "rw", "rec", "slave", "private")
"""The flags, words of mount(8). In Shifter users may give `ro` only, and administrators all."""
FORMS = ("sqfs", "bind")
"""What a file is mounted as: the directory that is in a squashfs file, or the file itself."""
_CACHE_FLAG = "perNodeCache"
_CACHE_KEYS = ("size", "bs", "fs", "method")
PATH_MAX = 4096
"""Bytes of a path with its final NUL; of a name without one (linux/limits.h)."""
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
_ALLOWED = ("/var/tmp", "/etc/ssh/ssh_config")
"""The second is what `udi sshd` brings."""
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
    """A private file system of a container on one node: empty at its start, gone at its end.

    `size` and `block` are bytes; a block of 0 means the method's own. `method` is "tmpfs", "file",
    or "" for the site's default. `fs` is "ext4", or "" for what the method makes.
    """

    size: int
    block: int = 0
    fs: str = ""
    method: str = ""


class Volume(Record):
    """`source` of the host appears at `destination` of the container. Both are absolute and normal.

    `options` are words of FLAGS in the order given. `cache` is set for a perNodeCache, whose source
    is the directory for its file. `origin` says who asked for it: "--volume", or a file and a key.
    `form` is a word of FORMS, "" where the file's content and the destination's name decide.
    """

    source: str
    destination: str
    options: tuple[str, ...] = ()
    cache: "PerNodeCache | None" = None
    origin: str = "--volume"
    form: str = ""


def parse(text: str, site: bool = False, origin: str = "--volume") -> tuple[Volume, ...]:
    """Return the volumes in the text of an option or a variable, in its order; none for "".

    A single path is source and destination. `site`: the text is the site's (Shifter's siteFs),
    which may mount where users may not. Raises UdiError, which says what is wrong where.
    """
    found = [
        _volume(fields, raw, site, origin)
        for raw, fields in _entries(text, origin)
        if fields != [""]
    ]
    together(found)
    return tuple(found)


def together(volumes: "tuple[Volume, ...] | list[Volume]") -> tuple[Volume, ...]:
    """Return volumes in the order in which they must be mounted: parents before children.

    Raises UdiError for two volumes with one destination, and for one inside a perNodeCache: a cache
    is empty at first, and so has no mount point for it.
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


def quote(name: str) -> str:
    """Return `name` so that `parse` takes it as it is, in quotes where it needs them."""
    if not name or any(c in ':;"\\\n' for c in name):
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return name


def shown(text: str) -> str:
    """Return a name for a message; in quotes and with escapes if it has unusual characters."""
    text = text if len(text) <= 120 else text[:100] + "..."
    return text if text and text.isprintable() and " " not in text else repr(text)


def normal(path: str, what: str) -> str:
    """Return an absolute path without doubled slashes, `.` and a trailing slash.

    `what` begins the message, as in "volume '/a:b': destination". Raises UdiError for a relative
    path, one with `..` or NUL, and one that is too long for Linux.
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
    """Raise UdiError, with the reason, if a user's volume may not be mounted at `destination`.

    Whole parts of the path are compared: /etcfoo is allowed, which Shifter refuses for its /etc.
    """
    reason = _FORBIDDEN_EXACTLY.get(destination)
    if reason:
        raise UdiError(f"{what} {destination} is not allowed: {reason}", _ELSEWHERE)
    if any(within(destination, place) for place in _ALLOWED):
        return
    for folder, reason in _FORBIDDEN:
        if within(destination, folder):
            inside = "" if destination == folder else f" (inside {folder})"
            raise UdiError(
                f"{what} {shown(destination)}{inside} is not allowed: {reason}", _ELSEWHERE
            )


def allowed_for_site(destination: str, what: str) -> None:
    """Raise UdiError if even the site may not mount at `destination`."""
    if destination in _SITE_FORBIDDEN:
        raise UdiError(
            f"{what} {destination} is not allowed: it would hide what every container is made of",
            "mount below it, or choose another destination",
        )


def _entries(text: str, origin: str) -> list[tuple[str, list[str]]]:
    """Split at `;` and `:` into entries: (the entry's text, its unquoted fields)."""
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
    forms: list[str] = []
    cache: PerNodeCache | None = None
    for flag in fields[2:]:
        name, has_value, value = flag.partition("=")
        if name.lower() == _CACHE_FLAG.lower():
            if cache is not None:
                raise UdiError(f"{what} perNodeCache is given twice", "give it once")
            cache = _cache(value, what)
        elif name.lower() in FLAGS and not has_value:
            if name.lower() not in options:
                options.append(name.lower())
        elif name.lower() in FORMS and not has_value:
            forms.append(name.lower())
        else:
            raise UdiError(
                f"{what} unknown flag {shown(flag)}",
                f"flags are {', '.join(FLAGS + FORMS)} and {_CACHE_FLAG}=size=..., each after ':'",
            )
    _agree([*options, *forms], cache, what)
    return Volume(source, destination, tuple(options), cache, origin, forms[0] if forms else "")


def _agree(options: list[str], cache: "PerNodeCache | None", what: str) -> None:
    """Refuse flags that contradict each other."""
    for one, two in (("ro", "rw"), ("slave", "private"), FORMS, ("sqfs", "rw")):
        if one in options and two in options:
            raise UdiError(f"{what} {one} and {two} contradict each other", "give one of them")
    others = [option for option in options if option != "rw"]
    if cache is not None and others:
        raise UdiError(
            f"{what} perNodeCache with {', '.join(others)}: a cache is always private and writable",
            "leave the other flags out",
        )


def _cache(text: str, what: str) -> PerNodeCache:
    """Parse `size=100G[,bs=1M][,fs=ext4][,method=tmpfs|file]`; keys in any case, as in Shifter."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        key, _, value = pair.partition("=")
        key = key.lower()
        if key not in _CACHE_KEYS:
            raise UdiError(
                f"{what} perNodeCache has no {shown(key)}", f"its keys are {', '.join(_CACHE_KEYS)}"
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
    """Return (fs, method). Of Shifter's words, fs=xfs means any fs here, and method=loop a file."""
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
