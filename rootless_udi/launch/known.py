"""Note what a start has done, so that the next one of the same request needs no planner.

Who runs the same image with the same options again and again (a loop, the steps of a job) has the
same plan each time. So a plain start notes what it did as steps that udi-run in C can take by
itself (joiner/known.c, joiner/mounts.c), and on what that depended: the state of each file and
folder that was looked at, each variable, the kernel. If anything is different, if the note is older
than AGE, or if a step fails, Python plans anew. Nothing is decided in C.

The note is a file PLAN-DIGEST in the folder `starts` of the state directory, in the format of a
container's record (`node.record`), with these fields besides:

    request                     `key` of the start, in full
    until                       seconds since 1970 after which it is not used
    path, optimized             the image's file; "1" where `udi optimize` made it
    verify                      how its windows are checked (`plan.start.Start`), "" for not at all
    place                       the state directory's path
    same                        KIND, PATH, STATE of what it depends on, as in a record
    step                        KIND, PATH, HOW, WHAT, in their order:
        write PATH MODE TEXT    a file of /etc, in the overlay's upper layer
        link PATH - TARGET      a link there
        mkdir, create PATH MODE a mount point that the image lacks
        tmpfs PATH FLAGS DATA   a mount of private memory; FLAGS are those of mount(2)
        bind, slave PATH FLAGS SOURCE

Paths of steps have no links in them. What C does not have (other layers, volumes of squashfs,
perNodeCaches, MPI, GPUs, hooks, other image servers) is not noted.
"""

import os
from stat import S_ISDIR
from sys import _xoptions, argv, modules
from time import time

from rootless_udi.base import process
from rootless_udi.base.process import current
from rootless_udi.base.syscalls import is_local
from rootless_udi.config import files
from rootless_udi.launch import facts, holding
from rootless_udi.launch.rootfs import FLAGS, WORDS, Rootfs
from rootless_udi.node import launcher
from rootless_udi.node.publish import content, described
from rootless_udi.node.record import FORMAT, state_of
from rootless_udi.plan import mountpoints
from rootless_udi.plan.planner import layered
from rootless_udi.plan.reference import named, parse_platform, platform_of
from rootless_udi.plan.steps import File, Mount, Step, Symlink
from rootless_udi.serve import prefetch
from rootless_udi.store import find, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rootless_udi.launch.facts import StartFacts
    from rootless_udi.plan.facts import HostPath
    from rootless_udi.plan.options import Request
    from rootless_udi.plan.planner import Plan
    from rootless_udi.plan.steps import Squashfs

    Sources = dict[str, HostPath]
    Again = Callable[[StartFacts, Sources], Plan]

AGE = 600
"""Seconds. An account may have changed in a directory service, which no file here tells."""
PLAN = "plan-"
_SETTLED = 2 * 10**9
"""Nanoseconds. A file that was changed within them may have been changed again without another
time: file systems keep times in steps."""
_ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf")
_VARIABLES = ("USER", "LOGNAME", "XDG_RUNTIME_DIR")


def owner(environ: "Mapping[str, str]", script: str) -> str:
    """Return what stands for the launcher in a note's name: node, kernel, current folder, and which
    udi-run it is, by its `script`."""
    system = os.uname()
    kernel = f"start {system.nodename} {system.release} {system.machine}"
    return "\n".join([kernel, script, *current(environ)])


