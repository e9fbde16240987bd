"""Read JSON without importing `json`: that pulls in `re` and costs a launch 10 ms, this 0.2 ms.

The scanner is the C one that `json` itself uses; where an interpreter lacks it, `json` is imported.
Writing happens off the start path and uses `json`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What json.JSONDecoder would give the scanner."""

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
    """Return a JSON text as UTF-8 can have it: escaped where a file's name is in it that is none.

    `options` are those of json.dumps.
    """
    import json

    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, **options)
    return text
