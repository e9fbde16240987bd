"""What strace -f -o writes, read in one place.

It pads process numbers of few digits, and a call during which another process is heard of stands on
two lines ("<unfinished ...>", "<... name resumed>").
"""

from pathlib import Path

__all__ = ["calls_of"]


def calls_of(log: Path) -> list[tuple[int, str]]:
    """Return (process, what it did) for each whole line of `log`, [] before there is such a file.

    A call of two lines is one, where the second is. Source: strace(1), -f and -o. The last line may
    still be half written.
    """
    if not log.exists():
        return []
    text = log.read_text(errors="surrogateescape")
    begun: dict[int, str] = {}
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        number, rest = line.split(maxsplit=1)
        pid = int(number)
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<... "):
            rest = begun.pop(pid, "") + rest.partition(" resumed>")[2]
        found.append((pid, rest))
    return found
