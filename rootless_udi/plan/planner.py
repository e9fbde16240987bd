"""Make the plan of a start: everything that it will do, as data. Pure.

`build` gets the request, the site's configuration and facts of the host and the image, and returns
a `Plan`. It reads no file and changes nothing. `launch.explain` prints a plan, `launch.execute`
carries it out.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.idmap import accounts
from rootless_udi.plan import environment, folder, mountpoints
from rootless_udi.plan.facts import Host, HostPath
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.steps import Env, File, Hook, Injection, Mount, Squashfs, Step, Symlink
from rootless_udi.plan.volumes import Volume, parents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rootless_udi.plan.pernodecache import FileCache
    from rootless_udi.plan.site import Site

_NSSWITCH = (
    "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
    "protocols: files\nservices: files\nethers: files\nrpc: files\n"
)
_ADDED = "/opt/udiImage"
"""The folder for what modules, MPI and GPUs add: private memory, if they need it."""


class RootLayer(Record):
    """The layer over the image, in which mount points and changes are made, and the reason for it.

    `kind` is "none", "overlay" (the kernel's overlayfs), "fuse-overlayfs" (by that program, whose
    path is `program`) or "underlay" (no layer; directories that lack a mount point get a cover, see
    `covers`). Only trying shows whether the kernel mounts an overlay here. If it does not, the kind
    `instead` is used; if that is empty, the start fails.
    """

    kind: str
    reason: str
    instead: str = ""
    program: str = ""


class Plan(Record):
    """A start as data. `steps` are done in their order.

    `before` and `after` are operations on the environment before and after the caller's --env-file
    and --env (see `environment`). `uid` and `gid` are the caller's. `notes` are for --explain,
    `warnings` are printed at each start.
    """

    image: str
    digest: str
    root: Root
    writable: bool
    layer: RootLayer
    steps: "tuple[Step | FileCache, ...]"
    before: tuple[Env, ...]
    after: tuple[Env, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    workdir: str
    uid: int
    gid: int
    hooks: tuple[Hook, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    complete: bool = True
    """The image has all mount points of `plan.mountpoints`; if not, the layer adds them."""
    scripts: str = ""
    """A folder of the image whose *.sh are sourced at the start: the command gets what they set."""


def build(
    request: Request,
    site: "Site",
    host: Host,
    image: Image,
    root: Root,
    sources: "Mapping[str, HostPath]",
    volumes: "tuple[Volume, ...]" = (),
    injections: "Iterable[Injection]" = (),
    hooks: "tuple[Hook, ...]" = (),
    caches: "tuple[Mount | FileCache | Squashfs, ...]" = (),
    folders: tuple[Mount, ...] = (),
) -> Plan:
    """Return the plan of a start. Raises UdiError where something that was asked for is impossible.

    `root` says how the image is mounted, `sources` what is at the host's paths of `wanted`.
    `caches` are the steps of volumes that are no binds, `folders` the mounts of `folder.wanted`.
    """
    injections = tuple(injections)
    steps: list[Step | FileCache] = []
    others = tuple(one for injection in injections for one in injection.accounts)
    standard = _defaults(site) + _accounts(host, site, others)
    steps += [kept for step in standard if (kept := _look(step, sources)) is not None]
    added = [step for injection in injections for step in injection.steps]
    if any(mountpoints.within(step.target, _ADDED) for step in added):
        options = ("mode=755", "nosuid", "nodev", "ro")
        reason = "private memory for what is added to the image"
        steps.append(Mount(_ADDED, "tmpfs", "tmpfs", options, reason=reason))
    steps += [kept for step in added if (kept := _look(step, sources)) is not None]
    steps += folder.fitting(folders, steps, volumes, sources)
    made = {cache.target: cache for cache in caches}
    for volume in _uncovered(volumes, steps, injections):
        mount = made.get(volume.destination) or _look(_volume(volume), sources)
        assert mount is not None
        steps.append(mount)
    layer, facts = _layer(request, host, root, _why(request, image, steps)), image.facts
    return Plan(
        image=image.request,
        digest=image.digest,
        root=root,
        writable=request.writable,
        layer=layer,
        steps=tuple(steps),
        before=tuple(_before(image)),
        after=tuple(_after(site, injections)),
        entrypoint=tuple(facts.get("entrypoint") or ()),
        command=tuple(facts.get("cmd") or ()),
        workdir=facts.get("workdir") or "",
        uid=host.uid,
        gid=host.gid,
        hooks=hooks,
        notes=(*_origin(facts), *(note for one in injections for note in one.notes)),
        warnings=(
            *_left_out([*standard, *added], sources),
            *(text for injection in injections for text in injection.warnings),
        ),
        complete=bool(facts.get("mount_points")),
        scripts=facts.get("scripts") or "",
    )


def _uncovered(
    volumes: "tuple[Volume, ...]",
    steps: "Iterable[Step | FileCache]",
    injections: "Iterable[Injection]",
) -> "tuple[Volume, ...]":
    """Return the volumes. Raises UdiError for a volume or mount that hides parts of a C library.

    That is the host's C library, which MPI or GPUs bring: all its files must be visible. Also the
    mounts of the site, of modules and of CDI devices are checked.
    """
    over = [(f"volume {volume.destination}", volume.destination, True) for volume in volumes]
    for step in steps:
        if isinstance(step, Mount):
            # A mount on a file itself is the one that brings the host's file.
            over.append((f"mount {step.target} ({step.reason})", step.target, False))
    targets = [target for injection in injections for target in injection.together]
    for what, place, whole in over:
        for target in targets:
            if mountpoints.within(target, place) and (whole or target != place):
                raise UdiError(
                    f"{what}: it covers {target}, over which the host's lies,"
                    " as all of its C library must",
                    "mount it elsewhere, or --mpi-glibc=never leaves the image's C library alone",
                )
    return volumes


def layered(made: Plan) -> "tuple[File | Symlink | Mount, ...]":
    """Return the steps that can be done in an overlay's upper layer before that is mounted.

    They are those in /etc, unless something is mounted on /etc itself. To write a file into the
    layer takes a third of the system calls of a bind mount, and asks the image server nothing. With
    --writable such a file can be replaced by rename(2), as package managers do; a mount point
    can't.
    """
    found: dict[str, File | Symlink | Mount] = {}
    for step in made.steps:
        if step.target == "/etc":
            return ()
        if step.target.rpartition("/")[0] != "/etc":
            continue
        if isinstance(step, File | Symlink) or (isinstance(step, Mount) and not step.fstype):
            found.setdefault(step.target, step)
    return tuple(found.values())


def wanted(
    site: "Site",
    volumes: "tuple[Volume, ...]",
    injections: "Iterable[Injection]",
    folders: tuple[Mount, ...] = (),
) -> list[str]:
    """Return the host's paths that `build` needs in `sources`."""
    steps: list[Step] = [*_defaults(site), *_host_files(site), *folders]
    steps += [step for injection in injections for step in injection.steps]
    paths = [s.source for s in steps if isinstance(s, Mount) and not s.fstype]
    paths += folder.below(folders, volumes)
    return [*paths, *(volume.source for volume in volumes if volume.cache is None)]


