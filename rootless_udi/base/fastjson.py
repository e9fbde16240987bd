"""Read JSON without importing `json`, which imports `re` and costs a start 10 ms; this costs 0.2
ms.

It uses the scanner in C that is inside `json`; an interpreter without that imports `json` after
all. JSON is never written during a start, so writing uses `json`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """The attributes that the scanner reads from a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def loads(text: str) -> "Any":
    """Return the value of a JSON document.

    Raises ValueError for anything that is not exactly one document, and for one that is nested
    deeper than Python's stack.
    """
    try:
        return _loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _loads(text: str) -> "Any":
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = make_scanner(_Context())(text, 0)  # type: ignore[arg-type]
    except StopIteration as stop:
        raise ValueError(f"not JSON at character {stop.value}") from None
    except SystemError:
        # The C code looks for json.decoder's exception and finds that module not imported.
        import json

        return json.loads(text)
    if end != len(text):
        raise ValueError(f"more than one JSON document: character {end}")
    return value


def dumps(value: "Any", **options: "Any") -> str:
    """Return `value` as a JSON text that can be encoded as UTF-8; `options` are json.dumps's.

    Names of files may hold bytes that are no UTF-8: then all but ASCII is escaped (\\u00e9).
    """
    import json

    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, **options)
    return text
