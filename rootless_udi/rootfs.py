"""The container's tree while it is made: mount points, binds, generated files, links.

All paths are looked up inside it (openat2(2), RESOLVE_IN_ROOT): no link of the image leads one out.
The host's tree is at /host and private memory at /files, as `execute` arranges them.
"""

import os
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR, EROFS
from stat import S_ISDIR, S_ISLNK

from rootless_udi import skeleton
from rootless_udi.errors import UdiError
from rootless_udi.steps import Directory, File, Mount, Step, Symlink
from rootless_udi.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    mount,
    openat2,
    restrict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.cache import FileCache

_WORDS = {"ro", "rw", "nosuid", "nodev", "noexec", "rec", "private", "slave"}


class Rootfs:
    """The container's tree while it is made; no link of it leads a path out."""

    def __init__(self, root: str, caches: dict[str, int]) -> None:
        self.root = root
        self.caches = caches
        self.fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        self.files = 0
        self.to_seal: list[int] = []
        self.checked: set[str] = set()

    def do(self, step: "Step | FileCache") -> None:
        """Carry out one step."""
        if isinstance(step, Mount):
            self.mount(step)
        elif step.target in self.caches:
            self.cache(step.target)
        elif isinstance(step, File):
            self.file(step)
        elif isinstance(step, Symlink):
            self.symlink(step)
        else:
            assert isinstance(step, Directory)
            os.close(self.ensure(step.target, True, step.mode))

    def mount(self, step: Mount) -> None:
        """Bind the source or mount a file system on the target."""
        words = {o for o in step.options if o in _WORDS}
        flags = MS_NOSUID * ("nosuid" in words) | MS_NODEV * ("nodev" in words)
        source = f"/host{step.source}"
        is_directory = bool(step.fstype) or S_ISDIR(os.stat(source).st_mode)
        target = self.ensure(step.target, is_directory)
        where = f"/host/proc/self/fd/{target}"
        if step.fstype:
            data = ",".join(o for o in step.options if o not in _WORDS)
            mount(step.source, where, step.fstype, flags, data)
            if "ro" in words:
                self.to_seal.append(self.open(step.target))
        else:
            # Always recursive: mounts of the parent namespace are locked to each other, and the
            # kernel refuses to show a part of them (mount_namespaces(7)).
            mount(source, where, None, MS_BIND | MS_REC)
            os.close(target)
            target = self.open(step.target)
            where = f"/host/proc/self/fd/{target}"
            if "slave" not in words:
                mount(None, where, None, MS_REC | MS_PRIVATE)
            flags |= MS_RDONLY * ("ro" in words)
            if flags:
                restrict(where, flags)
        os.close(target)

    def cache(self, path: str) -> None:
        """Attach a perNodeCache that was made before the host's tree moved."""
        from rootless_udi import detached

        target = self.ensure(path, True)
        detached.attach(self.caches[path], target)
        os.close(target)

    def file(self, step: File) -> None:
        """Bind a generated file over the target."""
        source = f"/files/{self.files}"
        self.files += 1
        write(source, step)
        folder = step.target.rpartition("/")[0] or "/"
        if folder not in self.checked:
            # Most files are of /etc: that no link leads it elsewhere is looked at once.
            os.close(self.ensure(folder, True))
            self.checked.add(folder)
        target = self.ensure(step.target, False)
        mount(source, f"/host/proc/self/fd/{target}", None, MS_BIND)
        os.close(target)
        target = self.open(step.target)
        restrict(f"/host/proc/self/fd/{target}", MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.close(target)

    def symlink(self, step: Symlink) -> None:
        """Make a link; one that is there and says the same is left alone."""
        folder, _, name = step.target.rpartition("/")
        parent = self.ensure(folder or "/", True)
        try:
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
        """Open `path` inside the tree (O_PATH); links are followed but never out of it."""
        return openat2(
            self.fd,
            path,
            os.O_PATH | os.O_CLOEXEC,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )

    def ensure(self, path: str, is_directory: bool, mode: int = 0o755) -> int:
        """Open the mount point `path`, which is made where it is missing, with its parents."""
        try:
            fd = self.open(path)
        except OSError as error:
            if error.errno == ENOENT:
                return self._make(path, is_directory, mode)
            why = {
                ELOOP: "the image's symbolic links lead in a circle",
                ENOTDIR: "a part of it is a file in the image",
            }.get(error.errno or 0, error.strerror)
            raise UdiError(f"mount point {path} can't be opened: {why}") from None
        self._check(path, fd)
        if S_ISDIR(os.fstat(fd).st_mode) != is_directory:
            os.close(fd)
            kinds = ("a file", "a directory")
            raise UdiError(
                f"mounting on {path} failed: it is {kinds[not is_directory]} in the image, and "
                f"{kinds[is_directory]} is to be mounted there",
            )
        return fd

    def _check(self, path: str, fd: int) -> None:
        """Refuse a standard mount point that the image's links lead elsewhere (/etc -> /)."""
        if path not in skeleton.DIRECTORIES:
            return
        found = os.readlink(f"/host/proc/self/fd/{fd}")
        found = found.removeprefix(self.root) or "/"
        if found != path and found not in skeleton.DIRECTORIES:
            os.close(fd)
            raise UdiError(
                f"mount point {path} is a symbolic link in the image, to {found}",
                "no image of a Linux distribution has that; make it a directory",
            )

    def _make(self, path: str, is_directory: bool, mode: int) -> int:
        folder, _, name = path.rstrip("/").rpartition("/")
        parent = self.ensure(folder or "/", True)
        try:
            if path in skeleton.FILES or not is_directory:
                self._make_file(parent, name)
            else:
                os.mkdir(name, mode, dir_fd=parent)
        except OSError as error:
            raise UdiError(
                f"mount point {path} is not in the image and can't be made: {error.strerror}",
                "choose a destination that exists in the image, or make it writable (--writable)",
            ) from None
        finally:
            os.close(parent)
        return self.open(path)

    def _make_file(self, parent: int, name: str) -> None:
        """Make an empty file; a dangling link of the image in its place goes."""
        try:
            if S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=parent))

    def seal(self) -> None:
        """Make read-only what had to be writable while mount points were made in it.

        By descriptor and without what is mounted below: a volume may be in it by now, or over it.
        """
        for fd in self.to_seal:
            restrict(f"/host/proc/self/fd/{fd}", MS_RDONLY, below=False)
            os.close(fd)
        os.close(self.fd)


def write(path: str, step: File) -> None:
    """Write a generated file. Raises UdiError at a limit, OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, step.mode)
    data = step.content.encode("utf-8", "surrogateescape")
    try:
        while data:
            # At a limit the first write is short, and the next one says why.
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise UdiError(
            f"writing {step.target} failed: {error.strerror}",
            "see the limits of memory and of file size (ulimit -f)",
        ) from None
    os.close(fd)
