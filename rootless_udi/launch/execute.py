"""Carry out a Plan: make the system calls in its order, and decide nothing.

First the process enters a new user namespace, the outer one. There it is root, and may mount FUSE,
an overlay and binds. At the end it enters a second one, the inner one, in which the caller has his
own uid again. Under a launcher these are the launcher's (`node.pair`). In between, the process's
root directory is a private tmpfs:

    /host      the host's root directory, until the end
    /image     the image: mounted by FUSE, or a bind of a directory
    /upper     the overlay's upper layer and work directory; covers (see `underlay`)
    /files     generated files, which are bound over their targets
    /root      the overlay, if there is one
"""

import os
from errno import ELOOP, ENODEV, ENOTCONN
from stat import S_IFDIR, S_IMODE, S_ISDIR

from rootless_udi.base.calls import late, restrict
from rootless_udi.base.errors import UdiError
from rootless_udi.base.syscalls import (
    IN_ONLYDIR,
    IN_UNMOUNT,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    REFUSED,
    inotify_add_watch,
    inotify_init,
    mount,
    open_tree,
    pivot_root,
    protect,
    umount,
)
from rootless_udi.idmap import maps, userns
from rootless_udi.launch import layover
from rootless_udi.launch.rootfs import Rootfs, write
from rootless_udi.plan.planner import Plan, layered
from rootless_udi.plan.steps import File, Mount, Step, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootless_udi.serve.helper import Helper

BASE = "/tmp"
"""A directory that each host has; the private tmpfs is mounted on it until pivot_root(2)."""
FUSE_OPTIONS = ",rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
OVERLAY_OPTIONS = "lowerdir=/image,upperdir=/upper/upper,workdir=/upper/work,userxattr"


def run(
    plan: Plan,
    helper: "Helper",
    spaces: "tuple[int, int] | None" = None,
    rootfs: "Callable[[str, dict[str, int]], Rootfs]" = Rootfs,
) -> None:
    """Make the container of `plan`. Afterwards the calling process is in it, at "/", unprivileged.

    `helper` has the image served if the plan mounts it by FUSE. `spaces` are an outer and an inner
    user namespace that are there already; `rootfs` makes the tree over an overlay. Raises UdiError,
    OSError; then the caller can just exit, since the kernel removes all mounts with the namespaces.
    """
    mask = os.umask(0o022)
    if spaces is None:
        userns.enter((maps.OUTER, plan.uid), (maps.OUTER, plan.gid))
    else:
        userns.join(spaces[0])
    caches = _caches(plan)
    made = _by_itself(plan) if plan.root.server == "fuse-python" else -1
    _base()
    try:
        tree = _build(plan, helper, caches, made, rootfs)
    except OSError:
        _to_the_host()
        raise
    os.chdir(tree.root)
    pivot_root(".", ".")
    umount(".", MNT_DETACH)
    os.chdir("/")
    if spaces is None:
        userns.enter((plan.uid, maps.OUTER), (plan.gid, maps.OUTER))
    else:
        userns.join(spaces[1])
    protect()
    os.umask(mask)


def _build(
    plan: Plan,
    helper: "Helper",
    caches: dict[str, int],
    made: int,
    rootfs: "Callable[[str, dict[str, int]], Rootfs]",
) -> Rootfs:
    """Mount the image, lay what the plan says over it, and seal it."""
    if caches or made >= 0:
        from rootless_udi.serve import detached

        detached.settle()
    if made >= 0:
        _attach(plan, helper, made)
    else:
        _image(plan, helper)
    if helper.volumes is not None:
        caches |= helper.volumes.mount(_answers)
    tree, done = _lay(plan, caches, rootfs)
    for step in plan.steps:
        if step not in done:
            tree.do(step)
    tree.seal()
    if tree.root != "/image" and not plan.writable:
        restrict(tree.root, MS_RDONLY, below=False)
    return tree


def _to_the_host() -> None:
    """Let who explains an error find the host's files, /proc and /sys: what refused the call."""
    try:
        os.chroot("/host")
    except OSError:
        pass