def _defaults(site: "Site") -> list[Step]:
    """Return the mounts that every container gets (`Site.mounts`), and a fresh /run."""
    steps: list[Step] = [
        row.step
        or Mount(
            row.destination,
            row.source,
            options=("nosuid", *(() if row.destination == "/dev" else ("nodev",)), *row.options),
            required=row.required,
            reason=f"default mount ({row.origin})",
        )
        for row in site.mounts
    ]
    if not any(row.destination == "/run" for row in site.mounts):
        # An empty /run, as in Shifter: what daemons left there when the image was made is of no
        # use.
        options = ("mode=755", "nosuid", "nodev", "ro")
        steps.insert(0, Mount("/run", "tmpfs", "tmpfs", options, reason="default: a fresh /run"))
    return steps


def _host_files(site: "Site") -> list[Step]:
    return [
        Mount(
            f"/etc/{name}",
            path,
            options=("nosuid", "nodev", "ro"),
            required=False,
            reason=f"the host's {path}",
        )
        for name, path in site.etc
    ]


def _accounts(host: Host, site: "Site", others: tuple[str, ...]) -> list[Step]:
    """Return the steps for /etc that every container gets: accounts, name resolution, mtab.

    `others` are accounts of modules.
    """
    who = "default: the caller's accounts" + (" and those of modules" if others else "")
    passwd = accounts.passwd(host.uid, host.gid, host.user, host.gecos, host.home, host.shell)
    group = accounts.group(host.gid, host.group, host.user)
    for one in others:
        more = accounts.other(one, (passwd, group))
        passwd, group = passwd + more[0], group + more[1]
    generated: list[Step] = [
        File("/etc/passwd", passwd, reason=who),
        File("/etc/group", group, reason=who),
        File("/etc/shadow", "", 0o600, reason=who),
        File("/etc/nsswitch.conf", _NSSWITCH, reason="default: names come from these files"),
        File("/etc/host.conf", "multi on\n", reason="default: name resolution"),
    ]
    own = {f"/etc/{name}" for name, _ in site.etc}
    links: list[Step] = [Symlink("/etc/mtab", "/proc/mounts", reason="default: the mount table")]
    return [*(s for s in generated if s.target not in own), *_host_files(site), *links]


def _volume(volume: Volume) -> Mount:
    return Mount(
        volume.destination,
        volume.source,
        options=("nosuid", "nodev", *volume.options),
        reason=f"volume ({volume.origin})",
    )


