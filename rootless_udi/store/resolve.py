"""Find the image that the word IMAGE means: in a store, as a file or as a directory.

If it is missing it may be pulled first, by another program (`udi pull`): a start never imports the
code of pulls.
"""

import os
from stat import S_ISDIR, S_ISREG

from rootless_udi.base import fastjson, trust
from rootless_udi.base.calls import spawn
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.base.superblock import (
    ASKS,
    COMPRESSOR,
    COMPRESSORS,
    HEAD,
    INSIDE,
    MAGIC,
    OPTIMIZED,
    SIZE,
    USED,
    VERSION,
    VERSION_4_0,
)
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import Request
from rootless_udi.plan.reference import Platform, Reference, named, parse_platform
from rootless_udi.store import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rootless_udi.plan.site import Site

_PRIVATE = (
    "it is private: who brought it into the site's store lets others read it (udi share); `udi "
    "pull` brings one of your own"
)
_AGAIN = "make it anew: udi pull --force IMAGE"
INSIDE_MAX = 64 << 20
"""Most bytes of facts that are read from an image's file; they are JSON, with zeros that fill a
block (`base.superblock.INSIDE`)."""


def image(request: Request, site: "Site", environ: "Mapping[str, str]", who: str) -> Image:
    """Return the image that the request names; pull it first if --pull or the site says so.

    Nothing is pulled in a job of several ranks, where 10,000 nodes would pull at once; `who` is
    their launcher, "" for none. Raises UdiError where there is no such image, or this node's CPU
    can't run it.
    """
    reference = named(request.image, site.registry)
    platform = parse_platform(request.platform) if request.platform else None
    if reference.kind not in ("squashfs", "directory", "path"):
        found = _stored(request, reference, platform, site, environ, who)
    elif platform is not None:
        raise UdiError(
            f"--platform={request.platform}: image {request.image} is a file or a directory, "
            "which is for one machine",
            "leave it out; it chooses among the images of one name",
        )
    else:
        found = local(request.image, os.path.abspath(reference.path), sif=True)
    if found.facts.get("variant") not in (None, "", "v1", "v8"):
        # Only for these: few images have a variant, and to look at the CPU is to open a file.
        from rootless_udi.store import platforms

        platforms.check(found, platform)
    return found


def _stored(
    request: Request,
    reference: Reference,
    platform: Platform | None,
    site: "Site",
    environ: "Mapping[str, str]",
    who: str,
) -> Image:
    stores = all_stores(site, environ)
    policy = request.pull or site.pull
    found = None if policy == "always" and not who else lookup(stores, reference, platform)
    if found is None:
        if who or policy == "never":
            from rootless_udi.store import suggest

            meant = suggest.meant(request.image, stores)
            why = "a job of several ranks never pulls" if who else "--pull=never"
            raise UdiError(
                f"image {request.image} is in no image store ({', '.join(stores)}), and {why}"
                + find.closed(stores),
                f"run this first, once: udi pull {_chosen(request)}{request.image}"
                + (f"; {meant}" if meant else ""),
            )
        if unseen := find.closed(stores):
            complain("udi-run", f"image {request.image} is in no image store{unseen}")
        pull(request, stores[0])
        found = lookup(stores, reference, platform)
        if found is None:
            raise UdiError(f"image {request.image} is not in the store after its pull")
    owners = find.owners(found)
    packed = check(found.squashfs, _AGAIN, owners)
    facts = read(found.facts, owners)
    return Image(request.image, found.digest, found.squashfs, found.directory, facts, *packed)


def lookup(
    stores: tuple[str, ...], reference: Reference, platform: Platform | None = None
) -> find.StoredImage | None:
    """Return what `find.find` does; without `platform` also an image for a lower variant of the
    CPU.

    Such an image is there after `udi pull --platform=linux/amd64/v2 NAME`.
    """
    found = find.find(stores, reference, platform)
    if found is None and platform is None and reference.kind != "store":
        from rootless_udi.store import platforms

        found = platforms.best(stores, reference)
    return found


