"""Do the steps of a plan in the container's tree: mount points, mounts, generated files, links.

All paths are looked up with the tree as root directory (openat2(2), RESOLVE_IN_ROOT), so that no
link of the image leads to the host. The host's tree is at /host and private memory at /files, as
`execute` has arranged them.
"""

import os
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR, EROFS
from stat import S_ISDIR

from rootless_udi.base.calls import openat2, restrict
from rootless_udi.base.errors import UdiError
from rootless_udi.base.syscalls import (
    MS_BIND,
    MS_MOVE,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount,
)
from rootless_udi.plan import mountpoints
from rootless_udi.plan.steps import Directory, File, Mount, Squashfs, Step, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.pernodecache import FileCache

FLAGS = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
"""Option of mount(8) -> flag of mount(2)."""
WORDS = {*FLAGS, "rw", "rec", "private", "slave"}
"""The options that are ours to do; others of a mount go to its file system."""


class Rootfs:
    """The container's tree while it is made, at `root`.

    `caches` are the mounts of perNodeCaches and of squashfs volumes, by target.
    """

    def __init__(self, root: str, caches: dict[str, int]) -> None:
        self.root = root
        self.caches = caches
        self.fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        self.files = 0
        self.to_seal: list[int] = []
        self.checked: set[str] = set()
        self.mounts: list[tuple[str, str, str]] = []
        """For each mount: its target as named, the path to which links led, and the host's path (""
        if it is no bind)."""
        self.where: dict[str, str] = {}
        """Standard directory -> its path without links, for those that were looked at."""

    def do(self, step: "Step | FileCache") -> None:
        """Do one step. Raises UdiError, OSError."""
        if isinstance(step, Mount):
            if step.only_empty:
                self.mount_if_empty(step)
            else:
                self.mount(step)
        elif isinstance(step, Squashfs):
            self.served(step)
        elif step.target in self.caches:
            self.cache(step.target)
        elif isinstance(step, File):
            self.file(step)
        elif isinstance(step, Symlink):
            self.symlink(step)
        else:
            assert isinstance(step, Directory)
            os.close(self.ensure(step.target, True, step.mode)[0])

    def found(self, fd: int) -> str:
        """Return the path in the tree, without links, of what is open at `fd`."""
        return os.readlink(f"/host/proc/self/fd/{fd}").removeprefix(self.root) or "/"

    def mount_if_empty(self, step: Mount) -> None:
        """Do an optional step: if the image has nothing there, and if it is possible."""
        try:
            target = self.open(step.target)
        except OSError as error:
            if error.errno != ENOENT:
                return
        else:
            try:
                with os.scandir(f"/host/proc/self/fd/{target}") as listing:
                    if next(listing, None) is not None:
                        return
            except OSError:
                # It is no directory, or can't be read: the image has something there.
                return
            finally:
                os.close(target)
        before = len(self.mounts)
        try:
            self.mount(step)
        except (OSError, UdiError):
            del self.mounts[before:]

    def mount(self, step: Mount) -> None:
        """Bind the source, or mount a file system, on the target. Raises UdiError, OSError."""
        flags = 0
        for word in step.options:
            flags |= FLAGS.get(word, 0)
        source = f"/host{step.source}"
        try:
            is_directory = bool(step.fstype) or S_ISDIR(os.stat(source).st_mode)
        except OSError as error:
            if not step.required:
                return
            raise UdiError(
                f"mounting {step.source} on {step.target} failed: {error.strerror}",
                "it was there when this start was planned: try again",
            ) from None
        target, found = self.ensure(step.target, is_directory)
        where = f"/host/proc/self/fd/{target}"
        self.mounts.append((step.target, found, "" if step.fstype else step.source))
        if step.fstype:
            data = ",".join(o for o in step.options if o not in WORDS)
            # Read-only only at the end (`seal`), since mount points must be made in it.
            mount(step.source, where, step.fstype, flags & ~MS_RDONLY, data)
            if flags & MS_RDONLY:
                self.to_seal.append(self.open(step.target))
        else:
            if unknown := set(step.options) - WORDS:
                raise AssertionError(f"a bind on {step.target} with {', '.join(unknown)}")
            # Always with MS_REC: mounts that come from the parent namespace are locked together,
            # and the kernel refuses to bind one without those below it (mount_namespaces(7)).
            mount(source, where, None, MS_BIND | MS_REC)
            os.close(target)
            target = self.open(step.target)
            where = f"/host/proc/self/fd/{target}"
            if "slave" not in step.options:
                mount(None, where, None, MS_REC | MS_PRIVATE)
            if flags:
                restrict(where, flags)
        os.close(target)

    def cache(self, path: str) -> None:
        """Attach the mount of a perNodeCache, made before the host's tree moved to /host."""
        from rootless_udi.serve import detached

        target, found = self.ensure(path, True)
        self.mounts.append((path, found, ""))
        detached.attach(self.caches[path], target)
        os.close(target)

    def served(self, step: Squashfs) -> None:
        """Move the mount of a squashfs volume, which `serve.volumes` has made, to its target."""
        if step.directory:
            options = ("nosuid", "nodev", "ro")
            self.mount(Mount(step.target, step.directory, options=options))
            return
        target, found = self.ensure(step.target, True)
        self.mounts.append((step.target, found, step.root.path))
        made, fds = self.caches[step.target], "/host/proc/self/fd"
        mount(f"{fds}/{made}", f"{fds}/{target}", None, MS_MOVE)
        os.close(made)
        os.close(target)

    def file(self, step: File) -> None:
        """Bind a generated file over the target."""
        source = f"/files/{self.files}"
        self.files += 1
        write(source, step)
        folder = step.target.rpartition("/")[0] or "/"
        if folder not in self.checked:
            # Most files are in /etc: it is checked only once where links lead it.
            os.close(self.ensure(folder, True)[0])
            self.checked.add(folder)
        target, _ = self.ensure(step.target, False)
        mount(source, f"/host/proc/self/fd/{target}", None, MS_BIND)
        os.close(target)
        target = self.open(step.target)
        restrict(f"/host/proc/self/fd/{target}", MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.close(target)

    def symlink(self, step: Symlink) -> None:
        """Make a symbolic link; one that is there already with the same target stays."""
        folder, _, name = step.target.rpartition("/")
        parent, where = self._reach(folder or "/", True)
        try:
            self._allow(step.target, where, name)
            try:
                os.symlink(step.to, name, dir_fd=parent)
            except OSError as error:
                # On a read-only file system the kernel may say EROFS before EEXIST.
                if error.errno not in (EEXIST, EROFS):
                    raise
                self._replace(parent, name, step)
        finally:
            os.close(parent)

    def _replace(self, parent: int, name: str, step: Symlink) -> None:
        try:
            if os.readlink(name, dir_fd=parent) == step.to:
                return
        except OSError:
            pass
        try:
            os.unlink(name, dir_fd=parent)
            os.symlink(step.to, name, dir_fd=parent)
        except OSError as error:
            raise UdiError(
                f"making the link {step.target} -> {step.to} failed: {error.strerror}",
                f"asked for by: {step.reason}",
            ) from None

    def open(self, path: str) -> int:
        """Open `path` in the tree (O_PATH). Links never lead out of it. Raises OSError."""
        return openat2(
            self.fd,
            path,
            os.O_PATH | os.O_CLOEXEC,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )

    def ensure(self, path: str, is_directory: bool, mode: int = 0o755) -> tuple[int, str]:
        """Open the mount point `path`; make it and its parents if they are missing.

        Return the descriptor and the path to which links led. Raises UdiError where nothing may be
        mounted there, and where it can't be made.
        """
        fd, found = self._reach(path, is_directory, mode)
        standard = path in mountpoints.DIRECTORIES
        if not standard and (why := mountpoints.carried(path, found, self._places())):
            os.close(fd)
            raise _elsewhere(path, found, why)
        return fd, found

    def _reach(
        self, path: str, is_directory: bool, mode: int = 0o755, asked: str = ""
    ) -> tuple[int, str]:
        """Open `path`, and make it if it is missing; return descriptor and path as `ensure` does.

        `asked` is the path that was asked for, if a link of that led to `path`.
        """
        try:
            fd = self.open(path)
        except OSError as error:
            if error.errno == ENOENT:
                return self._make(path, is_directory, mode, asked or path)
            why = {
                ELOOP: f"the symbolic links of {self._whose(path)} lead in a circle",
                ENOTDIR: f"a part of it is a file in {self._whose(path)}",
            }.get(error.errno or 0, error.strerror)
            raise UdiError(f"mount point {path} can't be opened: {why}") from None
        found = self.found(fd)
        if path in mountpoints.DIRECTORIES:
            self._check(path, fd, found)
        if S_ISDIR(os.fstat(fd).st_mode) != is_directory:
            os.close(fd)
            kinds = ("a file", "a directory")
            raise UdiError(
                f"mounting on {path} failed: it is {kinds[not is_directory]} in "
                f"{self._whose(path)}, and {kinds[is_directory]} is to be mounted there",
            )
        return fd, found

    def _whose(self, path: str) -> str:
        """Say, for a message, what `path` is in: the image, or the source of a mount."""
        named = [
            (name, source) for name, _, source in self.mounts if mountpoints.within(path, name)
        ]
        return max(named, key=lambda one: len(one[0]), default=("", ""))[1] or "the image"

    def _places(self) -> dict[str, str]:
        """Return standard directory -> its path without links, for `mountpoints.carried`."""
        for point in ("/etc", "/opt/udiImage"):
            if point not in self.where:
                self.where[point] = point
                try:
                    fd = self.open(point)
                except OSError:
                    continue
                self.where[point] = self.found(fd)
                os.close(fd)
        return {point: self.where.get(point, point) for point in mountpoints.DIRECTORIES}

    def _check(self, path: str, fd: int, found: str) -> None:
        """Raise UdiError if links of the image lead a standard directory where it may not be."""
        folder, _, name = path.rpartition("/")
        if found != path:
            fits = path in mountpoints.FOLLOWED and mountpoints.may_lead(found)
            if folder:
                parent, where = self._reach(folder, True)
                fits = found == f"{where}/{name}"
                os.close(parent)
            if not fits:
                os.close(fd)
                raise UdiError(
                    f"mount point {path} is a symbolic link in the image, to {found}",
                    "make the image anew (udi pull --force)",
                )
        self.where[path] = found

    def _make(self, path: str, is_directory: bool, mode: int, asked: str) -> tuple[int, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        parent, where = self._reach(folder or "/", True, asked=asked if asked != path else "")
        source = ""
        try:
            source = self._allow(asked, where, name)
            if is_directory and not source and (led := _link(parent, name)) is not None:
                # A link that leads to nothing (/home -> var/home in images for bootc): make that.
                to = led if led.startswith("/") else f"{where}/{led}"
                return self._reach(to, True, mode, asked)
            if path in mountpoints.FILES or not is_directory:
                _make_file(parent, name, replace=not source)
            elif name not in ("", ".", ".."):
                os.mkdir(name, mode, dir_fd=parent)
        except OSError as error:
            if source:
                word = "mkdir -p" if is_directory else "touch"
                raise UdiError(
                    f"mount point {path} is not in {source} and can't be made there: "
                    f"{error.strerror}",
                    f"make it on the host first ({word}), or choose another destination",
                ) from None
            raise UdiError(
                f"mount point {path} is not in the image and can't be made: {error.strerror}",
                "choose a destination that exists in the image, or make it writable (--writable)",
            ) from None
        finally:
            os.close(parent)
        fd = self.open(path)
        return fd, self.found(fd)

    def _allow(self, path: str, where: str, name: str) -> str:
        """Check that `path` may be made, as `name` in the directory `where`.

        Return the host's path of the mount that it would be made in; "" for the image and private
        memory. Raises UdiError where nothing may be mounted there, and where only a link leads
        into a folder of the host: nothing is made in that.
        """
        place = f"{where.rstrip('/')}/{name}"
        if why := mountpoints.carried(path, place, self._places()):
            raise _elsewhere(path, place, why)
        inside = [mount for mount in self.mounts if mountpoints.within(where, mount[1])]
        by_name, found, source = max(inside, key=lambda one: len(one[1]), default=("", "", ""))
        if source and not (mountpoints.within(path, by_name) or mountpoints.within(path, found)):
            raise _elsewhere(path, place, f"nothing is made in {source} of the host through a link")
        return source

    def seal(self) -> None:
        """Make file systems read-only that had to be writable while mount points were made in them.

        They are reached by descriptor, since a volume may be mounted over them by now; and without
        the mounts below, which may be volumes. Raises OSError.
        """
        for fd in self.to_seal:
            restrict(f"/host/proc/self/fd/{fd}", MS_RDONLY, below=False)
            os.close(fd)
        os.close(self.fd)


def _elsewhere(path: str, found: str, why: str) -> UdiError:
    led = f"symbolic links lead it to {found}, and " if found != path else ""
    return UdiError(
        f"mounting on {path} failed: {led}{why}",
        "choose another destination, for example /data",
    )


def _link(folder: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _make_file(folder: int, name: str, replace: bool) -> None:
    """Make an empty file; with `replace`, remove a link to nothing in its place. Raises OSError."""
    if replace and _link(folder, name) is not None:
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o644, dir_fd=folder))


def write(path: str, step: File) -> None:
    """Write a generated file. Raises UdiError where that fails, OSError where it can't be made."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, step.mode)
    data = step.content.encode("utf-8", "surrogateescape")
    try:
        while data:
            # At a limit of size the first write is short, and the next one fails.
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise UdiError(
            f"writing {step.target} failed: {error.strerror}",
            "see the limits of memory and of file size (ulimit -f)",
        ) from None
    os.close(fd)
