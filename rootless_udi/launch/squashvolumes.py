"""Volumes that are squashfs files: which they are, and how each becomes a directory.

A volume whose source is a squashfs or SIF file is mounted as the directory that is in it, unless
its destination is named as such a file is (`_is_file`). `:sqfs` says that it must be one, `:bind`
that the file itself is meant. Only starts that have a file among their volumes import this.
"""

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.superblock import HEAD, MAGIC
from rootless_udi.host.facts import which
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import SQUASHFS_SUFFIXES, Request
from rootless_udi.plan.steps import Squashfs
from rootless_udi.plan.volumes import FORMS, Volume, shown
from rootless_udi.serve import choose
from rootless_udi.serve.outside import CHECKED, LISTED
from rootless_udi.store import resolve, sif

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.launch.facts import StartFacts
    from rootless_udi.plan.facts import HostPath
    from rootless_udi.plan.image import Root
    from rootless_udi.plan.site import Site

_SUFFIXES = (*SQUASHFS_SUFFIXES, ".sif")
_WHOLE = ":bind mounts the file itself"


def steps(
    volumes: "tuple[Volume, ...]",
    sources: "Mapping[str, HostPath]",
    request: Request,
    environ: "Mapping[str, str]",
    found: "StartFacts",
) -> "tuple[Squashfs, ...]":
    """Return a step for each of `volumes` that is a squashfs file.

    Raises UdiError where one is damaged, is none in spite of `:sqfs`, or can't be served here.
    """
    made = []
    for volume in volumes:
        if volume.cache is not None or volume.form == "bind":
            continue
        source = sources[volume.source]
        if volume.form and source.kind in ("directory", "device", "special"):
            why = f"it is a {source.kind}, and sqfs wants a squashfs file"
            raise _refused(volume, why.replace("special", "pipe or socket"), "leave sqfs out")
        if source.kind != "file" or (not volume.form and _is_file(volume)):
            continue
        offset = _offset(volume, source.real)
        if offset >= 0:
            made.append(_step(volume, source.real, offset, request, environ, found))
    return tuple(made)


def rows(
    site: "Site",
    sources: "Mapping[str, HostPath]",
    request: Request,
    environ: "Mapping[str, str]",
    found: "StartFacts",
) -> "Site":
    """Return the site with a step in each row of [[mount]] that is a squashfs file (option "sqfs").

    Of a row that is not required and whose file is missing there is none. Raises as `steps`.
    """
    made = []
    for row in site.mounts:
        if FORMS[0] in row.options:
            volume = Volume(row.source, row.destination, (), None, row.origin, FORMS[0])
            step = steps((volume,), sources, request, environ, found)
            if step:
                text = step[0].reason.replace("volume", "default mount", 1)
                row = row.replace(step=step[0].replace(reason=text))
        made.append(row)
    return site.replace(mounts=tuple(made))


def _is_file(volume: Volume) -> bool:
    """Tell whether the destination is named as a squashfs file is: then that is what is wanted."""
    name = volume.destination.rpartition("/")[2]
    return name.endswith(_SUFFIXES) or name == volume.source.rpartition("/")[2]


def _offset(volume: Volume, path: str) -> int:
    """Return where in the file at `path` its squashfs begins; -1 for a file that has none.

    Raises UdiError where it must have one, or is a SIF file without.
    """
    try:
        fd = trust.regular(path)
    except OSError as error:
        if not volume.form:
            # It can be mounted without being read.
            return -1
        raise _refused(volume, error.strerror or "") from None
    with open(fd, "rb", buffering=0) as file:
        try:
            head = file.read(HEAD) or b""
            if head[: len(MAGIC_BYTES)] == MAGIC_BYTES:
                return 0
            if head[sif.MAGIC_AT :].startswith(sif.MAGIC):
                return sif.data(fd, path).offset
        except OSError as error:
            raise _refused(volume, error.strerror or "") from None
        except UdiError as error:
            raise _refused(volume, error.message, _WHOLE) from None
    if volume.form:
        raise _refused(volume, "it is no squashfs file", "`udi pack DIR FILE` makes one")
    return -1


MAGIC_BYTES = MAGIC.to_bytes(4, "little")


def _step(
    volume: Volume,
    path: str,
    offset: int,
    request: Request,
    environ: "Mapping[str, str]",
    found: "StartFacts",
) -> Squashfs:
    if others := [word for word in volume.options if word != "ro"]:
        why = f"it is a squashfs file, which is mounted read-only: not {', '.join(others)}"
        raise _refused(volume, why, _WHOLE)
    try:
        compressor, _, facts = resolve.examine(path, _WHOLE, None, offset)
        known = resolve.parsed(facts) if facts else {}
    except UdiError as error:
        raise _refused(volume, error.message.partition(": ")[2], error.hint) from None
    except ValueError as error:
        raise _refused(
            volume, f"the facts inside it are damaged: {error}", "copy it again"
        ) from None
    wanted = request.fuse or found.site.server
    if wanted not in ("udi", "squashfuse_ll", "squashfuse"):
        wanted = "auto"
    image = Image(volume.source, "", path, "", {}, compressor, offset=offset)
    try:
        root = choose.choose(wanted, found.host, image, lambda name: which(name, environ))
    except UdiError:
        from rootless_udi.launch import unpacking

        try:
            root = unpacking.root(wanted, found.host, image, found.site, environ)
        except UdiError as error:
            raise _refused(volume, error.message, error.hint) from None
    if root.program:
        root = root.replace(options=found.site.server_options)
    verify = _verify(volume, found.site.verify == "always", bool(known.get("windows")), root)
    reason = f"volume ({volume.origin}); {root.reason}"
    if root.server != "directory":
        return Squashfs(volume.destination, root, verify, reason)
    tree, root = root.path, root.replace(path=path)
    return Squashfs(volume.destination, root, verify, reason, tree)


def _verify(volume: Volume, always: bool, listed: bool, root: "Root") -> str:
    """Return how the server checks what it reads, as `launch.facts` does for the image."""
    if not always:
        return ""
    if root.server == "udi":
        return LISTED if listed else CHECKED
    if listed:
        why = f"image.verify is always, and {root.server} does not check what it reads"
        raise _refused(volume, f"{why} ({root.reason})", "only our own server does (--fuse=udi)")
    return ""


def _refused(volume: Volume, why: str, hint: str = "") -> UdiError:
    source, target = shown(volume.source), shown(volume.destination)
    return UdiError(f"mounting {source} on {target} failed: {why}", hint)
