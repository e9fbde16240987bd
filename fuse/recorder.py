"""Record what a start reads of an image, so that later starts can prefetch it.

The image server records while it answers. `rootless_udi.serve.prefetch` writes the record to a file
and, at a later start, reads the same things before the command needs them. Only those messages are
recorded whose answer the kernel caches. They are recorded by path: a path is what a process that
prefetches can open.
"""

from time import monotonic

from rootless_udi.fuse import protocol
from rootless_udi.fuse.filesystem import ROOT
from rootless_udi.fuse.format import Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rootless_udi.fuse.filesystem import FileSystem

    Question = tuple[str, bytes, int, int]
    """(a letter of KINDS, path from the image's root, offset, length); bytes, 0 for all but "r"."""

    Names = dict[int, tuple[int, bytes]]
    """Node -> (its directory's node, name)."""

FEWEST, MOST = 100, 3000
"""A record of fewer messages is not worth a file, and more are not recorded. The start of /bin/true
has 15, that of Python 200, with numpy 800."""
PATH_MAX = 4096
"""Bytes of a path with the zero at its end, as system calls take it (path_resolution(7))."""
_LISTED = 20_000
"""Most entries of directories that are looked at to find the names of nodes."""
QUIET, LONGEST = 2.0, 30.0
"""Seconds. After so many without a message a start is over, and it takes at most so many."""
KINDS = {
    protocol.LOOKUP: "s",
    protocol.READDIR: "d",
    protocol.READDIRPLUS: "d",
    protocol.READLINK: "l",
    protocol.READ_OP: "r",
}
"""Opcode -> letter of a question in `serve.prefetch`."""


class Notes:
    """The record of one start.

    `keep` is called with it when the start is over, if it has enough messages to be `worth` a file.
    """

    def __init__(self, keep: "Callable[[list[Question]], object]") -> None:
        self.worth = False
        self._keep = keep
        self._taken: list[tuple[int, int, bytes]] = []
        self._until = monotonic() + LONGEST

    def take(self, opcode: int, node: int, request: bytes) -> bool:
        """Record a message; tell whether the start has become worth a file by this one."""
        if opcode not in KINDS or len(self._taken) >= MOST:
            return False
        self._taken.append((opcode, node, request[protocol.IN_HEADER.size :]))
        if self.worth or len(self._taken) < FEWEST or monotonic() > self._until:
            return False
        self.worth = True
        return True

    def stored(self, node: int, offset: int, size: int) -> None:
        """Record data that was given to the kernel before it asked. Any thread may call this."""
        if len(self._taken) < MOST:
            self._taken.append((protocol.READ_OP, node, protocol.READ.pack(0, offset, size)))

    def wait(self, fd: int) -> bool:
        """Wait for a message on `fd`; return False where the start is over."""
        from select import POLLIN, poll

        message = poll()
        message.register(fd, POLLIN)
        return bool(message.poll(QUIET * 1000)) and monotonic() < self._until

    def close(self, fs: "FileSystem") -> None:
        """Call `keep` with the record, if it is worth a file; errors are ignored."""
        if not self.worth:
            return
        try:
            self._keep(questions(fs, self._taken))
        except Exception:
            pass


def questions(fs: "FileSystem", taken: "list[tuple[int, int, bytes]]") -> "list[Question]":
    """Return messages, each (opcode, node, what follows the header), as questions by path.

    Those whose path can't be found, since the image is damaged or a name too long, are left out.
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
            _, offset, size = protocol.READ.unpack_from(body)
        found.append((kind, path, offset, size))
    return arranged(found)


def arranged(asked: "Iterable[Question]") -> "list[Question]":
    """Return each question once; all reads of a file come at the place of its first one."""
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
    """Return the ranges (start, end) in order, those that touch or overlap united to one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _names(fs: "FileSystem", taken: "list[tuple[int, int, bytes]]") -> "Names":
    """Return the names of all nodes that were looked up or listed."""
    names: Names = {}
    listed, room = set(), _LISTED
    for opcode, node, body in taken:
        try:
            if opcode == protocol.LOOKUP:
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
    """Return the path of `node` from the image's root; None where it is not known or too long.

    `known` has the paths found before, and gets the new ones.
    """
    trail: list[tuple[int, bytes]] = []
    while node not in known:
        found = names.get(node)
        if (
            found is None or len(trail) > PATH_MAX
        ):  # the directories of a damaged image may be a circle
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