class Noted(Rootfs):
    """The container's tree, which notes what is done in it: `steps`; `simple` is false where C
    could not do the same."""

    def __init__(self, root: str, caches: dict[str, int]) -> None:
        super().__init__(root, caches)
        self.simple = True
        self.steps: list[tuple[str, str, str, str]] = []

    def mount(self, step: Mount) -> None:
        before = len(self.mounts)
        try:
            super().mount(step)
        except BaseException:
            self.simple = False
            raise
        if len(self.mounts) == before or step.fstype not in ("", "tmpfs"):
            # What it mounts has vanished meanwhile.
            self.simple = False
            return
        flags = sum({FLAGS[word] for word in step.options if word in FLAGS})
        kind = step.fstype or ("slave" if "slave" in step.options else "bind")
        what = step.source
        if step.fstype:
            what = ",".join(word for word in step.options if word not in WORDS)
        self.steps.append((kind, self.mounts[-1][1], str(flags), what))

    def mount_if_empty(self, step: Mount) -> None:
        before = len(self.mounts)
        super().mount_if_empty(step)
        if len(self.mounts) == before and not self._has(step.target):
            self.simple = False

    def _has(self, path: str) -> bool:
        """Tell whether the image has something at `path`, whatever the host does."""
        try:
            fd = self.open(path)
        except OSError:
            return False
        try:
            return not S_ISDIR(os.fstat(fd).st_mode) or bool(os.listdir(f"/host/proc/self/fd/{fd}"))
        except OSError:
            return False
        finally:
            os.close(fd)

    def file(self, step: File) -> None:
        self.simple = False
        super().file(step)

    def symlink(self, step: Symlink) -> None:
        self.simple = False
        super().symlink(step)

    def cache(self, path: str) -> None:
        self.simple = False
        super().cache(path)

    def served(self, step: "Squashfs") -> None:
        self.simple = False
        super().served(step)

    def _make(self, path: str, is_directory: bool, mode: int, asked: str) -> tuple[int, str]:
        fd, where = super()._make(path, is_directory, mode, asked)
        if where != path.rstrip("/") or path in mountpoints.FILES:
            # Links of the image led elsewhere, or one was replaced.
            self.simple = False
        elif not any(source and mountpoints.within(where, at) for _, at, source in self.mounts):
            # What is made in a folder of the host will be there.
            kind = "mkdir" if is_directory else "create"
            self.steps.append((kind, where, str(mode if is_directory else 0o644), ""))
        return fd, where


class StartNote:
    """What is noted of a start: `pairs` are the fields but for the steps that are still to come."""

    def __init__(self, name: str, pairs: "list[tuple[str, str]]") -> None:
        self.name, self.pairs = name, pairs
        self._tree: Noted | None = None

    def rootfs(self, root: str, caches: dict[str, int]) -> Noted:
        """Return the container's tree, whose steps are noted."""
        self._tree = Noted(root, caches)
        return self._tree

    def write(self, directory: int) -> None:
        """Write the note into the state directory of that descriptor, where it is possible."""
        # `older`: this kernel, or a filter, refuses calls for which C has no other way.
        older = "rootless_udi.base.older" in modules
        if self._tree is None or not self._tree.simple or older:
            return
        steps = [("step", "\0".join(step)) for step in self._tree.steps]
        try:
            prefetch.put(directory, self.name, content([*self.pairs, *steps], b""))
        except OSError:
            # The next start plans, too.
            pass


def begin(
    request: "Request",
    environ: "dict[str, str]",
    found: "StartFacts",
    made: "Plan",
    looked: "Sources",
    again: "Again",
    place: tuple[str, int, str],
) -> StartNote | None:
    """Return the note of this start; None where it can't be repeated in C, or depends on more than
    is known.

    `looked` is what the planner has looked at; `again` plans from new facts. It is called, so that
    what was read is what the states of the files say: a file may have been changed between both.
    """
    path, directory, _ = place
    if not _possible(request, found, made):
        return None
    name, key = launcher.key(request, owner(environ, argv[0]), environ)
    name = f"{PLAN}{name}.{FORMAT}"
    if not is_local(directory) or _failed(directory, name):
        return None
    rows = [*dict.fromkeys(_rows(request, environ, found, looked, path))]
    states = _states(rows)
    if states is None or ("link", "-") in zip((row[0] for row in rows), states, strict=True):
        return None
    sources: Sources = {}
    anew = facts.find(request, environ, "", None, path)
    if (anew, again(anew, sources), sources) != (found, made, looked) or states != _states(rows):
        return None
    same = [f"{kind}\0{at}\0{state}" for (kind, at), state in zip(rows, states, strict=True)]
    pairs = [
        ("request", key),
        ("until", str(int(time()) + AGE)),
        ("path", found.image.path),
        ("optimized", "1" if found.image.optimized else ""),
        ("verify", facts.verify(found.site, found.image, found.root)),
        ("place", path),
        *described(made),
        *(("same", one) for one in same),
        *(("step", "\0".join(step)) for step in _upper(made)),
    ]
    return None if process.TOLD else StartNote(name, pairs)


