"""Find the line of each key in a TOML text, for messages; `tomllib` does not tell it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

Key = tuple["str | int", ...]
"""A path in a document: names, and numbers (from 0) of members of an array of tables."""


def lines(text: str) -> dict[Key, int]:
    """Return the first line, from 1, of each table and key; `text` is one that `tomllib` accepts.

    Keys inside a value, an inline table or an array, are not listed: see `line_of`.
    """
    return _Scanner(text).run()


def line_of(found: dict[Key, int], key: "Sequence[str | int]") -> int:
    """Return the line of a key or, if it is not listed, of the nearest table around it; else 1."""
    path = tuple(key)
    while path:
        if path in found:
            return found[path]
        path = path[:-1]
    return 1


class _Scanner:
    """Goes through a text once; `at` is the position, `found` the lines of keys, `counts` the
    number of the last member of each array of tables."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.found: dict[Key, int] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def run(self) -> dict[Key, int]:
        table: Key = ()
        while self._to_statement():
            line = self.text.count("\n", 0, self.at) + 1
            if self.text[self.at] == "[":
                array = self.text.startswith("[[", self.at)
                self.at += 2 if array else 1
                table = self._table(self._name(), array)
                self.found.setdefault(table, line)
                self._skip_value()
            else:
                key = table + tuple(self._name())
                for end in range(len(table) + 1, len(key) + 1):
                    self.found.setdefault(key[:end], line)
                self.at += 1
                self._skip_value()
        return self.found

    def _table(self, names: list[str], array: bool) -> Key:
        """Return a header's path; after an array of tables comes the member's number."""
        path: list[str | int] = []
        for end in range(1, len(names) + 1):
            part = tuple(names[:end])
            if array and end == len(names):
                self.counts[part] = self.counts.get(part, -1) + 1
            path.append(names[end - 1])
            if part in self.counts:
                path.append(self.counts[part])
        return tuple(path)

    def _to_statement(self) -> bool:
        text = self.text
        while self.at < len(text):
            if text[self.at] in " \t\n":
                self.at += 1
            elif text[self.at] == "#":
                self._to_end_of_line()
            else:
                return True
        return False

    def _to_end_of_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _name(self) -> list[str]:
        """Read a dotted name, up to "=" or "]"; return its parts."""
        text, parts, word = self.text, [], ""
        while self.at < len(text) and text[self.at] not in "=]\n":
            char = text[self.at]
            if char in "\"'":
                begin = self.at
                self._skip_string()
                word += text[begin + 1 : self.at - 1]
                continue
            if char == ".":
                parts.append(word)
                word = ""
            elif char not in " \t":
                word += char
            self.at += 1
        return [*parts, word]

    def _skip_value(self) -> None:
        """Go to the end of the statement, a newline outside of brackets and strings."""
        text, depth = self.text, 0
        while self.at < len(text):
            char = text[self.at]
            if char in "\"'":
                self._skip_string()
                continue
            if char == "#":
                self._to_end_of_line()
                continue
            if char in "[{":
                depth += 1
            elif char in "]}":
                depth = max(0, depth - 1)
            elif char == "\n" and depth == 0:
                return
            self.at += 1

    def _skip_string(self) -> None:
        text, quote = self.text, self.text[self.at]
        end = quote * 3 if text.startswith(quote * 3, self.at) else quote
        self.at += len(end)
        while self.at < len(text) and not text.startswith(end, self.at):
            self.at += 2 if quote == '"' and text[self.at] == "\\" else 1
        self.at += len(end)
        if len(end) == 3:
            # A multi-line string may end with up to two quotes of its own.
            while self.at < len(text) and text[self.at] == quote:
                self.at += 1
