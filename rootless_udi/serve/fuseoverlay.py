"""Run fuse-overlayfs, for --writable where the kernel mounts no overlay; outside the container.

As with image servers, we mount the FUSE connection and give it to the program. The program works in
a mount namespace of its own, which has the image and the private memory mounted in the host's /tmp.
So both stay until the container's mount is gone and the program ends. If it is killed, they are
gone at once, and with them the container's record, so that nobody joins it. A further process waits
for the program. Only the starts that need it import this.
"""

import os

from rootless_udi.base.errors import NOT_FOUND, UdiError
from rootless_udi.base.messages import pair, receive, tell
from rootless_udi.base.syscalls import (
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    unshare,
)
from rootless_udi.serve import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import NoReturn

LAYER = "udi-layer"
"""What ps(1) shows of the process that waits; at most 15 bytes."""

_FLAGS = MS_NOSUID | MS_NODEV


def mount_over(program: str) -> None:
    """Mount /image with the changes of /upper at /root, by `program` (fuse-overlayfs).

    Call this while the host's tree is at /host. Raises UdiError where the program does not serve.
    """
    fuse = os.open("/host/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    said = os.memfd_create("stderr")
    mine, theirs = pair()
    launcher = os.getpid()
    between = os.fork()
    if between == 0:
        try:
            if os.fork() == 0:
                mine.close()
                _serve(program, fuse, said, theirs, launcher)
        finally:
            os._exit(0)
    theirs.close()
    os.waitpid(between, 0)
    try:
        # Wait until the process has its mount namespace: a copy of the new mount there would keep
        # the mount for ever.
        receive(mine)
        # As `execute` mounts an image.
        data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        mount("fuse-overlayfs", "/root", "fuse.fuse-overlayfs", _FLAGS, data)
        tell(mine, "mounted")
        # If this descriptor stayed open and the server died, readers would hang and not get
        # ENOTCONN.
        os.close(fuse)
        os.listdir("/root")
        tell(mine, "serves")
    except OSError as error:
        words = outside.printed(said)
        raise UdiError(
            f"--writable by {program} failed: {words or error.strerror}",
            "without --writable the image is run as it is",
        ) from None
    finally:
        mine.close()
        os.close(said)


def _serve(program: str, fuse: int, said: int, sock: "_socket.socket", launcher: int) -> "NoReturn":
    """In the child: run `program` on the connection `fuse` and wait for its end.

    If it fails while the container lives, the process `launcher`, which has become the command, is
    told so.
    """
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    base = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.chroot("/host")
    outside.leave(LAYER, base, fuse, said, sock.fileno())
    tell(sock, "ready")
    if not receive(sock)[0]:
        os._exit(0)
    child = os.fork()
    if child == 0:
        try:
            sock.close()
            _become(program, base, fuse, said)
        except OSError as error:
            os.write(said, f"starting it failed: {error.strerror}".encode())
        finally:
            os._exit(NOT_FOUND)
    os.close(base)
    os.close(fuse)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code and receive(sock)[0]:
        from rootless_udi.serve import lastwords

        how = outside.ending(code)
        lastwords.say(
            launcher,
            f"what was written in the container is lost: {program} has ended ({how})",
            "without --writable no other program is needed; or start it again",
        )
    os._exit(0)


def _become(program: str, base: int, fuse: int, said: int) -> "NoReturn":
    """Become `program`, with the image and the private memory mounted in the host's /tmp.

    `base` is a descriptor of the private tmpfs that has them, `said` gets its standard error.
    """
    os.fchdir(base)
    os.chroot(".")
    unshare(CLONE_NEWNS)
    mount("tmpfs", "/host/tmp", "tmpfs", _FLAGS, "mode=700")
    for name, flags in (("image", MS_BIND | MS_REC), ("upper", MS_BIND)):
        os.mkdir(f"/host/tmp/{name}")
        mount(f"/{name}", f"/host/tmp/{name}", None, flags)
    os.chroot("/host")
    os.chdir("/")
    os.dup2(said, 2)
    os.set_inheritable(fuse, True)
    layers = "lowerdir=/tmp/image,upperdir=/tmp/upper/upper,workdir=/tmp/upper/work"
    argv = [program, "-f", "-o", layers, f"/dev/fd/{fuse}"]
    os.execve(program, argv, {"PATH": "/usr/bin:/bin"})
