"""Read the part of YAML that CDI files use, without PyYAML: 3 us a line, and nothing to import.

`nvidia-ctk cdi generate` writes YAML by default, and a launch must read it quickly. This reads one
document of block mappings and sequences, with plain and quoted scalars and flow collections of one
line each. Everything else (anchors, tags, block scalars, values over several lines) is refused by
its name; so are `yes`, `no`, `on` and `off`, which mean different things in YAML 1.1 and 1.2.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEPTH = 32
_REFUSED = {
    "&": "an anchor (&)",
    "*": "an alias (*)",
    "!": "a tag (!)",
    "|": "a block scalar (|)",
    ">": "a block scalar (>)",
    "%": "a directive (%)",
    "@": "a reserved character (@)",
    "`": "a reserved character (`)",
    "?": "a complex key (?)",
}
_WORDS = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_AMBIGUOUS = ("yes", "no", "on", "off")
_ESCAPES = {
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "t": "\t",
    "n": "\n",
    "v": "\v",
    "f": "\f",
    "r": "\r",
    "e": "\x1b",
    " ": " ",
    '"': '"',
    "/": "/",
    "\\": "\\",
    "N": "\x85",
    "_": "\xa0",
    "L": "\u2028",
    "P": "\u2029",
}
_HEX = "0123456789abcdefABCDEF"
_LENGTHS = {"x": 2, "u": 4, "U": 8}


class YamlError(ValueError):
    """Not in this part of YAML. The message begins with the line's number, to follow "PATH: "."""


def loads(text: str) -> "Any":
    """Return the document in `text`: dict, list, str, int, float, bool or None.

    Raises YamlError.
    """
    return _Parser(text).document()


