"""Find an image in the stores: from its name to its digest, to its squashfs file and its facts.

Each start imports this. `store.store` writes what is found here:

    STORE/names/ARCH/ESCAPED-NAME    a symbolic link: its text is sha256-HEX, the image's digest
    STORE/images/sha256-HEX.sqfs     the image
    STORE/images/sha256-HEX.json     its facts
    STORE/dirs/sha256-HEX/           the image extracted, for nodes without FUSE
    STORE/blobs/, STORE/locks/       downloads, locks

A name is a link since that takes one readlink(2) and opens no file. There are names for each
architecture, because nodes of several may share one file system.
"""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import STORAGES, Platform, Reference, platform_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+,=:@#")
"""Characters that an escaped name may have."""
_NAMED = ("registry", "web", "gateway", *STORAGES)
"""Kinds of references that are a name in a store as they are."""
_CHUNK = 240
"""Most bytes of a part of an escaped name; the kernel allows 255."""
OPTIMIZED = ".optimized.sqfs"
"""The ending of an image that `udi optimize` made; it stands beside the .sqfs file."""
_GOES_ON = "%+"
"""The end of a part of an escaped name that another part follows."""


class StoredImage(Record):
    """An image of a store.

    `squashfs`, `facts` and `directory` are paths; the last is where it is extracted, or would be.
    `store` is the store's path, `size` the squashfs file's in bytes.
    """

    digest: str
    name: str
    store: str
    squashfs: str
    facts: str
    directory: str
    size: int = 0


def user_store(environ: "Mapping[str, str]") -> str:
    """Return the user's own store: $UDI_STORE, or a folder in $XDG_DATA_HOME or ~/.local/share.

    Raises UdiError where UDI_STORE is relative, or neither it nor the others are set.
    """
    own = environ.get("UDI_STORE", "")
    if own:
        if not own.startswith("/"):
            raise UdiError(f"UDI_STORE={own}: is not an absolute path", "set it to one")
        return own.rstrip("/") or "/"
    data = environ.get("XDG_DATA_HOME", "")
    if data.startswith("/"):
        # The XDG specification says to ignore a relative path.
        return f"{data.rstrip('/')}/rootless_udi"
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return f"{home.rstrip('/')}/.local/share/rootless_udi"
    raise UdiError("no place for the image store: HOME is not set", "set UDI_STORE to a directory")


class SiteStore(str):
    """The path of a store that the configuration names for all users.

    It may belong to a third user; `keeper` is the owner of the site's configuration. A path that is
    no SiteStore is the caller's own store, and must belong to the caller or root: another user may
    have made a folder at that path before.
    """

    keeper: int

    def __new__(cls, path: str, keeper: int = 0) -> "SiteStore":
        found = super().__new__(cls, path)
        found.keeper = keeper
        return found


def _third(store: str, status: os.stat_result) -> tuple[int, ...]:
    """Return the users besides the caller and root who may write a store; none or its owner.

    `status` is the store's stat(2). Raises OSError.
    """
    if not isinstance(store, SiteStore) or status.st_uid in (os.getuid(), 0):
        return ()
    if status.st_uid == store.keeper:
        return (status.st_uid,)
    return trust.keeper(store)


def find(
    stores: "tuple[str, ...]", reference: Reference, platform: Platform | None = None
) -> StoredImage | None:
    """Return the image that `reference` names in the first of `stores` that has it, or None.

    Without `platform` it is this machine's. An "oci:" or "docker-archive:" reference whose file has
    changed since it was pulled is not found, and a name whose image was removed by hand is not
    either. Raises UdiError where such a file can't be looked at, or others than the store's owner
    may have written the name; ValueError for a reference to a file or directory that is an image.
    """
    platform = platform or platform_of(os.uname().machine)
    if reference.kind == "store":
        return _first(stores, reference.digest, reference.canonical)
    name = name_of(reference)
    link = f"names/{platform.key()}/{escape(name)}"
    for store in stores:
        try:
            digest = _named(store, link)
        except OSError:
            continue
        except trust.Untrusted as error:
            _pass_over(store, error)
            continue
        image = at(store, digest, name)
        if image is not None:
            return image
    # Equal digests mean equal content: an image that was pulled by another name will do.
    return _first(stores, reference.digest, name) if reference.digest else None


def _named(store: str, link: str) -> str:
    """Return the digest that the name at `link` in `store` means.

    Raises OSError where there is no such name, UdiError where others than the store's owner may
    have written it. A store that only its owner can enter needs no look at that.
    """
    path = f"{store}/{link}"
    status, text = os.stat(store), os.readlink(path)
    if not trust.closed(status):
        judge(store, link.rpartition("/")[0])
        text = trust.link(path, _third(store, status), "the image name")
    return text.replace("-", ":", 1)


def judge(store: str, folder: str = "") -> None:
    """Raise Untrusted where others than a store's owner may write in its `folder`.

    The store's own folder and each one down to `folder` are checked. Raises OSError.
    """
    third, path = _third(store, os.stat(store)), ""
    for part in (store, *filter(None, folder.split("/"))):
        path = f"{path}/{part}" if path else part
        why = trust.refusal(path, third)
        if why:
            raise trust.Untrusted(
                f"the image store {store} is not trusted: {path}: {why}", _remedy(store, why)
            )