def _possible(request: "Request", found: "StartFacts", made: "Plan") -> bool:
    site, image, root = found.site, found.image, found.root
    asked = (
        *(request.module, request.mpi, request.gpu, request.device, request.trace),
        *(request.writable, request.shifter, request.edf, request.pull, request.insecure),
        *(request.verbose, request.keep),
    )
    sites = (
        *(site.default_modules, site.keep, site.gateway_starts),
        *(site.pull in ("always", "lazy"), any("sqfs" in row.options for row in site.mounts)),
    )
    plan = (made.hooks, made.scripts, made.warnings, made.writable, not made.complete)
    served = root.server == "udi" and root.path == image.path and not (root.trace or root.offset)
    kind = named(request.image, site.registry).kind
    return (
        "known" in _xoptions
        and served
        and made.layer.kind == "overlay"
        and kind in ("squashfs", "path", "registry", "store")
        and image.facts.get("variant") in (None, "", "v1", "v8")
        and not any((*asked, *sites, *plan))
        and all(isinstance(step, Step) for step in made.steps)
    )


def _failed(directory: int, name: str) -> bool:
    """Tell whether C has tried such a note in vain a while ago, and has emptied it."""
    try:
        last = os.stat(f"{prefetch.FOLDER}/{name}", dir_fd=directory)
    except OSError:
        return False
    return last.st_size == 0 and time() - last.st_mtime < AGE


def _states(rows: "list[tuple[str, str]]") -> "list[str] | None":
    """Return the states of the rows; None where one has just been changed."""
    latest = int(time() * 10**9) - _SETTLED
    states = [state_of(kind, path) for kind, path in rows]
    for (kind, _), state in zip(rows, states, strict=True):
        if kind != "variable" and any(int(word) > latest for word in state.split()[3:]):
            return None
    return states


def _rows(
    request: "Request",
    environ: "dict[str, str]",
    found: "StartFacts",
    looked: "Sources",
    state: str,
) -> "Iterator[tuple[str, str]]":
    """Yield (kind, path) of what a plan depends on; the kinds are those of `record.state_of`."""
    yield from _image(request, environ, found)
    for folder in (files.site_directory(environ), files.user_directory(environ)):
        for name in ("", "/conf.d", "/mpi.d", "/modules.d") if folder else ():
            yield "exact", f"{folder}{name}"
    for kind, path in holding.configuration(environ):
        yield ("exact" if kind == "file" else kind), path
    for path in _ACCOUNTS:
        yield "exact", path
    for name in _VARIABLES:
        yield "variable", name
    for path, what in looked.items():
        yield "place", path
        yield "place", what.real
    for path in ("/dev/fuse", state, os.path.dirname(state), environ.get("HOME") or "/"):
        yield "place", path
    for module in [*modules.values()]:
        # A newer version plans otherwise.
        if module.__name__.startswith("rootless_udi") and getattr(module, "__file__", None):
            yield "file", str(module.__file__)


def _image(
    request: "Request", environ: "dict[str, str]", found: "StartFacts"
) -> "Iterator[tuple[str, str]]":
    """Yield the rows of the image's file, of its facts, and of the stores that were looked into."""
    image, reference = found.image, named(request.image, found.site.registry)
    yield "opened", image.path
    if reference.kind in ("squashfs", "path"):
        path = os.path.abspath(reference.path)
        yield "exact", path
        yield "opened", os.path.splitext(path)[0] + ".json"
        return
    platform = parse_platform(request.platform) if request.platform else None
    names = (platform or platform_of(os.uname().machine)).key()
    for store in resolve.all_stores(found.site, environ):
        for folder in ("", "/images", "/names", f"/names/{names}"):
            yield "exact", f"{store}{folder}"
        here = image.path.startswith(f"{store}/")
        if reference.kind != "store":
            path = f"{store}/names/{names}/{find.escape(find.name_of(reference))}"
            # By another store's digest it would be found where no name is: that is not noted.
            yield ("link" if here else "exact"), path
        if here:
            stem = image.path.removesuffix(find.OPTIMIZED).removesuffix(".sqfs")
            yield "opened", f"{stem}.json"
            return


def _upper(made: "Plan") -> "Iterator[tuple[str, str, str, str]]":
    """Yield what `execute` writes into the overlay's upper layer before that is mounted."""
    for step in layered(made):
        if isinstance(step, File):
            yield "write", step.target, str(step.mode), step.content
        elif isinstance(step, Symlink):
            yield "link", step.target, "0", step.to
        elif not os.path.isdir(step.source):
            yield "write", step.target, str(0o644), ""