def all_stores(site: "Site", environ: "Mapping[str, str]") -> tuple[str, ...]:
    """Return the user's store, then the site's. Without HOME, the account's is used."""
    shared = tuple(find.SiteStore(path, site.owner) for path in site.site_stores)
    if site.store and not environ.get("UDI_STORE"):
        return (site.store, *shared)
    environ = dict(environ)
    if not environ.get("HOME"):
        import pwd

        try:
            environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            if shared:
                return shared
    own = find.user_store(environ)
    # $UDI_STORE may name one of the site's stores. Then it is that one, with the same trusted
    # users.
    same = next((one for one in shared if one == own), own)
    return (same, *(one for one in shared if one != own))


def local(text: str, path: str, sif: bool = False) -> Image:
    """Return the image that is the squashfs file or the root directory at `path`.

    `text` is what the caller wrote; `sif` says that a SIF file will do too (`store.inplace`).
    Raises UdiError where it is neither.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UdiError(f"opening image {path} failed: {error.strerror}") from None
    if S_ISDIR(status.st_mode):
        # lexists: links of the image (Nix: /bin -> /nix/store/...) lead nowhere on the host.
        if not os.path.lexists(f"{path}/usr") and not os.path.lexists(f"{path}/bin"):
            raise UdiError(
                f"directory {path} is no root file system: it has neither /usr nor /bin",
                f"an OCI image layout is named oci:{path}",
            )
        return Image(text, "", "", os.path.realpath(path), {})
    if not S_ISREG(status.st_mode):
        raise UdiError(f"image {path} is neither a file nor a directory")
    try:
        name, optimized, data = examine(path)
    except UdiError:
        from rootless_udi.store import inplace

        found = inplace.image(text, path) if sif else None
        if found is None:
            raise
        packed = examine(path, "the file is damaged: copy it again", None, found.offset)
        return found.replace(compressor=packed[0])
    known = _inside(path, data) if data else _beside(path, status.st_uid)
    # Said of a store by its own pull; here anybody could have written it.
    known = {key: value for key, value in known.items() if key not in ("signed", "pushed")}
    digest = known.get("digest", "")
    return Image(text, digest, os.path.realpath(path), "", known, name, optimized)


def _inside(path: str, data: bytes) -> "dict[str, Any]":
    """Return the facts in `data`, which `udi export` wrote into the file at `path`.

    They are trusted as much as the file itself. Raises UdiError where they are damaged.
    """
    try:
        return parsed(data)
    except ValueError as error:
        raise UdiError(
            f"reading the facts inside {path} failed: {error}", "copy the file, or export it, again"
        ) from None


def _beside(path: str, owner: int) -> "dict[str, Any]":
    """Return the facts in the file beside the image at `path`; `owner` is the image's.

    The caller did not name that file, and in a folder like /tmp anybody may make one. If others
    than the caller, root and `owner` may have written it, or it can't be read, a message says so,
    and the image is run without facts.
    """
    facts = os.path.splitext(path)[0] + ".json"
    try:
        return _facts(facts, (owner,))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        complain("udi-run", f"{facts} is not read: {error.strerror}")
    except trust.Untrusted as error:
        complain("udi-run", f"{error.message}; the image is used without it", error.hint)
    return {}


def check(path: str, hint: str, owners: "tuple[int, ...]") -> tuple[str, bool]:
    """Return the first two of what `examine` returns, for a squashfs file of a store."""
    return examine(path, hint, owners)[:2]


def examine(
    path: str, hint: str = "", owners: "tuple[int, ...] | None" = None, offset: int = 0
) -> tuple[str, bool, bytes]:
    """Return (compressor's name, made by `udi optimize`, facts inside as JSON) of a squashfs file.

    With `owners` the file is one of a store: it may be written by the caller, root and these only,
    and facts inside are not looked for, since a store has them in a file beside it. Without,
    anybody may have written it. `offset` is where in the file the squashfs begins: for one in a SIF
    file, behind which nothing is looked for. Raises UdiError with `hint` where the file is no
    squashfs 4.0 or cut off, as its superblock tells, or others may have written it.
    """
    try:
        fd = trust.regular(path)
        try:
            if owners is not None:
                trust.check(fd, path, owners, "image")
            head = os.pread(fd, HEAD, offset)
            size = os.fstat(fd).st_size - offset
            used = int.from_bytes(head[USED], "little")
            optimized = OPTIMIZED in head
            data = b"" if offset or owners is not None else _behind(fd, size, used, optimized)
        finally:
            os.close(fd)
    except OSError as error:
        private = owners is not None and isinstance(error, PermissionError)
        raise UdiError(
            f"opening image {path} failed: {error.strerror}", _PRIVATE if private else ""
        ) from None
    if len(head) < SIZE or int.from_bytes(head[:4], "little") != MAGIC:
        from rootless_udi.store import suggest

        why, hint = suggest.kind(path) if not hint else ("", hint)
        why = f"it is {why}" if why else "it does not begin with squashfs's magic number"
    elif head[VERSION] != VERSION_4_0:
        why = "it is not of squashfs version 4.0"
    elif used > size:
        why = f"it is cut off: {size} bytes of {used}"
        hint = hint or "copy it again, or pull it anew (udi pull --force)"
    else:
        name = COMPRESSORS.get(int.from_bytes(head[COMPRESSOR], "little"), "unknown")
        return name, optimized, data
    hint = hint or "a name without / is looked up in the store; a tar is docker-archive:FILE"
    raise UdiError(f"image {path} is no squashfs file: {why}", hint)


def _behind(fd: int, size: int, used: int, optimized: bool) -> bytes:
    """Return the facts behind a squashfs of `used` bytes, as JSON; b"" for none.

    b" " stands for facts that are too large: it is no JSON, so that reading them fails.
    """
    end = size
    for _ in range(1 + optimized):
        if end - 16 < used:
            break
        last = os.pread(fd, 16, end - 16)
        start = end - int.from_bytes(last[8:], "little")
        if last[:8] not in (INSIDE, ASKS) or not used <= start <= end - 16:
            break
        if last[:8] == INSIDE:
            if end - start > INSIDE_MAX:
                return b" "
            return os.pread(fd, end - 16 - start, start).rstrip(b"\0") or b" "
        end = start
    return b""


def read(path: str, owners: "tuple[int, ...]") -> "dict[str, Any]":
    """Return the facts in the file at `path`; {} where there is no such file.

    Raises UdiError for a file that is damaged, or that others than the caller, root and `owners`
    may have written.
    """
    try:
        return _facts(path, owners)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UdiError(f"reading {path} failed: {error.strerror}") from None


def _facts(path: str, owners: "tuple[int, ...]") -> "dict[str, Any]":
    data = trust.read(path, owners)
    try:
        return parsed(data)
    except ValueError as error:
        raise UdiError(f"reading {path} failed: {error}", _AGAIN) from None


def parsed(data: bytes) -> "dict[str, Any]":
    """Return the facts in `data`; {} for another JSON document, or facts of a later version.

    Raises ValueError where they are damaged.
    """
    found = fastjson.loads(data.decode())
    if not isinstance(found, dict) or found.get("version") != 1:
        return {}
    _check_shape(found)
    return found


def _check_shape(facts: "dict[str, Any]") -> None:
    """Raise ValueError if facts that become arguments or variables of the command are no text."""
    for name in ("env", "entrypoint", "cmd", "workdir", "digest", "scripts"):
        value = facts.get(name) or ()
        words = [value] if name in ("workdir", "digest", "scripts") and value else value
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise ValueError(f"its {name} is not what udi pull writes")
        text = "".join(words)
        # This raises ValueError for half a surrogate pair, which JSON can hold.
        text.encode("utf-8", "surrogateescape")
        if "\0" in text:
            raise ValueError(f"its {name} holds a NUL character")


def _chosen(request: Request) -> str:
    return f"--platform={request.platform} " if request.platform else ""


def pull(request: Request, store: str, *options: str) -> None:
    """Run `udi pull` with `options` for the request's image, into `store`.

    Raises UdiError where that fails; `udi pull` has said why.
    """
    words = ["pull", *options, *(["--quiet"] if request.quiet else [])]
    words += [*(["--insecure"] if request.insecure else []), *_chosen(request).split()]
    words += ["--", request.image]
    if udi(words, {"UDI_STORE": store}):
        raise UdiError(f"image {request.image} could not be pulled")


def udi(words: "list[str]", more: "Mapping[str, str]") -> int:
    """Run `udi` of this package with the variables `more`; return its exit status."""
    from rootless_udi.base import program

    argv = program.argv("from rootless_udi.commands.udi import main; main()", *words)
    # Not to our standard output, which is the command's: `udi` prints a digest or path for scripts.
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        pid = spawn(argv[0], argv, {**os.environ, **more}, [(null, 1)])
    finally:
        os.close(null)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
