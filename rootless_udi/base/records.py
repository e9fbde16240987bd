"""`Record`, a frozen data class. Importing `dataclasses` costs a start 25 ms, this costs nothing.

    class Mount(Record):
        source: str
        target: str
        options: tuple[str, ...] = ()

The annotations of a class, in order, are its fields; a value in the class is a field's default.
Records compare by value, can't be assigned to, and `replace` returns a changed copy.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_kw):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=False)
class Record:
    """Base of the project's records; see the module's docstring.

    FIELDS are the names of the fields, NEEDED those without a default; the latter is there once a
    record was made with defaults. Raises TypeError for unknown, missing and too many fields.
    """

    if TYPE_CHECKING:
        FIELDS: ClassVar[tuple[str, ...]]
        NEEDED: ClassVar[frozenset[str]]
    else:
        FIELDS = ()

    def __init_subclass__(cls) -> None:
        # Lists and not generators, here and below: a start makes 30 classes and 90 records.
        cls.FIELDS = (*cls.FIELDS, *[n for n in cls.__annotations__ if n.islower()])

    def __init__(self, *args: "Any", **kwargs: "Any") -> None:
        fields = self.FIELDS
        if len(args) == len(fields) and not kwargs:
            self.__dict__.update(zip(fields, args, strict=True))
            return
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} fields, got {len(args)}")
        values = dict(zip(fields, args))  # noqa: B905  # strict costs time
        for name in kwargs:
            if name not in fields or name in values:
                raise TypeError(f"{type(self).__name__}: no such field, or given twice: {name}")
        values |= kwargs
        if len(values) < len(fields):
            kind = type(self)
            if "NEEDED" not in kind.__dict__:
                kind.NEEDED = frozenset([n for n in fields if not hasattr(kind, n)])
            if not values.keys() >= kind.NEEDED:
                name = min(kind.NEEDED - values.keys(), key=fields.index)
                raise TypeError(f"{kind.__name__}: field {name} is missing")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def values(self) -> "tuple[Any, ...]":
        """Return the values of the fields in their order."""
        return tuple(getattr(self, name) for name in self.FIELDS)

    def replace(self, **changes: "Any") -> "Self":
        """Return a copy with these fields changed."""
        return type(self)(**{**dict(zip(self.FIELDS, self.values(), strict=True)), **changes})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.values() == self.values()

    def __hash__(self) -> int:
        return hash(self.values())

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.FIELDS)
        return f"{type(self).__name__}({inner})"
