"""Plan covers: how a mount point that an image lacks is made where no overlay can be mounted. Pure.

The image is read-only. A *cover* is a new directory in private memory that is mounted over one of
the image's directories. Each entry of that directory is bind-mounted into the cover, so that it
looks the same; and the missing mount point can be made in it. Only the deepest directory that
exists is covered. This module says which; `launch.underlay` makes the covers. What the image holds
is asked by a function, `look`. Only the starts that need a cover import this.
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
    """Returns (kind, target) of what is at a path in the image, without following a link. The kind
    is "directory", "link", "file" (anything else), or "" where nothing is; the target is a link's.
    No part of the path but the last one is a link."""

MANY = 500
"""A cover of more entries leads to a warning. Each entry is a mount, which takes 20 microseconds to
make, and as long for each program that reads the mount table."""

MOST = 20_000
"""Most entries of a cover; the kernel allows 100,000 mounts in a namespace (fs.mount-max)."""


class Cover(Record):
    """A directory of the image to cover. `target` is its path, without links.

    All its entries are bound into the cover but those of `without`, in whose place the start puts
    something of its own. `reason` says which mount point is missing, and what wants it.
    """

    target: str
    without: tuple[str, ...] = ()
    reason: str = ""
    required: bool = True
    """False if only the caller's folder needs it, which may be left out."""


def covers(
    steps: "Iterable[Step | FileCache]", look: "Look", files: "frozenset[str]" = frozenset()
) -> list[Cover]:
    """Return the covers that `steps` need, in the order in which they must be made: from the top
    down.

    A cover of "/" that was made after the one of /etc would hide it. `files` are the targets of the
    mounts whose source is no directory.
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
            # It leads into something that is mounted by then, which needs no cover; or nowhere,
            # which the executor will say.
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
        # An optional mount is not made over something that the image has.
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
    """Return the warning about a cover with `count` entries; "" where it has few."""
    if count <= MANY:
        return ""
    return (
        f"{cover.reason}: without overlay that takes a mount for each of the {count} entries of "
        f"{cover.target} at every start; a destination in another directory takes less"
    )


def left_out(cover: Cover, failed: "list[tuple[str, str]]") -> str:
    """Return the warning about entries that can't be bound, each as (name, why)."""
    name, why = failed[0]
    more = f", and so {len(failed) - 1} more" if len(failed) > 1 else ""
    return (
        f"{_join(cover.target, name)} of the image is not in the container: {why}{more}"
        f" (without overlay each entry of {cover.target} is a mount: {cover.reason})"
    )


def too_many(cover: Cover) -> str:
    """Return why a directory of more than `MOST` entries is not covered."""
    return (
        f"covering {cover.target} of the image failed: it has more than {MOST} entries, each of "
        "which would be a mount"
    )


class _View:
    """The image as the covers will see it: what stands in a standard directory's place is gone."""

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
        """Return the deepest existing directory on the way to `path`, and the names missing in it.

        Links are followed. None where the way leads into something of `mounted`, to a file or in a
        circle.
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
        """Tell whether what is at `name` in the directory `where` can stay.

        `link` is the target of the link that is to be there, None for a file: that is bound over
        what is there. A directory can stay too, since the executor then refuses the step; but in
        /etc it is replaced.
        """
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
        """Tell whether an entry may be left out of a cover, for something of ours in its place."""
        kind = self.kind(_join(where, name))
        return kind in ("file", "link") or (kind == "directory" and self._etc(where))

    def _etc(self, where: str) -> bool:
        """Tell whether `where` is /etc, where a generated file replaces anything."""
        return where == self.places["/etc"]

    def _link(self, path: str) -> "str | None":
        kind, text = self.look(path)
        return text if kind == "link" else None
