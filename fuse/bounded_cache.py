"""A cache that holds a bounded number of bytes."""

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
    """Maps keys to values of known size; holds at most `limit` bytes of them.

    It drops values that were not used for long, with two dicts in place of an exact order of use
    (LRU). New values go to the young dict. When that holds half the limit, it becomes the old dict,
    and what was in the old one is dropped. A value found in the old dict moves to the young one. So
    a hit costs one look-up in most cases (an OrderedDict's move_to_end costs three).

    Several threads may use it without a lock, because each step is one dict operation. In a race a
    value may be lost, and is made again; or the count of bytes may be wrong until the young dict
    becomes the old one.
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
