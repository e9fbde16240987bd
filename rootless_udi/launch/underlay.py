"""Make mount points without an overlay: cover the image's directories that lack one
(`plan.covers`).

A cover is a directory in private memory that is bound over a directory of the image. The directory
has been opened before; through that descriptor each of its entries is bound into the cover. Links
are made again. The directories above it stay as they are. Only the starts that need it import this.

The image must be read-only before, since binds of its parts get its flags. They are made with
MS_REC: mounts that come from the parent namespace are locked together, and the kernel refuses to
bind one without those below it (mount_namespaces(7)).
"""

import os
from errno import EACCES, EIO, ENOENT, ENOSPC, ENOTCONN, ENXIO, ESTALE, ETIMEDOUT, EUCLEAN
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_IMODE, S_ISDIR, S_ISLNK

from rootless_udi.base.calls import openat2
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.base.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount,
)
from rootless_udi.launch.rootfs import Rootfs, write
from rootless_udi.plan import covers
from rootless_udi.plan.covers import Cover
from rootless_udi.plan.steps import File, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.planner import Plan

_STAGE = "/upper"
"""The folder in private memory in which the covers are made."""

_LOOKED_AT = 16
"""While a directory is listed, every 16th entry is looked up. As long as somebody looks up what is
listed, the kernel asks the image server for pages of names with their attributes
(FUSE_READDIRPLUS_AUTO), each of which has more than 16. Otherwise it would ask for the attributes
of each entry singly, when that is bound."""

_UNREADABLE = (EACCES, EIO, ENOTCONN, ENXIO, ESTALE, ETIMEDOUT, EUCLEAN)
"""What a damaged image, or a network's file system, answers for one entry: the others are well."""


