"""A cache bounded in bytes, and nothing else."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Generic, TypeVar

    V = TypeVar("V")
else:

    class Generic:
        """Stands in for typing.Generic, which costs a launch milliseconds of import."""

        def __class_getitem__(cls, _item):
            return cls

    V = None


class Cache(Generic[V]):
    """Maps keys to values of known cost; holds at most `limit` bytes of them.

    Two generations in place of an exact LRU: a hit in the old one moves to the young one, and when
    the young one holds half the limit it becomes the old one and the old one is dropped. A hit in
    the young one then costs one dict look-up (an OrderedDict's move_to_end costs three), and what
    was used in the last half of the limit is always there. Threads may share it: each step is one
    dict operation, a value lost in a race is only made again, and a count lost in one is forgotten
    with its generation.
    """

    __slots__ = ("_cost", "_half", "_old", "_used", "_young")

    def __init__(self, limit: int, cost: "Callable[[V], int]") -> None:
        """`limit` is in bytes, and `cost` tells how many of them a value takes."""
        self._half = limit // 2
        self._cost = cost
        self._young: dict[object, V] = {}
        self._old: dict[object, V] = {}
        self._used = 0

    def get(self, key: object) -> "V | None":
        """Return the value of `key`, or None."""
        value = self._young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def take(self, key: object) -> "V | None":
        """Return the value of `key` and forget it, or None."""
        value = self._young.pop(key, None)
        if value is None:
            return self._old.pop(key, None)
        cost = self._cost(value)
        self._used -= cost
        return value

    def put(self, key: object, value: "V") -> None:
        """Remember `value`."""
        cost = self._cost(value)
        if self._used + cost > self._half and self._young:  # a half is full
            self._old, self._young, self._used = self._young, {}, 0
        self._young[key] = value
        self._used += cost

    def __contains__(self, key: object) -> bool:
        return key in self._young or key in self._old

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old, self._used = {}, {}, 0
