"""What a kept container depends on: a start that finds any of it changed makes a new one.

A joiner reads no configuration and looks for no image. So the record of a kept container has the
files that a plan is made of, each with its state: the image and its name in the stores, the
configuration, and what is mounted. A few stat(2) calls tell that all is as it was.
"""

import os

from rootless_udi.config import files
from rootless_udi.launch.facts import StartFacts
from rootless_udi.node import kept, launcher
from rootless_udi.node.record import state_of
from rootless_udi.plan import keeping
from rootless_udi.plan.options import Request
from rootless_udi.plan.planner import Plan
from rootless_udi.plan.reference import named, parse_platform, platform_of
from rootless_udi.plan.steps import Mount, Squashfs
from rootless_udi.store import find, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rootless_udi.plan.site import Site

MANY = 32
"""Kept containers of a user on a node. Where there are more, the next is not kept: a workflow whose
steps all ask for something else would fill the node with containers that nobody joins."""
_KERNELS = ("/proc", "/sys", "/dev")


class Hold:
    """How a container is kept: `seconds`, the batch job's first process (pid, start), and what it
    depends on, as the record has it."""

    def __init__(self, seconds: int, job: tuple[int, int], same: "list[str]") -> None:
        self.seconds, self.job, self.same = seconds, job, same


def seconds(request: Request, site: "Site", environ: "Mapping[str, str]", directory: int) -> int:
    """Return how long the container waits for the next start; 0 where it is not kept.

    `directory` is the state directory's descriptor.
    """
    named = request.share not in (None, "auto")
    if (launcher.ranked(environ) and not named) or site.pull == "always":
        return 0
    wanted = keeping.seconds(request)
    if request.keep is None and keeping.possible(request):
        wanted = site.keep
    names = [name for name in os.listdir(directory) if name.startswith(kept.KIND)] if wanted else []
    # Each has a record and a lock.
    return 0 if len(names) > 2 * MANY else wanted


def hold(
    request: Request, environ: "Mapping[str, str]", found: StartFacts, made: Plan, wanted: int
) -> Hold | None:
    """Return how to keep the container of the plan `made` for `wanted` seconds.

    None where its image has got another meaning since it was looked up. Nothing is changed.
    """
    rows = [*_image(request, environ, found), *configuration(environ)]
    for step in made.steps:
        if isinstance(step, Mount) and not step.fstype and not _is_kernels(step.source):
            rows.append(("place", step.source))
        elif isinstance(step, Squashfs):
            rows.append(("file", step.root.path))
    same = [f"{kind}\0{path}\0{state_of(kind, path)}" for kind, path in dict.fromkeys(rows)]
    if not _unchanged(request, environ, found):
        return None
    return Hold(wanted, kept.job_process(environ), same)


def _is_kernels(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in _KERNELS)


def _image(
    request: Request, environ: "Mapping[str, str]", found: StartFacts
) -> "Iterator[tuple[str, str]]":
    yield ("place" if found.root.server == "directory" else "file"), found.root.path
    if found.image.path and not found.image.directory:
        # Which may be unpacked elsewhere.
        yield "file", found.image.path
    reference = named(request.image, found.site.registry)
    if reference.kind in ("squashfs", "directory", "path", "store"):
        return
    if reference.kind in ("oci", "archive"):
        path = os.path.abspath(reference.path)
        yield "file", f"{path}/index.json" if reference.kind == "oci" else path
    platform = parse_platform(request.platform) if request.platform else None
    key = (platform or platform_of(os.uname().machine)).key()
    for store in resolve.all_stores(found.site, environ):
        # Also those before the image's own, where the name is not yet.
        yield "link", f"{store}/names/{key}/{find.escape(find.name_of(reference))}"
        if found.image.path.startswith(f"{store}/"):
            break


def _unchanged(request: Request, environ: "Mapping[str, str]", found: StartFacts) -> bool:
    """Tell whether the name still means the image, now that its state has been noted."""
    reference = named(request.image, found.site.registry)
    if reference.kind in ("squashfs", "directory", "path"):
        return True
    platform = parse_platform(request.platform) if request.platform else None
    now = resolve.lookup(resolve.all_stores(found.site, environ), reference, platform)
    return now is not None and now.digest == found.image.digest


def configuration(environ: "Mapping[str, str]") -> "Iterator[tuple[str, str]]":
    """Yield the configuration's files, and the folders in which others may come."""
    site, user = files.site_directory(environ), files.user_directory(environ)
    for folder in (site, user):
        for name in ("", "/conf.d", "/mpi.d", "/modules.d") if folder else ():
            yield "file", f"{folder}{name}"
    for source in files.find(environ):
        yield "file", source.path
        # Paths in it may have variables of the caller's (`config.load.expand`).
        for piece in files.read(source).split("$")[1:]:
            name = piece.partition("}")[0][1:] if piece.startswith("{") else piece
            yield "variable", "".join(_leading(name))


def _leading(text: str) -> "Iterator[str]":
    """Yield the characters of the variable's name with which `text` begins."""
    for character in text:
        if not (character.isalnum() or character == "_"):
            return
        yield character
