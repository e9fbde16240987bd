"""What a start asks of an image, noted while it is answered, so that the next start need not wait.

Only messages that bring the kernel something to remember are noted, by path, since that is how
another process can ask for the same: see `rootless_udi.serve.prefetch`, which keeps and asks them.
"""

from time import monotonic

from rootless_udi.fuse import protocol as p
from rootless_udi.fuse.filesystem import ROOT
from rootless_udi.fuse.format import Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rootless_udi.fuse.filesystem import FileSystem

    Question = tuple[str, bytes, int, int]

    Names = dict[int, tuple[int, bytes]]

FEWEST, MOST = 100, 3000
"""Messages noted. /bin/true has 15, a bare Python 200, an import of numpy 800."""
PATH_MAX = 4096
"""Bytes of a path that can be asked for at once, with the zero at its end (path_resolution(7))."""
LISTED = 20_000
"""Entries of directories that are gone through for names."""
QUIET, LONGEST = 2.0, 30.0
"""Seconds without a message that end a start, and seconds that no start takes."""
KINDS = {
    p.LOOKUP: "s",
    p.READDIR: "d",
    p.READDIRPLUS: "d",
    p.READLINK: "l",
    p.READ_OP: "r",
}


class Notes:
    """The notes of one start; `keep` gets them when it is over, if it was `worth` it."""

    def __init__(self, keep: "Callable[[list[Question]], object]") -> None:
        self.worth = False
        self._keep = keep
        self._taken: list[tuple[int, int, bytes]] = []
        self._until = monotonic() + LONGEST

    def take(self, opcode: int, node: int, request: bytes) -> bool:
        """Note a message; tell whether by this one the start has become worth it."""
        if opcode not in KINDS or len(self._taken) >= MOST:
            return False
        self._taken.append((opcode, node, request[40:]))
        if self.worth or len(self._taken) < FEWEST or monotonic() > self._until:
            return False
        self.worth = True
        return True

    def stored(self, node: int, offset: int, size: int) -> None:
        """Note what was handed to the kernel unasked, which it would have asked for. Any thread."""
        if len(self._taken) < MOST:
            self._taken.append((p.READ_OP, node, p.READ.pack(0, offset, size)))

    def wait(self, fd: int) -> bool:
        """Wait for a message on `fd`; tell whether there is one, or else the start is over."""
        from select import POLLIN, poll

        message = poll()
        message.register(fd, POLLIN)
        return bool(message.poll(QUIET * 1000)) and monotonic() < self._until

    def close(self, fs: "FileSystem") -> None:
        """Hand over what was noted, if it is worth it. Errors are nobody's: these are hints."""
        if not self.worth:
            return
        try:
            self._keep(questions(fs, self._taken))
        except Exception:
            pass


def questions(fs: "FileSystem", taken: "list[tuple[int, int, bytes]]") -> "list[Question]":
    """Return messages (opcode, node, what follows the header) as questions by path.

    What was asked in vain, of a damaged image or by a name that is too long, is left out.
    """
    names = _names(fs, taken)
    known: dict[int, bytes | None] = {ROOT: b""}
    found: list[Question] = []
    for opcode, node, body in taken:
        kind, path = KINDS[opcode], _path(node, names, known)
        offset = size = 0
        if path is None:
            continue
        if kind == "s":
            path = path + b"/" + body[:-1] if path else body[:-1]
        elif kind == "r":
            _, offset, size = p.READ.unpack_from(body)
        found.append((kind, path, offset, size))
    return arranged(found)


def arranged(asked: "Iterable[Question]") -> "list[Question]":
    """Return each question once; all that is read of a file comes where the first of it was."""
    ranges: dict[bytes, list[tuple[int, int]]] = {}
    once: dict[tuple[str, bytes], None] = {}
    for kind, path, offset, size in asked:
        if kind == "r":
            ranges.setdefault(path, []).append((offset, offset + size))
        once[kind, path] = None
    result: list[Question] = []
    for kind, path in once:
        parts = _united(ranges[path]) if kind == "r" else [(0, 0)]
        result += [(kind, path, start, end - start) for start, end in parts]
    return result


def _united(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what ranges (start, end) cover, as few of them, in order."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _names(fs: "FileSystem", taken: "list[tuple[int, int, bytes]]") -> "Names":
    """Return node -> (parent, name) for all that was looked up or listed."""
    names: Names = {}
    listed, room = set(), LISTED
    for opcode, node, body in taken:
        try:
            if opcode == p.LOOKUP:
                child = fs.lookup(node, body[:-1])
                if child:
                    names.setdefault(child, (node, body[:-1]))
            elif KINDS[opcode] == "d" and node not in listed:
                listed.add(node)
                for name, child, _, _, _ in fs.entries(node, 0):
                    room -= 1
                    if room < 0:
                        break
                    if child and b"\0" not in name and b"/" not in name:
                        names.setdefault(child, (node, name))
        except (Corrupt, OSError):
            continue
    return names


def _path(node: int, names: "Names", known: "dict[int, bytes | None]") -> bytes | None:
    """Return the path of `node` from the image's root; None where it is not known, or too long."""
    trail: list[tuple[int, bytes]] = []
    while node not in known:
        found = names.get(node)
        if found is None or len(trail) > PATH_MAX:  # a damaged image may go in circles
            known[node] = None
            break
        trail.append((node, found[1]))
        node = found[0]
    path = known[node]
    for child, name in reversed(trail):
        if path is not None:
            path = path + b"/" + name if path else name
            if len(path) >= PATH_MAX:
                path = None
        known[child] = path
    return path