def _look(step: Step, sources: "Mapping[str, HostPath]") -> Step | None:
    """Return the step with its source's path without links; None for an optional one that is
    missing.

    Raises UdiError where the source is missing or can't be mounted, and the step is required.
    """
    if not isinstance(step, Mount) or step.fstype:
        return step
    source = sources[step.source]
    if source.kind in ("directory", "file", "device"):
        return step.replace(source=source.real)
    if not step.required:
        return None
    raise UdiError(_refused(step, source), f"asked for by: {step.reason}")


def _refused(step: Mount, source: HostPath) -> str:
    why = {
        "missing": "no such file or directory on the host",
        "denied": "permission denied",
        "special": "it is a FIFO or a socket, not a file or a directory",
    }.get(source.kind, "")
    if source.why:
        why = f"{source.why} on the host"
    return f"mounting {step.source} on {step.target} failed: {why}"


def _left_out(steps: "Iterable[Step]", sources: "Mapping[str, HostPath]") -> "Iterable[str]":
    """Yield a warning for each optional mount that is left out because its source failed."""
    for step in steps:
        if isinstance(step, Mount) and not step.fstype and not step.required:
            source = sources[step.source]
            if source.kind == "failed":
                yield f"{_refused(step, source)}; it is left out (required = false)"


def _origin(facts: "Mapping[str, object]") -> "Iterable[str]":
    """Yield who vouched for an image when it came to the store (`udi pull`), or that nobody did."""
    if facts.get("unchecked"):
        yield "the image's signatures are not checked"
    signed = facts.get("signed")
    for one in signed if isinstance(signed, list) else ():
        yield f"the image is {one}"
    pushed = facts.get("pushed")
    if isinstance(pushed, dict):
        yield (
            f"its squashfs was pushed to {pushed.get('registry')} as {pushed.get('artifact')}: "
            f"{pushed.get('believed')}"
        )


def _why(request: Request, image: Image, steps: "list[Step | FileCache]") -> str:
    """Say why the image needs a layer over it; "" where it needs none."""
    if request.writable:
        return "--writable: changes go to memory and are gone at the end"
    if not image.facts.get("mount_points"):
        if "mount_points" in image.facts:
            return "the image has a file where a directory must be, or the other way round"
        return "the image was not made by udi pull and may lack mount points"
    made = {*mountpoints.DIRECTORIES, *mountpoints.FILES, *mountpoints.SYMLINKS}
    covered = {s.target for s in steps if isinstance(s, Mount)}
    for step in steps:
        over = isinstance(step, Mount) and step.over
        inside = any(parent in covered for parent in parents(step.target))
        if step.target not in made and not over and not inside:
            return f"mount point {step.target} is not in the image"
    return ""


def _layer(request: Request, host: Host, root: Root, why: str) -> RootLayer:
    """Choose the layer over the image; `why` says why it needs one, "" if it needs none."""
    asked = request.layer or "auto"
    program = host.fuse_overlayfs
    if asked == "overlay":
        # Asked for by name: if it is impossible, that is an error.
        return RootLayer("overlay", why or "--layer=overlay")
    if asked == "auto" and host.overlay:
        if request.writable:
            return RootLayer("overlay", why, "fuse-overlayfs" if program else "", program)
        if why:
            return RootLayer("overlay", why, "underlay")
        if root.server == "udi":
            # The overlay answers the ioctl of isatty(3), which the kernel would ask our server.
            reason = "so that the kernel asks the image server nothing after the first rank"
            return RootLayer("overlay", reason, "none")
    if not why:
        return RootLayer("none", "the image has all it needs")
    no = (
        "--layer=underlay" if host.overlay else "this kernel lets no ordinary user mount an overlay"
    )
    if not request.writable:
        return RootLayer("underlay", f"{why}; {no}")
    if program:
        return RootLayer("fuse-overlayfs", f"{why}; {no}", program=program)
    raise UdiError(
        f"--writable failed: {no}, and fuse-overlayfs is not installed",
        "install it, or Linux 5.11 or newer; or write to a directory of your own (--volume)",
    )


def _before(image: Image) -> list[Env]:
    shifter = [
        ("set", "SHIFTER_RUNTIME", "1"),
        ("set", "SHIFTER_IMAGEREQUEST", image.request),
        ("set", "SHIFTER_IMAGE", image.identifier),
    ]
    said = [Env(*operation, "Shifter's marks of a container") for operation in shifter]
    pairs = environment.of_image(image.facts.get("env") or ())
    return said + [Env(*operation, "the image's ENV") for operation in pairs]


def _after(site: "Site", injections: "Iterable[Injection]") -> list[Env]:
    return [e for injection in injections for e in injection.environment] + list(site.environment)