def _remedy(store: str, why: str) -> str:
    if "group" in why:
        return (
            f"as its owner: chmod -R go-w {store}; a project's members read it so, one account "
            "pulls into it (store.site), and the others into stores of their own"
        )
    if "written" in why:
        return f"as its owner: chmod -R go-w {store}"
    if not isinstance(store, SiteStore):
        return "set UDI_STORE to a folder of your own; another's images are for store.site"
    return "a store of the site's lies where only root and its owner can put something"


def owners(image: StoredImage) -> tuple[int, ...]:
    """Return the users besides the caller and root who may own an image and its facts.

    Raises UdiError where others may write the folder in which they are.
    """
    try:
        status = os.stat(image.store)
        if not trust.closed(status):
            judge(image.store, "images")
        return _third(image.store, status)
    except OSError as error:
        raise UdiError(f"looking at image store {image.store} failed: {error.strerror}") from None


def check_tree(directory: str, stores: "tuple[str, ...]") -> None:
    """Raise UdiError where others may write an extracted image of one of `stores`."""
    folder, _, name = directory.rpartition("/")
    path, _, folder = folder.rpartition("/")
    store = next((one for one in stores if one == path), path)
    if not trust.closed(os.stat(store)):
        judge(store, f"{folder}/{name}")


def closed(stores: "tuple[str, ...]") -> str:
    """Return the end of a message that names those of `stores` that the caller can't enter; or "".

    Only the owner can enter a new store, until he runs chmod go+rX on it.
    """
    names = [store for store in stores if os.path.isdir(store) and not os.access(store, os.X_OK)]
    return f"; permission denied on {', '.join(names)}" if names else ""


def _first(stores: "tuple[str, ...]", digest: str, name: str) -> StoredImage | None:
    for store in stores:
        image = at(store, digest, name)
        if image is None:
            continue
        try:
            if isinstance(store, SiteStore):
                judge(store, "images")
        except trust.Untrusted as error:
            _pass_over(store, error)
            continue
        return image
    return None


def _pass_over(store: str, error: trust.Untrusted) -> None:
    """Print that a store of the site is not trusted and is skipped: it must not stop every start.

    Raises the error if it is the caller's own store.
    """
    if not isinstance(store, SiteStore):
        raise error
    from rootless_udi.base.process import complain

    complain("udi", f"{error.message}; passed over", error.hint)


def at(store: str, digest: str, name: str) -> StoredImage | None:
    """Return the image with this digest in `store`, or None.

    If `udi optimize` has made another file of it, with the same content, that one is returned.
    """
    stem = digest.replace(":", "-", 1)
    if "/" in stem or not stem.startswith(("sha256-", "sha512-")):
        return None
    base = f"{store}/images/{stem}"
    for path in (base + OPTIMIZED, base + ".sqfs"):
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        return StoredImage(digest, name, store, path, base + ".json", f"{store}/dirs/{stem}", size)
    return None


def name_of(reference: Reference) -> str:
    """Return the name of `reference` in a store.

    For "oci:" and "docker-archive:" it ends with "#", the modification time in nanoseconds and the
    size of the file that changes whenever the image does. Raises UdiError where that is missing.
    """
    place = place_of(reference)
    if reference.kind in _NAMED:
        return place
    path = os.path.abspath(reference.path)
    changes = f"{path}/index.json" if reference.kind == "oci" else path
    try:
        found = os.stat(changes)
    except OSError as error:
        raise UdiError(
            f"reading image {reference.canonical} failed on {changes}: {error.strerror}",
            "the path ends at the first ':'; what follows is the tag",
        ) from None
    return f"{place}#{found.st_mtime_ns}-{found.st_size}"


def place_of(reference: Reference) -> str:
    """Return the reference with an absolute path, without the state that `name_of` adds.

    Raises ValueError for a file or directory that is an image.
    """
    if reference.kind in _NAMED:
        return reference.canonical
    if reference.kind not in ("oci", "archive"):
        raise ValueError(f"{reference.canonical}: is not kept in a store")
    which = f"@{reference.digest}" if reference.digest else ""
    if reference.tag:
        which = f":{reference.tag}"
    prefix = "oci" if reference.kind == "oci" else "docker-archive"
    return f"{prefix}:{os.path.abspath(reference.path)}{which}"


def escape(name: str) -> str:
    """Return a relative path for a name: percent-encoded, in parts of at most 242 bytes."""
    text = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(name)
    )
    if text.startswith("."):
        # In a store, files that begin with a dot are temporary ones.
        text = f"%2e{text[1:]}"
    parts = [text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK)]
    return "/".join([part + _GOES_ON for part in parts[:-1]] + parts[-1:])


def unescape(path: str) -> str:
    """Return the name whose escaped form is `path`."""
    text = path.replace(f"{_GOES_ON}/", "")
    first, *others = text.split("%")
    out = bytearray(first.encode())
    for other in others:
        out.append(int(other[:2], 16))
        out += other[2:].encode()
    return os.fsdecode(bytes(out))