def _base() -> None:
    """Make a private tmpfs the root directory, with the host's at /host.

    So no mount of ours hides a path of the host, which may be the source of another mount.
    """
    # Slave and not private, so that volumes can show what the host mounts later (autofs).
    mount(None, "/", None, MS_REC | MS_SLAVE)
    mount("tmpfs", BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    os.chdir(BASE)
    for name in ("host", "image", "upper", "upper/upper", "upper/work", "files", "root"):
        os.mkdir(name, 0o755)
    pivot_root(".", "host")
    os.chdir("/")


def _caches(plan: Plan) -> dict[str, int]:
    """Make the perNodeCaches in files, while the host's tree is at "/"; return target -> mount."""
    made = {}
    for step in plan.steps:
        if not isinstance(step, Step):
            # Only starts that have one import this.
            from rootless_udi.serve import cachefile

            made[step.target] = cachefile.make(step)
    return made


def _image(plan: Plan, helper: "Helper") -> None:
    """Mount the image at /image; give the FUSE connection to the helper. Raises UdiError,
    OSError."""
    root, watch = plan.root, _watch()
    if root.server == "directory":
        mount(f"/host{root.path}", "/image", None, MS_BIND | MS_REC)
        mount(None, "/image", None, MS_REC | MS_PRIVATE)
        restrict("/image", MS_NOSUID | MS_NODEV)
        helper.hand_over(root, None, watch)
        return
    # /dev/fuse must be opened in the user namespace that mounts it (fuse(4)), whose id user_id is.
    # rootmode is octal, a directory (Documentation/filesystems/fuse.rst of the kernel).
    fuse = os.open("/host/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fuse}{FUSE_OPTIONS}"
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    mount(root.server, "/image", f"fuse.{root.server}", flags, data)
    helper.hand_over(root, fuse, watch)
    # If this descriptor stayed open and the server died, readers would hang and not get ENOTCONN.
    os.close(fuse)
    if watch is not None:
        os.close(watch)
    if _answers("/image", root.path, root.path, lambda: helper.failure(root)) and helper.known:
        _ask_ahead(helper)


def _answers(place: str, what: str, path: str, failure: "Callable[[], str]") -> bool:
    """Wait until the server of the mount at `place` answers; return whether its top may be listed.

    `what` is what it serves, `path` the file, `failure` says why a server that has ended did.
    Raises UdiError where it does not serve.
    """
    try:
        # The root directory is listed: that also brings its entries into the kernel's cache, which
        # would be looked up one by one otherwise.
        top = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with os.scandir(top) as listing:
            next(listing, None)
    except PermissionError:
        # The server has answered. squashfuse_ll shows the image's own owners: the root directory
        # may belong to an id that is not mapped here, which alone may read it.
        return False
    except OSError as error:
        # ENOTCONN: the server has ended. Other errors are its answer: it can't read the directory.
        why = failure() if error.errno == ENOTCONN else error.strerror
        raise UdiError(
            f"serving {what} failed: {why}",
            f"check the file with unsquashfs -ll {path}; copy it again, or pull it anew (--force)",
        ) from None
    os.close(top)
    return True


def _ask_ahead(helper: "Helper") -> None:
    """Prefetch through a detached copy of the mount.

    Without an overlay the plan's mounts are made on the image's mount itself. Through that one,
    prefetching would walk into host directories mounted over it; a copy has none of them.
    """
    try:
        top = open_tree("/image")
    except OSError:
        # Linux before 5.2 can't do it: then nothing is prefetched.
        return
    space = os.open("/host/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    helper.ask_ahead(space, top)
    os.close(space)
    os.close(top)


def _by_itself(plan: Plan) -> int:
    """Start a server that mounts by itself, while the host's tree is at "/"; return its mount.

    Raises UdiError.
    """
    from rootless_udi.serve import detached, mounting
    from rootless_udi.serve.programs import command

    image = os.open(plan.root.path, os.O_RDONLY)
    os.set_inheritable(image, True)
    root = plan.root.replace(path=f"/dev/fd/{image}")
    try:
        return detached.serve(command(root, mounting.TARGET)[1], (image,))
    except mounting.Refused as refused:
        raise UdiError(
            f"serving {plan.root.path} by {plan.root.server} failed: {refused}",
            "--fuse=auto takes another server",
        ) from None
    finally:
        os.close(image)


def _attach(plan: Plan, helper: "Helper", tree: int) -> None:
    from rootless_udi.serve import detached

    target = os.open("/image", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    detached.attach(tree, target)
    os.close(target)
    restrict("/image", MS_RDONLY | MS_NOSUID | MS_NODEV)
    helper.hand_over(plan.root, None, _watch())


def _watch() -> int | None:
    """Return an inotify descriptor that becomes readable when the private tmpfs is unmounted.

    That is when the mount namespace ends, and so the container. None where the user has no inotify
    instance left (inotify(7)): then the container's record may stay until the next run removes it.
    """
    try:
        fd = inotify_init()
    except OSError:
        return None
    inotify_add_watch(fd, "/files", IN_UNMOUNT | IN_ONLYDIR)
    return fd


def _lay(
    plan: Plan, caches: dict[str, int], rootfs: "Callable[[str, dict[str, int]], Rootfs]"
) -> "tuple[Rootfs, tuple[Step, ...]]":
    """Make the layer over the image; return the tree, and the steps that are done by that.

    Raises UdiError where the layer can't be made; OSError.
    """
    kind, why = plan.layer.kind, ""
    if kind == "overlay":
        done = _upper(plan)
        why = _overlay()
        if not why:
            return rootfs("/root", caches), done
        kind = plan.layer.instead
    if plan.root.server == "directory" and kind in ("none", "underlay"):
        # A server's mount is read-only already. Binds of parts of it get its flags.
        restrict("/image", MS_RDONLY)
    if kind == "underlay":
        return late("rootless_udi.launch.underlay").Underlay("/image", caches, plan), ()
    if kind == "fuse-overlayfs":
        done = done if why else _upper(plan)
        late("rootless_udi.serve.fuseoverlay").mount_over(plan.layer.program)
        return Rootfs("/root", caches), done
    if kind == "none":
        return Rootfs("/image", caches), ()
    raise UdiError(
        f"an overlay over {plan.root.path} is needed ({plan.layer.reason}), and can't be mounted: "
        f"{why}",
        "`udi doctor` tries it; --writable takes fuse-overlayfs where that is installed",
    )


def _upper(plan: Plan) -> "tuple[Step, ...]":
    """Do the steps of `planner.layered` in the overlay's upper layer; return those that are done.

    For a mount of a file only its mount point is made. Standard directories are made too where the
    image has none, or something else in their place.
    """
    steps = layered(plan)
    etc = "/upper/upper/etc"
    try:
        mode = os.lstat("/image/etc").st_mode if steps else 0
    except FileNotFoundError:
        mode = S_IFDIR | 0o755
    if not (plan.complete and (S_ISDIR(mode) or not steps)):
        etc = f"/upper/upper{layover.directories('/image', '/upper/upper')}"
    elif steps:
        os.mkdir(etc)
        os.chmod(etc, S_IMODE(mode))
    for step in steps:
        path = f"{etc}/{step.target.rpartition('/')[2]}"
        if isinstance(step, File):
            write(path, step)
        elif isinstance(step, Symlink):
            os.symlink(step.to, path)
        elif not S_ISDIR(os.stat(f"/host{step.source}").st_mode):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    return tuple(step for step in steps if not isinstance(step, Mount))


def _overlay() -> str:
    """Mount the overlay; return why the kernel refuses it, "" if it does not.

    It answers one of REFUSED if users may not mount overlays, or for a directory with another mount
    in it (EINVAL); ENODEV if it has no overlayfs; ELOOP for too many layers of overlays.
    """
    try:
        mount("overlay", "/root", "overlay", MS_NOSUID | MS_NODEV, OVERLAY_OPTIONS)
    except OSError as error:
        if error.errno not in (*REFUSED, ENODEV, ELOOP):
            raise
        return str(error.strerror)
    return ""