class _Parser:
    """`rows` are the lines that are left, as (line number, indent, text without indent).

    `names` and `scalars` keep the keys and values that were read: a CDI file repeats a few words
    very often.
    """

    def __init__(self, text: str) -> None:
        self.rows: list[tuple[int, int, str]] = []
        self.at = 0
        self.depth = 0
        self.names: set[str] = set()
        self.scalars: dict[str, Any] = {}
        started = False
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.lstrip(" ")
            if not line or line[0] in "#\r":
                continue
            if line[0] == "\t":
                raise _refusal(number, "a tab in the indentation")
            indent = len(raw) - len(line)
            if not indent and line[0] in "-.%":
                if _marker(raw):
                    if raw.startswith("..."):
                        break
                    if raw[0] == "%":
                        raise _refusal(number, _REFUSED["%"])
                    if started or self.rows:
                        raise _refusal(number, "a second document")
                    started = True
                    continue
                if raw.startswith("--- "):
                    raise _refusal(number, "a value behind ---")
            self.rows.append((number, indent, line.rstrip("\r ")))

    def error(self, what: str) -> YamlError:
        """Return the error for `what` in the row that is read, or in the last one."""
        return _refusal(self.rows[min(self.at, len(self.rows) - 1)][0], what)

    def document(self) -> "Any":
        """Return the value of the whole text."""
        if not self.rows:
            return None
        value = self.block(self.rows[0][1])
        if self.at < len(self.rows):
            raise self.error("this indentation")
        return value

    def block(self, indent: int) -> "Any":
        """Read the collection or scalar that starts in the current row, indented by `indent`."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise self.error(f"nesting deeper than {_DEPTH}")
        text = self.rows[self.at][2]
        value: Any
        if text[0] == "-" and text[1:2] in ("", " "):
            value = self.sequence(indent)
        elif self.key(text):
            value = self.mapping(indent)
        else:
            value = self.scalar(text)
            self.step(indent)
        self.depth -= 1
        return value

    def step(self, indent: int) -> None:
        """Go to the next row; refuse one that would continue the value before it."""
        self.at += 1
        if self.at < len(self.rows) and self.rows[self.at][1] > indent:
            raise self.error("a value of several lines, or this indentation,")

    def sequence(self, indent: int) -> "list[Any]":
        """Read "- VALUE" rows."""
        found: list[Any] = []
        while self.at < len(self.rows):
            number, where, text = self.rows[self.at]
            if where != indent or text[0] != "-" or text[1:2] not in ("", " "):
                break
            rest = text[1:].lstrip(" ")
            if rest in self.scalars:
                found.append(self.scalars[rest])
                self.step(indent)
            elif not rest or rest[0] == "#":
                found.append(self.nested(indent))
            elif (rest[0] == "-" and rest[1:2] in ("", " ")) or self.key(rest):
                inner = indent + len(text) - len(rest)
                self.rows[self.at] = (number, inner, rest)
                found.append(self.block(inner))
            else:
                found.append(self.scalar(rest))
                self.step(indent)
        return found

    def nested(self, indent: int, same: bool = False) -> "Any":
        """Read the value below a bare "-" or "KEY:"; `same`: also a sequence of equal indent."""
        self.at += 1
        if self.at == len(self.rows):
            return None
        _number, where, text = self.rows[self.at]
        if where > indent:
            return self.block(where)
        if same and where == indent and text[0] == "-" and text[1:2] in ("", " "):
            return self.block(where)
        return None

    def mapping(self, indent: int) -> "dict[str, Any]":
        """Read "KEY: VALUE" rows."""
        found: dict[str, Any] = {}
        while self.at < len(self.rows):
            _number, where, text = self.rows[self.at]
            if where != indent:
                break
            split = self.key(text)
            if not split:
                raise self.error("a line that is no KEY: VALUE")
            name, rest = split
            if name in found:
                raise self.error(f"a second key {name!r}")
            if not rest or rest[0] == "#":
                found[name] = self.nested(indent, True)
            else:
                found[name] = self.scalar(rest)
                self.step(indent)
        return found

    def key(self, text: str) -> "tuple[str, str] | None":
        """Split "KEY: REST" into the key and the rest, None where `text` is no such thing."""
        at = text.find(": ")
        if at < 0 and text[-1] == ":":
            at = len(text) - 1
        name = text[:at] if at > 0 else ""
        if name in self.names:
            return name, text[at + 1 :].lstrip(" ")
        if text[0] in "\"'":
            name, end = self.quoted(text, 0)
            tail = text[end:]
            if tail[:1] != ":" or tail[1:2] not in ("", " "):
                return None
            return name, tail[1:].lstrip(" ")
        if text[0] in "[{#,]}":
            return None
        if at < 0:
            return None
        name = name.rstrip(" ")
        if " #" in name:
            return None
        if not name or name[0] in _REFUSED or name == "<<":
            raise self.error(_REFUSED.get(name[:1], f"the key {name!r}"))
        if not isinstance(self.plain(name), str):
            raise self.error(f"the key {name!r}, which is no text,")
        self.names.add(name)
        return name, text[at + 1 :].lstrip(" ")

    def scalar(self, text: str) -> "Any":
        """Read a value of one line, a comment behind it left out."""
        if text in self.scalars:
            return self.scalars[text]
        if text[0] in "\"'[{":
            value, end = self.flow(text, 0) if text[0] in "[{" else self.quoted(text, 0)
            tail = text[end:]
            rest = tail.lstrip(" ")
            if rest and (rest[0] != "#" or rest == tail):
                raise self.error(f"{rest!r} behind a value")
            if text[0] in "[{":
                return value
        else:
            at = text.find(" #")
            value = self.plain(text if at < 0 else text[:at].rstrip(" "))
        self.scalars[text] = value
        return value

    def plain(self, text: str) -> "Any":
        """Resolve an unquoted scalar as YAML 1.2's core schema does, octal 0755 as 1.1."""
        if text in _WORDS:
            return _WORDS[text]
        if text[0] in _REFUSED and (text[0] != "?" or text[1:2] in ("", " ")):
            raise self.error(_REFUSED[text[0]])
        if text[0] in ",]}#" or ": " in text or text[-1] == ":" or text == "-" or text[:2] == "- ":
            raise self.error(f"the unquoted value {text!r}")
        if "\t" in text:
            raise self.error("a tab in an unquoted value")
        if len(text) < 4 and text.lower() in _AMBIGUOUS:
            raise self.error(f"the unquoted word {text!r}, a boolean to some and text to others,")
        if text[0] in "+-.0123456789":
            return _number(text)
        return text

    def quoted(self, text: str, at: int) -> tuple[str, int]:
        """Read the quoted scalar at `at`; return it and the offset behind it."""
        quote = text[at]
        if quote == "'":
            return self._single(text, at + 1)
        parts = []
        at += 1
        while True:
            end = text.find('"', at)
            slash = text.find("\\", at, end if end >= 0 else len(text))
            if end < 0:
                raise self.error("a quoted value of several lines, or without its end,")
            if slash < 0:
                parts.append(text[at:end])
                return "".join(parts), end + 1
            parts.append(text[at:slash])
            char, at = self._escape(text, slash + 1)
            parts.append(char)

    def _single(self, text: str, at: int) -> tuple[str, int]:
        parts = []
        while True:
            end = text.find("'", at)
            if end < 0:
                raise self.error("a quoted value of several lines, or without its end,")
            parts.append(text[at:end])
            if text[end + 1 : end + 2] != "'":
                return "".join(parts), end + 1
            parts.append("'")
            at = end + 2

    def _escape(self, text: str, at: int) -> tuple[str, int]:
        letter = text[at : at + 1]
        if letter in _LENGTHS:
            digits = text[at + 1 : at + 1 + _LENGTHS[letter]]
            if len(digits) == _LENGTHS[letter] and all(c in _HEX for c in digits):
                code = int(digits, 16)
                if code < 0x110000 and not 0xD800 <= code < 0xE000:
                    return chr(code), at + 1 + len(digits)
        elif letter and letter in _ESCAPES:
            return _ESCAPES[letter], at + 1
        raise self.error(f"the escape \\{letter}")

    def flow(self, text: str, at: int) -> "tuple[Any, int]":
        """Read "[...]" or "{...}" at `at`; return it and the offset behind it."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise self.error(f"nesting deeper than {_DEPTH}")
        pairs = text[at] == "{"
        close = "}" if pairs else "]"
        found: Any = {} if pairs else []
        at = self.blank(text, at + 1)
        while text[at] != close:
            value, at = self.item(text, at)
            if pairs:
                if not isinstance(value, str) or text[at] != ":" or value in found:
                    raise self.error(f"the key {value!r} in {{}}")
                at = self.blank(text, at + 1)
                found[value], at = self.item(text, at)
            else:
                found.append(value)
            if text[at] == ",":
                at = self.blank(text, at + 1)
            elif text[at] != close:
                raise self.error(f"{text[at:]!r} in {'{}' if pairs else '[]'}")
        self.depth -= 1
        return found, at + 1

    def item(self, text: str, at: int) -> "tuple[Any, int]":
        """Read one value of a flow collection; return it and the offset of what follows."""
        value: Any
        if text[at] in "[{":
            value, end = self.flow(text, at)
        elif text[at] in "\"'":
            value, end = self.quoted(text, at)
        else:
            end = at
            while end < len(text) and text[end] not in ",[]{}":
                if text[end] == ":" and text[end + 1 : end + 2] in ("", " ", ",", "]", "}"):
                    break
                if text[end : end + 2] == " #":
                    break
                end += 1
            if not text[at:end].strip(" ") or text[at] == ":":
                raise self.error("an empty value, or one that begins with a colon, in [] or {},")
            value = self.plain(text[at:end].strip(" "))
        return value, self.blank(text, end)

    def blank(self, text: str, at: int) -> int:
        """Return the offset of the next character that is no blank."""
        while text[at : at + 1] == " ":
            at += 1
        if at >= len(text) or text[at] == "#":
            raise self.error("a [] or {} of several lines, or without its end,")
        return at


def _refusal(number: int, what: str) -> YamlError:
    return YamlError(f"line {number}: {what} is not read here")


def _marker(raw: str) -> bool:
    """Tell whether a line is "---", "..." or a directive; "--- VALUE" is refused."""
    text = raw.partition(" #")[0].rstrip("\r ")
    return text in ("---", "...") or raw[0] == "%"


def _number(text: str) -> "int | float | str":
    """Return the number that `text` is, else `text`."""
    sign = text[0] in "+-"
    digits = text[1:] if sign else text
    if digits.isascii() and len(digits) <= 20:
        if digits.isdigit():
            if len(digits) > 1 and digits[0] == "0":
                return int(text, 8) if all(c in "01234567" for c in digits) else text
            return int(text)
        whole, dot, part = digits.partition(".")
        if dot and whole.isdigit() and (part.isdigit() or not part):
            return float(text)
    return text