class Underlay(Rootfs):
    """The container's tree: the image itself, with covers."""

    def __init__(self, root: str, caches: dict[str, int], plan: "Plan") -> None:
        super().__init__(root, caches)
        self.memory = os.stat(_STAGE).st_dev
        self.covers: list[tuple[int, int]] = []
        """For each cover its descriptor, and the directory's st_mtime_ns in the image."""
        files = frozenset(
            step.target
            for step in plan.steps
            if isinstance(step, Mount) and not step.fstype and _is_file(step.source)
        )
        for cover in covers.covers(plan.steps, self.look, files):
            try:
                count = self.cover(cover)
            except UdiError:
                if cover.required:
                    raise
                continue
            if text := covers.warning(cover, count):
                complain("udi-run", f"warning: {text}")

    def look(self, path: str) -> tuple[str, str]:
        """Return what is at `path`, as `plan.covers.Look` says."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = openat2(self.fd, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except OSError:
            return "", ""
        try:
            mode = os.fstat(fd).st_mode
            if S_ISLNK(mode):
                return "link", os.readlink("", dir_fd=fd)
            return ("directory" if S_ISDIR(mode) else "file"), ""
        finally:
            os.close(fd)

    def cover(self, cover: Cover) -> int:
        """Make a cover; return the number of its entries. Raises UdiError, OSError."""
        stage = f"{_STAGE}/cover{len(self.covers)}"
        os.mkdir(stage, 0o700)
        at = self.open(cover.target)
        where = f"/host/proc/self/fd/{at}"
        try:
            old = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            entries = _entries(old, cover)
        except OSError as error:
            raise _impossible(cover, f"listing it failed: {error.strerror}") from None
        status = os.fstat(old)
        mount(stage, where, None, MS_BIND)
        os.close(at)
        if cover.target == "/":
            # The mount's own root directory is covered now: open it again, to get the cover.
            os.close(self.fd)
            self.fd = os.open(self.root, os.O_PATH | os.O_CLOEXEC)
        new = self.open(cover.target)
        here = os.open("/", os.O_PATH | os.O_CLOEXEC)
        # With these as root and working directory, "/name" is in the image, "name" in the cover.
        os.fchdir(old)
        os.chroot(".")
        os.fchdir(new)
        failed: list[tuple[str, str]] = []
        try:
            for name, mode in entries:
                try:
                    _bind(old, name, mode)
                except OSError as error:
                    if error.errno not in _UNREADABLE:
                        raise
                    _remove(name, mode)
                    failed.append((name, error.strerror or ""))
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            why = f"a mount for each of its {len(entries)} entries is too much (fs.mount-max)"
            raise _impossible(cover, why) from None
        finally:
            os.fchdir(here)
            os.chroot(".")
            os.close(here)
            os.close(old)
        if failed:
            complain("udi-run", f"warning: {covers.left_out(cover, failed)}")
        os.chmod(f"/host/proc/self/fd/{new}", S_IMODE(status.st_mode))
        self.covers.append((new, status.st_mtime_ns))
        return len(entries)

    def file(self, step: File) -> None:
        """Write a generated file into a cover if its folder is one; else bind it."""
        folder, _, name = step.target.rpartition("/")
        parent, where = self._reach(folder or "/", True)
        try:
            if os.fstat(parent).st_dev == self.memory and not _there(parent, name):
                self._allow(step.target, where, name)
                write(f"/host/proc/self/fd/{parent}/{name}", step)
                return
        finally:
            os.close(parent)
        super().file(step)

    def seal(self) -> None:
        """Make the covers read-only, and give them the times of the directories that they cover.

        The flags of these mounts are known, so that mount(2) can set them all on any kernel. Raises
        OSError.
        """
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
        for fd, time in self.covers:
            where = f"/host/proc/self/fd/{fd}"
            os.utime(where, ns=(time, time))
            mount(None, where, None, flags)
            os.close(fd)
        super().seal()


def _is_file(source: str) -> bool:
    try:
        return not S_ISDIR(os.stat(f"/host{source}").st_mode)
    except OSError:
        # It has vanished since the plan was made; mounting it will fail.
        return False


def _entries(folder: int, cover: Cover) -> list[tuple[str, int]]:
    """Return (name, S_IFMT bits) of the entries to bind, 0 for a FIFO, socket or device.

    In the reverse order of the image's listing: a tmpfs lists the newest entry first, so that the
    cover is listed as the image is. Raises UdiError for too many entries; OSError.
    """
    found: list[tuple[str, int]] = []
    with os.scandir(folder) as listing:
        for entry in listing:
            if entry.name in cover.without:
                continue
            if len(found) == covers.MOST:
                raise UdiError(covers.too_many(cover), _hint(cover))
            try:
                if entry.is_dir(follow_symlinks=False):
                    kind = S_IFDIR
                elif entry.is_symlink():
                    kind = S_IFLNK
                else:
                    kind = S_IFREG if entry.is_file(follow_symlinks=False) else 0
            except OSError:
                # The listing has no types, and this entry can't be asked: binding it will tell why.
                kind = 0
            if len(found) % _LOOKED_AT == 0:
                _there(folder, entry.name)
            found.append((entry.name, kind))
    return found[::-1]


def _bind(folder: int, name: str, kind: int) -> None:
    """Make an entry of `folder` visible in the current directory; skip one that has vanished.

    Raises OSError.
    """
    try:
        if S_ISLNK(kind):
            os.symlink(os.readlink(name, dir_fd=folder), name)
            times = os.stat(name, dir_fd=folder, follow_symlinks=False)
            ns = times.st_atime_ns, times.st_mtime_ns
            os.utime(name, ns=ns, follow_symlinks=False)
            return
        if S_ISDIR(kind):
            os.mkdir(name)
        else:
            # A mount point of the same type, so that a listing shows it. A device can't be made.
            kind = kind or S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            os.mknod(name, 0o600 | (kind if kind in (S_IFIFO, S_IFSOCK) else S_IFREG))
        mount(f"/{name}", name, None, MS_BIND | MS_REC)
    except OSError as error:
        if error.errno != ENOENT:
            raise
        _remove(name, kind)


def _remove(name: str, kind: int) -> None:
    """Take an entry's mount point out of the cover again, if it is there. Raises OSError."""
    if _there(None, name):
        (os.rmdir if S_ISDIR(kind) else os.unlink)(name)


def _there(folder: int | None, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        return error.errno != ENOENT
    return True


def _impossible(cover: Cover, why: str) -> UdiError:
    return UdiError(f"covering {cover.target} of the image failed: {why}", _hint(cover))


def _hint(cover: Cover) -> str:
    return (
        f"{cover.reason}; choose a destination that exists in the image, or a kernel with overlay "
        "for users (Linux 5.11 or newer)"
    )
