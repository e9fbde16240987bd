"""What strace -f -o writes, read in one place: it pads process numbers of few digits."""

from pathlib import Path

__all__ = ["calls_of"]


def calls_of(log: Path) -> list[tuple[int, str]]:
    """Return (process, what it did) for each whole line of `log`, [] before there is such a file.

    Source: strace(1), -f and -o. The last line may still be half written.
    """
    if not log.exists():
        return []
    text = log.read_text(errors="surrogateescape")
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [(int(pid), rest) for pid, rest in (line.split(maxsplit=1) for line in whole)]
