"""Without overlay: which directories of the image must be covered, to make mount points in them.

The image stays mounted. Only the deepest directory that lacks a mount point is covered by a private
one, into which its entries are bound (`launch.underlay` does it). Pure: what the image holds is
asked of `look`. Imported by the launches alone that need it.
"""

from rootless_udi.base.records import Record
from rootless_udi.plan import mountpoints
from rootless_udi.plan.steps import Directory, File, Mount, Symlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rootless_udi.plan.pernodecache import FileCache
    from rootless_udi.plan.steps import Step

    Look = Callable[[str], tuple[str, str]]
    """(kind, text) of what is at a path of the image no part of which is a link, but for the last:
    "directory", "file" (all else), "link" with its text, or "" where nothing is."""

MANY = 500
"""Entries from which on a cover is worth a warning: each is a mount, 20 us to make it and as much
for each that reads the mount table."""

MOST = 20_000
"""Entries of one cover; the kernel has 100,000 mounts in a namespace (fs.mount-max)."""


class Cover(Record):
    """A directory of the image to be covered, by its path without links; all entries but those of
    `without`, which the launch makes itself, are bound into the cover."""

    target: str
    without: tuple[str, ...] = ()
    reason: str = ""
    required: bool = True
    """Not where it is for the caller's folder alone, which then stays out."""


def covers(
    steps: "Iterable[Step | FileCache]", look: "Look", files: "frozenset[str]" = frozenset()
) -> list[Cover]:
    """Return the covers that `steps` need, from the top down: the order in which they are made,
    since a cover of "/" that came after that of /etc would copy it and hide it.

    `files` are the targets of the mounts whose source is no directory.
    """
    view = _View(look)
    reasons: dict[str, str] = {}
    without: dict[str, set[str]] = {}
    own: list[tuple[str, str]] = []
    mounted: set[str] = set()
    required: set[str] = set()
    for step in steps:
        is_file = isinstance(step, File | Symlink) or step.target in files
        folder, _, name = step.target.rpartition("/")
        led = view.walk(folder if is_file else step.target, mounted)
        if led is None:
            # Into something that is mounted by then, or nowhere, which the executor will say.
            continue
        where, missing = led
        missing += [name] * is_file
        place = _join(where, *missing)
        if place in mounted:
            continue
        if is_file and len(missing) == 1:
            if view.may_go(where, name):
                own.append((where, name))
            if view.fits(where, name, step.to if isinstance(step, Symlink) else None):
                missing = []
        optional = isinstance(step, Mount) and step.only_empty
        if missing:
            if not optional:
                required.add(where)
            reasons.setdefault(where, f"{place} is not in the image ({step.reason})")
            if view.kind(_join(where, missing[0])):
                without.setdefault(where, set()).add(missing[0])
        # Over what the image has there, what is optional is not mounted.
        if not isinstance(step, File | Symlink | Directory) and not (optional and not missing):
            mounted.add(place)
    for where, name in own:
        if where in reasons:
            without.setdefault(where, set()).add(name)
    order = sorted(reasons, key=lambda path: (path.rstrip("/").count("/"), path))
    return [
        Cover(path, tuple(sorted(without.get(path, ()))), reasons[path], path in required)
        for path in order
    ]


def _join(folder: str, *names: str) -> str:
    return "/".join((folder.rstrip("/"), *names)) or "/"


def warning(cover: Cover, count: int) -> str:
    """Return what is to be said of a cover with `count` entries; "" where it is nothing."""
    if count <= MANY:
        return ""
    return (
        f"{cover.reason}: without overlay that takes a mount for each of the {count} entries of "
        f"{cover.target} at every start; a destination in another directory takes less"
    )


def too_many(cover: Cover) -> str:
    """Return why a directory of more than `MOST` entries is not covered."""
    return (
        f"covering {cover.target} of the image failed: it has more than {MOST} entries, each of "
        "which would be a mount"
    )


class _View:
    """The image, with what stands where a standard directory must be taken away."""

    def __init__(self, look: "Look") -> None:
        self._look = look
        self._known: dict[str, tuple[str, str]] = {}
        self.places = mountpoints.places(
            lambda path: self.look(path)[1] if self.kind(path) == "link" else None,
            lambda path: self.kind(path) == "directory",
        )
        self.gone = {
            place for place in self.places.values() if self.kind(place) not in ("", "directory")
        }

    def look(self, path: str) -> tuple[str, str]:
        if path not in self._known:
            self._known[path] = self._look(path)
        return self._known[path]

    def kind(self, path: str) -> str:
        return self.look(path)[0]

    def walk(self, path: str, mounted: "set[str]") -> "tuple[str, list[str]] | None":
        """Return the deepest directory that `path` leads to, and the names that are missing in it.

        None where it leads into something that is mounted, to a file or in a circle.
        """
        left, done, links = path.split("/")[::-1], [""], 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[max(1, len(done) - 1) :]
                continue
            done.append(name)
            place = "/".join(done)
            if place in mounted:
                return None
            kind, text = ("", "") if place in self.gone else self.look(place)
            if kind == "link":
                links += 1
                if links > mountpoints.LINKS_MAX:
                    return None
                del done[1 if text.startswith("/") else -1 :]
                left += text.split("/")[::-1]
            elif kind == "":
                rest = [part for part in left[::-1] if part not in ("", ".")]
                full = "/".join([*done, *rest])
                if ".." in rest or any(mountpoints.within(full, other) for other in mounted):
                    return None
                return "/".join(done[:-1]) or "/", [name, *rest]
            elif kind == "file":
                return None
        return "/".join(done) or "/", []

    def fits(self, where: str, name: str, link: "str | None") -> bool:
        """Tell whether `name` in the directory `where` can stay: as the link `link`, or as a file
        over which another is bound. Where it is a directory, the executor says so, but in /etc."""
        place = _join(where, name)
        kind, text = self.look(place)
        if kind == "directory":
            return not self._etc(where)
        if link is not None:
            return (kind, text) == ("link", link)
        if kind == "link":
            end = None if self._etc(where) else mountpoints.follow(place, self._link)
            return end is not None and self.kind(end) != ""
        return kind == "file"

    def may_go(self, where: str, name: str) -> bool:
        """Tell whether an entry may be left out of a cover, since the launch makes it itself."""
        kind = self.kind(_join(where, name))
        return kind in ("file", "link") or (kind == "directory" and self._etc(where))

    def _etc(self, where: str) -> bool:
        """There a generated file takes the place of anything, as in an overlay's upper layer."""
        return where == self.places["/etc"]

    def _link(self, path: str) -> "str | None":
        kind, text = self.look(path)
        return text if kind == "link" else None
