"""udi doctor: what this machine lets an ordinary user do: a line for each check, with the remedy.

A check tries the thing itself; what changes something is tried in a process of its own.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rootless_udi.base import jsontext, refusers, syscalls, trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page, say
from rootless_udi.commands import doctor_calls
from rootless_udi.commands.common.findings import FAILURE, OK, WARNING, Finding
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.config import load
from rootless_udi.host import facts as host
from rootless_udi.idmap import maps, userns
from rootless_udi.plan.image import Image
from rootless_udi.serve import choose


def findings(environ: dict[str, str]) -> Iterator[Finding]:
    """Yield the findings, in the order in which a launch needs what they are about."""
    from rootless_udi.commands import doctor_places

    yield _python()
    yield _launcher()
    yield _kernel()
    yield from _user_namespaces()
    spaces = _namespaces()
    yield spaces
    fuse = _fuse_device()
    yield fuse
    # Without namespaces the next checks would fail too, and their remedies would mislead.
    if fuse.state == OK and spaces.state == OK:
        yield _tried("FUSE in a user namespace", _try_fuse, "a kernel of 4.18 or newer is needed")
    if spaces.state == OK:
        yield _tried(
            "overlay in a user namespace",
            _try_overlay,
            "Linux 5.11 or newer; without it missing mount points are made in covers "
            "(see --explain), and --writable takes fuse-overlayfs",
            WARNING,
        )
    yield from _new_calls()
    yield _squashfuse(environ, fuse.state == OK)
    yield from _decompressors()
    yield _server(environ)
    yield _writer()
    yield _unsquashfs(fuse.state == OK)
    yield doctor_places.configuration(environ)
    # Nobody has neither state nor images; root asks as him what the machine lets others do.
    if os.getuid() != trust.NOBODY:
        yield from doctor_places.state(environ)
    yield from doctor_places.store(environ)
    yield _network()


def add(commands: Parsers) -> None:
    """Add the parser of `udi doctor`."""
    text = "check what this machine lets an ordinary user do, with the remedies"
    one = command(commands, "doctor", doctor, text)
    add_json(one)
    one.add_argument("--user", help="for root: check as this user, not as nobody")


def doctor(arguments: Arguments) -> int:
    """udi doctor: print the findings; 1 where one is a failure, else 0."""
    if arguments.user and arguments.user != pwd.getpwuid(os.getuid()).pw_name:
        raise UdiError(f"--user={arguments.user}: only root can check as another user")
    environ = dict(os.environ)
    if arguments.json:
        found = list(findings(environ))
        page(jsontext.text([dict(zip(f.FIELDS, f.values(), strict=True)) for f in found]) + "\n")
        return int(any(finding.state == FAILURE for finding in found))
    worst = 0
    for finding in findings(environ):
        say(f"{finding.state:<8}{finding.what}: {finding.found}")
        if finding.remedy and finding.state != OK:
            say(f"{'':8}  remedy: {finding.remedy}")
        worst |= finding.state == FAILURE
    return worst


def _python() -> Finding:
    version = sys.version.split()[0]
    cached = Path(__file__).parent.parent / "__pycache__"
    tag = sys.implementation.cache_tag
    if not any(cached.glob(f"*.{tag}.pyc")) and not os.access(cached.parent, os.W_OK):
        return Finding(
            WARNING,
            "Python",
            f"{version}, without compiled modules: each start compiles them anew",
            f"{sys.executable} -m compileall {cached.parent} (uv: install with --compile-bytecode)",
        )
    return Finding(OK, "Python", f"{version} ({sys.executable})")


def _launcher() -> Finding:
    """Tell which udi-run is in use: the one beside this program, else the first of the PATH."""
    path = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "udi-run")
    if not os.path.isfile(path):
        path = shutil.which("udi-run") or ""
    try:
        with open(path, "rb") as file:
            in_c = file.read(4) == b"\x7fELF"
    except OSError:
        return Finding(WARNING, "udi-run", "it is not found", "put its folder on the PATH")
    if in_c:
        return Finding(OK, "udi-run", f"in C: a rank joins in a millisecond ({path})")
    what = f"in sh and Python: a rank joins in ten milliseconds ({path})"
    return Finding(OK, "udi-run", f"{what}; docs/launchers.md has the one in C")


def _kernel() -> Finding:
    name = os.uname()
    what = f"{name.sysname} {name.release} ({name.machine})"
    if host.release(name.release) < (4, 18):
        remedy = "user namespaces can mount FUSE from Linux 4.18 on"
        return Finding(FAILURE, "kernel", what, remedy)
    return Finding(OK, "kernel", what)


def _user_namespaces() -> Iterator[Finding]:
    for one in refusers.SETTINGS:
        value = refusers.value(one.name)
        named, _, mode = refusers.label().rpartition(" ")
        if value == one.bad and one.name == refusers.APPARMOR and mode == "(unconfined)":
            # Whether this one allows it, what is tried below tells.
            yield Finding(OK, one.name, f"{value}, and this program has the profile {named}")
        elif value == one.bad:
            # Some program that starts this one may have a profile which allows it.
            state = WARNING if one.name == refusers.APPARMOR else FAILURE
            yield Finding(state, one.name, f"{value}: {one.means}", one.remedy)
        elif value:
            yield Finding(OK, one.name, value)
    if kind := refusers.domain():
        yield Finding(OK, "SELinux", f"in force; this is the domain {kind}")
    elif name := refusers.profile():
        yield Finding(OK, "AppArmor", f"in force; this is the profile {name}")


def _namespaces() -> Finding:
    """Try to make namespaces, as each launch does; in a chroot that fails (user_namespaces(7))."""
    remedy = (
        "inside a container? it must allow unshare(2) and mount(2): docker run "
        f"{refusers.CONTAINER}; in a chroot? run it outside"
    )
    table = [line.split() for line in _read("/proc/self/mountinfo").splitlines()]
    if table and not any(fields[4] == "/" for fields in table):
        remedy = (
            "this is a chroot, in which nobody may make user namespaces: run it outside, or enter "
            "the directory by something that calls pivot_root(2) (bwrap, systemd-nspawn)"
        )
        why, _ = in_child(_try_namespaces)
        return Finding(FAILURE if why else OK, "user and mount namespaces", why or "works", remedy)
    return _tried("user and mount namespaces", _try_namespaces, remedy)


def _fuse_device() -> Finding:
    if not os.path.exists("/dev/fuse"):
        return Finding(
            WARNING,
            "/dev/fuse",
            "missing: images are extracted into directories instead",
            "the administrator: modprobe fuse (in a container: --device /dev/fuse)",
        )
    if os.stat("/dev/fuse").st_rdev != host.FUSE:
        return Finding(
            WARNING,
            "/dev/fuse",
            "something else is in its place: images are extracted into directories instead",
            "who made this container: give it the device (--device /dev/fuse)",
        )
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        remedy = "the administrator: chmod 0666 /dev/fuse (udev does that where fuse3 is installed)"
        if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
            remedy = refusers.hint(refusers.DEVICE, error.errno) or remedy
        why = f"{error.strerror}: images are extracted into directories instead"
        return Finding(WARNING, "/dev/fuse", why, remedy)
    return Finding(OK, "/dev/fuse", "may be opened")


def _tried(what: str, body: Callable[[], None], remedy: str, bad: str = FAILURE) -> Finding:
    why, hint = in_child(body)
    return Finding(bad, what, why, hint or remedy) if why else Finding(OK, what, "works")


def in_child(body: Callable[[], None]) -> tuple[str, str]:
    """Call `body` in a forked process; return why it failed, "" if it did not, and what refused it,
    with the remedy, "" where nothing is known."""

    def tried(writer: int) -> None:
        try:
            body()
        except OSError as error:
            # Asked here: this process may have another AppArmor profile since it has a namespace.
            hint = refusers.hint(getattr(error, "call", ""), error.errno)
            os.write(writer, f"{error}\0{hint}".encode(errors="replace"))
        except BaseException as error:
            os.write(writer, repr(error).encode(errors="replace"))

    said, status = doctor_calls.said_by_child(tried)
    why, _, hint = said.partition("\0")
    return why or (f"killed by signal {-status}" if status < 0 else ""), hint


def _try_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    doctor_calls.enter_outer()
    userns.enter((uid, maps.OUTER), (gid, maps.OUTER))


def _try_fuse() -> None:
    doctor_calls.enter_outer()
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount("udi", "/tmp", "fuse.udi", syscalls.MS_RDONLY, data)


def _try_overlay() -> None:
    doctor_calls.enter_outer()
    for name in ("lower", "upper", "work", "root"):
        os.mkdir(f"/tmp/{name}")
    data = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
    syscalls.mount("overlay", "/tmp/root", "overlay", 0, data)
    os.mkdir("/tmp/root/made")


def _new_calls() -> Iterator[Finding]:
    """Yield which of the newer system calls are refused, and what that costs."""
    found = doctor_calls.refused()
    if not found:
        yield Finding(OK, "newer system calls", "none is refused")
    for row, why in found:
        here, since = host.release(os.uname().release), host.release(row.since)
        yield Finding(
            WARNING,
            f"system call {row.name}",
            f"{why}. It is for: {row.use}. Without it: {row.older}. Cost: {row.cost}",
            f"Linux {row.since} or newer"
            if here < since
            else "a seccomp filter refuses it (of a container, a systemd unit, the batch system): "
            "whoever made it allows the call",
        )


def _squashfuse(environ: dict[str, str], fuse: bool) -> Finding:
    path = host.which("squashfuse_ll", environ) or host.which("squashfuse", environ)
    if not path:
        return Finding(
            WARNING if fuse else OK,
            "squashfuse_ll",
            "not installed: our own server serves the images",
            "optional: apt install squashfuse, dnf install squashfuse",
        )
    done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=10)
    words = (done.stderr + done.stdout).split()
    version = words[1] if len(words) > 1 and words[0] == "squashfuse" else "of unknown version"
    return Finding(OK, os.path.basename(path), f"{version} ({path})")


def _decompressors() -> Iterator[Finding]:
    from rootless_udi.fuse import decompress

    have = [name for name in decompress.PACKAGES if decompress.available(name)]
    state = OK if {"gzip", "zstd"} <= set(have) else WARNING
    yield Finding(
        state,
        "own image server",
        f"decompresses {', '.join(have)}",
        "zstd: install libzstd (apt install libzstd1), or pip install rootless_udi[speed]",
    )


def _server(environ: dict[str, str]) -> Finding:
    """Return what would serve an image of `udi pull` at a launch."""
    facts = host.gather(environ)
    image = Image("", "", "/image.sqfs", "/extracted", {}, "zstd")
    try:
        choice = choose.choose(load.load(environ).server, facts, image)
    except UdiError as error:
        return Finding(FAILURE, "image server", error.message, "one of the remedies of this list")
    return Finding(OK, "image server", f"{choice.server}: {choice.reason}")


def _network() -> Finding:
    from rootless_udi.mpi_inject.mpi import network

    found = network.fast(network.interfaces())
    names = ", ".join(f"{one.name} ({one.kind})" for one in found)
    return Finding(OK, "fast networks", names or "none found")


def _writer() -> Finding:
    found = [name for name in ("tar2sqfs", "mksquashfs") if shutil.which(name)]
    if not found:
        return Finding(
            WARNING,
            "squashfs writer",
            "neither tar2sqfs nor mksquashfs: images can be run, but not pulled",
            "apt install squashfs-tools-ng or squashfs-tools",
        )
    return Finding(OK, "squashfs writer", ", ".join(found))


def _unsquashfs(fuse: bool) -> Finding:
    path = shutil.which("unsquashfs")
    if path:
        return Finding(OK, "unsquashfs", path)
    return Finding(
        OK if fuse else FAILURE,
        "unsquashfs",
        "not installed: it is needed where there is no FUSE",
        "apt install squashfs-tools",
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
