"""Where the windows of a remote image are kept on this machine: in a store, or without a name."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.base.syscalls import is_local
from rootless_udi.base.windows import WINDOW, WindowList, count
from rootless_udi.plan.reference import platform_of_key
from rootless_udi.remote.sources import Remote, RemoteRequest
from rootless_udi.store import journal as journals
from rootless_udi.store.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    # What fills a store takes longer to load than a start's first windows to come.
    from rootless_udi.store.filling import Filling
    from rootless_udi.store.store import Store


class WindowsPlace(Record):
    """The file at `fd`, and by which path this machine's processes of the user can open it.

    `journal` notes the windows in it, whose list is `known`. `filling` is what it will be in
    `store`, None for nothing, and `why`; `mask` is the caller's umask.
    """

    fd: int
    path: str
    journal: Journal | None = None
    known: WindowList | None = None
    filling: "Filling | None" = None
    store: "Store | None" = None
    mask: int = 0o022
    why: str = ""

    def made(self, fresh: bool = False) -> bool:
        """Tell whether the store has the image by now (`Store.image`), and give it its names.

        To be asked after the file was opened: whoever made the image meanwhile has taken the file
        away, and this would be another one.
        """
        if self.filling is None or self.store is None:
            return False
        from rootless_udi.store import filling

        if self.store.image(self.filling.digest, fresh=fresh) is None:
            return False
        found = filling.wanted(self.store, self.filling) or self.filling
        # The one that was asked for last: whoever waits for it finds the others, too.
        for key, name in reversed(found.names):
            self.store.set_name(name, platform_of_key(key), found.digest)
        filling.drop(self.store, found)
        return True


def opened(asked: RemoteRequest, remote: Remote, mask: int) -> WindowsPlace:
    """Return the place for an image's windows, as long as its file is.

    In a store they are named by the image, so that the next start finds what is there, whatever
    ended this one; nothing of it is used before it was compared with the list. Without a store or
    a list, or where the store's file system can't have it, it is a file without a name, in TMPDIR
    or in memory; then nothing is filled. Raises OSError.
    """
    known, why = remote.known, "the image has no list of its windows"
    if asked.folder and known is not None:
        name = journals.name_of(remote.digest, known.digest)
        try:
            root, store = asked.folder, None
            if asked.fill:
                from rootless_udi.store.store import Store

                store = Store(asked.folder)
                store.create()
                root = store.root
            fd, journal = journals.opened(root, name)
            why = _long(fd, remote.size)
            if not why:
                path = f"{root}/blobs/{name}{journals.WINDOWS}"
                one = WindowsPlace(fd, path, Journal(journal, count(known.size), _alone(fd)), known)
                return one if store is None else _to_fill(one, store, remote, mask)
            os.close(fd)
            os.close(journal)
        except OSError as error:
            why = error.strerror or str(error)
        except UdiError as error:
            why = error.message
    return nameless(remote, why)


def nameless(remote: Remote, why: str) -> WindowsPlace:
    """Return a place for an image's windows that ends with this process; `why` there is no other.

    Raises OSError.
    """
    return _place(_file(), remote, why)


def in_memory(remote: Remote, why: str) -> WindowsPlace:
    """Return a place as `nameless` does, for where its disk is full. Raises OSError."""
    return _place(_memory(), remote, why)


def _place(fd: int, remote: Remote, why: str) -> WindowsPlace:
    os.ftruncate(fd, remote.size)
    return WindowsPlace(fd, f"/proc/{os.getpid()}/fd/{fd}", why=why)


def _alone(fd: int) -> bool:
    try:
        return is_local(fd)
    except OSError:
        return False


def _to_fill(one: WindowsPlace, store: "Store", remote: Remote, mask: int) -> WindowsPlace:
    """Return the place with its record, which is written into the store. Raises OSError."""
    from rootless_udi.store import filling
    from rootless_udi.store.filling import Filling

    assert one.known is not None
    fields = remote.digest, one.known.digest, remote.size, remote.used, remote.ranges.shown
    what = Filling(*fields, remote.names)
    filling.begin(store, what)
    return one.replace(filling=what, store=store, mask=mask)


def _long(fd: int, size: int) -> str:
    """Make the file at `fd` `size` bytes long; return why the file system should not have it, or
    "".

    On one that has no sparse files the first start would write all bytes of the image as zeros.
    Raises OSError.
    """
    before = os.fstat(fd).st_size
    probe = min(size, 4 * WINDOW)
    if before < probe:
        os.ftruncate(fd, probe)
        if os.fstat(fd).st_blocks * 512 >= probe:
            os.ftruncate(fd, 0)
            return "its file system has no sparse files"
    if before != size:
        os.ftruncate(fd, size)
    return ""


def _file() -> int:
    elsewhere = os.environ.get("TMPDIR") or "/tmp"
    try:
        return os.open(elsewhere, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        pass
    path = f"{elsewhere}/.udi-remote-{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return _memory()
    os.unlink(path)
    return fd


def _memory() -> int:
    fd = os.memfd_create("udi-remote")
    # The kernel gives it to all.
    os.fchmod(fd, 0o600)
    return fd
