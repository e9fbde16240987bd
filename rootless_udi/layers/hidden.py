"""Which paths of lower layers the layers above hide: files, whiteouts, opaque directories."""

from rootless_udi.layers.layer import OneLayer
from rootless_udi.layers.ledger import PATH
from rootless_udi.layers.tarreader import DIRECTORY

_DIR, _CLOSED, _OPAQUE, _SEALED = 1, 2, 4, 8


class Above:
    """The paths of lower layers that are hidden by the layers above them.

    Layers are added from the top one down. Flags for a path: DIR, the higher layers have a
    directory there; CLOSED, nothing that lower layers have there or beneath is visible; OPAQUE, a
    directory whose contents come from the higher layers alone; SEALED, its mode and times do so
    too.
    """

    def __init__(self) -> None:
        self._flags: dict[bytes, int] = {}
        self._covered: dict[bytes, bool] = {}

    def _under(self, directory: bytes) -> bool:
        """Tell whether what lower layers have in `directory` is hidden."""
        chain = []
        while (known := self._covered.get(directory)) is None:
            chain.append(directory)
            if self._flags.get(directory, 0) & (_CLOSED | _OPAQUE):
                known = True
                break
            if not directory:
                known = False
                break
            directory = directory.rpartition(b"/")[0]
        for one in chain:
            self._covered[one] = known
        return known

    def hides(self, path: bytes, kind: str) -> bool:
        """Tell whether a `kind` at `path` in the next lower layer is hidden."""
        if not self._flags:
            return False
        flags = self._flags.get(path, 0)
        if flags & _CLOSED or (flags and kind is not DIRECTORY):
            return True
        return self._under(path.rpartition(b"/")[0])

    def seals(self, path: bytes) -> bool:
        """Tell whether a directory's mode and times do not come from the lower layers."""
        return bool(self._flags.get(path, 0) & _SEALED)

    def add(self, layer: OneLayer) -> int:
        """Add the next layer below those added before; return the bytes of memory that it takes."""
        flags = self._flags
        new = (p for paths in (layer.nodes, layer.whiteouts, layer.opaques) for p in paths)
        size = sum(PATH + len(path) for path in new if path not in flags)
        for path, node in layer.nodes.items():
            have = flags.get(path, 0)
            if node.kind is DIRECTORY:
                if not have & _CLOSED:
                    flags[path] = have | _DIR
            else:
                flags[path] = self._closed(have)
        for path in layer.whiteouts:
            flags[path] = self._closed(flags.get(path, 0))
        for path in layer.opaques:
            flags[path] = flags.get(path, 0) | _OPAQUE
        self._covered.clear()
        return size

    @staticmethod
    def _closed(have: int) -> int:
        return have | _OPAQUE | _SEALED if have & _DIR else have | _CLOSED
