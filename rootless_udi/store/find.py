"""Find an image in the stores: name -> digest -> squashfs and facts. A launch imports this.

    STORE/names/ARCH/ESCAPED-NAME -> sha256-HEX     a symbolic link's text: one readlink, no open
    STORE/images/sha256-HEX.sqfs                    the image
    STORE/images/sha256-HEX.json                    its facts
    STORE/dirs/sha256-HEX/                          extracted, where there is no FUSE
    STORE/blobs/, STORE/locks/                      see `store`, which writes all this

Names are kept per architecture: clusters of mixed nodes share one file system.
"""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Platform, Reference, platform_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+,=:@#")
_CHUNK = 240
OPTIMIZED = ".optimized.sqfs"
_GOES_ON = "%+"


class StoredImage(Record):
    """An image of a store. `directory` is where its extracted tree is, or would be."""

    digest: str
    name: str
    store: str
    squashfs: str
    facts: str
    directory: str
    size: int = 0


def user_store(environ: "Mapping[str, str]") -> str:
    """Return the user's own store: $UDI_STORE, else in $XDG_DATA_HOME, else in ~/.local/share.

    Raises UdiError where none of these is set to an absolute path.
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
    """The path of a store that the configuration names for all: it may be a third user's.

    `keeper` owns the site's configuration. Any other path is a store of the caller's own, which
    must be his or root's, whoever has made a folder there before him.
    """

    keeper: int

    def __new__(cls, path: str, keeper: int = 0) -> "SiteStore":
        found = super().__new__(cls, path)
        found.keeper = keeper
        return found


def _third(store: str, status: os.stat_result) -> tuple[int, ...]:
    """Return who besides the caller and root may have filled a store. Raises OSError."""
    if not isinstance(store, SiteStore) or status.st_uid in (os.getuid(), 0):
        return ()
    if status.st_uid == store.keeper:
        return (status.st_uid,)
    return trust.keeper(store)


def find(
    stores: "tuple[str, ...]", reference: Reference, platform: Platform | None = None
) -> StoredImage | None:
    """Return the image that `reference` names in the first of `stores` that has it, or None.

    `platform` is this machine's where it is not given. Costs an open and a stat in each store, and
    one stat for "oci:" and "docker-archive:", whose changed file is a miss; an image that a person
    deleted by hand is one too. Raises UdiError where such a file cannot be looked at, or others
    than the store's owner may have named the image, and ValueError for a reference to a plain file
    or directory.
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
    # The digest names the content: an image that was pulled under another name will do.
    return _first(stores, reference.digest, name) if reference.digest else None


def _named(store: str, link: str) -> str:
    """Return the digest that a name of `store` means.

    Raises OSError where there is no such name, and UdiError where somebody else may have written
    it; in a store that only its owner can enter, nobody can have.
    """
    path = f"{store}/{link}"
    status, text = os.stat(store), os.readlink(path)
    if not trust.closed(status):
        judge(store, link.rpartition("/")[0])
        text = trust.link(path, _third(store, status), "the image name")
    return text.replace("-", ":", 1)


def judge(store: str, folder: str = "") -> None:
    """Raise Untrusted where others than its owner may put something into a store's `folder`.

    Each folder from the store's own down is looked at. Raises OSError.
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
    """Return who besides the caller and root may have written an image and its facts.

    Raises UdiError where the folder that they are in may be written by others.
    """
    try:
        status = os.stat(image.store)
        if not trust.closed(status):
            judge(image.store, "images")
        return _third(image.store, status)
    except OSError as error:
        raise UdiError(f"looking at image store {image.store} failed: {error.strerror}") from None


def check_tree(directory: str, stores: "tuple[str, ...]") -> None:
    """Raise UdiError where others may change the extracted image of one of `stores`."""
    folder, _, name = directory.rpartition("/")
    path, _, folder = folder.rpartition("/")
    store = next((one for one in stores if one == path), path)
    if not trust.closed(os.stat(store)):
        judge(store, f"{folder}/{name}")


def closed(stores: "tuple[str, ...]") -> str:
    """Say which of `stores` the caller may not search, to end a message with; "" for none.

    A new store may be read by its owner alone, until he runs chmod go+rX on it.
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
    """Say so where a store of the site's is not trusted: who put it there must not stop anybody.

    Raises the error where it is the caller's own, who asked for it.
    """
    if not isinstance(store, SiteStore):
        raise error
    from rootless_udi.base.process import complain

    complain("udi", f"{error.message}; passed over", error.hint)


def at(store: str, digest: str, name: str) -> StoredImage | None:
    """Return the image with this digest in `store`, or None.

    One that `udi optimize` has laid out anew is preferred: its content is the same.
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
    """Return the name that a store knows `reference` by.

    That of "oci:" and "docker-archive:" has, after a "#", modification time (ns) and size of the
    file that changes with the image. Raises UdiError where that is missing.
    """
    place = place_of(reference)
    if reference.kind == "registry":
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
    """Return where an image comes from, its path absolute; ValueError for plain paths."""
    if reference.kind == "registry":
        return reference.canonical
    if reference.kind not in ("oci", "archive"):
        raise ValueError(f"{reference.canonical}: is not kept in a store")
    which = f"@{reference.digest}" if reference.digest else ""
    if reference.tag:
        which = f":{reference.tag}"
    prefix = "oci" if reference.kind == "oci" else "docker-archive"
    return f"{prefix}:{os.path.abspath(reference.path)}{which}"


def escape(name: str) -> str:
    """Return a relative path for any name: percent-encoded, in parts of at most 242 bytes."""
    text = "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02x}" for byte in os.fsencode(name)
    )
    if text.startswith("."):
        # Dot files are temporary files here.
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
