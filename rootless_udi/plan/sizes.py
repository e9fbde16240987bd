"""Parse sizes as Shifter writes them (`100G`, `1.5g`, `10GB`, `512`) to bytes, and print them.
Pure.

A size is a decimal number, with or without a point and an exponent, and a unit. The unit is one of
b k m g t p e, each 1024 times the one before; `B` or `iB` may follow it. Shifter looks only at the
unit's first letter, so that it takes `10Gfoo`. That must be a mistake, and is refused here.
"""

from rootless_udi.base.errors import UdiError

UNITS = "bkmgtpe"
LARGEST = 2**63 - 1
"""The largest size of a file (off_t), in bytes."""
_DIGITS = frozenset("0123456789")
_LONGEST = 40
"""Most characters of a size."""
_HINT = "write a number and one of b, k, m, g, t, p, e (each 1024 times the one before): 100G, 1.5T"


def parse(text: str, what: str = "size") -> int:
    """Return the bytes that `text` means, at least 1.

    `what` names the value in the message. Raises UdiError where it is no number, less than a byte,
    infinite, or more than the largest file.
    """
    low = text.strip().lower()
    text = text if text.isprintable() else ascii(text)
    if not low:
        raise UdiError(f"{what}: the value is empty", _HINT)
    if len(low) > _LONGEST:
        raise UdiError(f"{what}={text[:_LONGEST]}...: too long for a size", _HINT)
    if low.startswith("-"):
        raise UdiError(f"{what}={text}: a size can't be negative", _HINT)
    if low.startswith(("inf", "nan", "+inf", "+nan")):
        raise UdiError(f"{what}={text}: not a finite number", _HINT)
    number, unit = _split(low.removeprefix("+"))
    power = _unit(unit)
    if power < 0 or not any(c in _DIGITS for c in number):
        raise UdiError(f"{what}={text}: not a size", _HINT)
    size = _exact(number, power)
    if size > LARGEST:
        raise UdiError(f"{what}={text}: more than the largest file (8 EiB)", _HINT)
    if size < 1:
        raise UdiError(f"{what}={text}: less than one byte", _HINT)
    return size


def show(size: int) -> str:
    """Return the shortest text that `parse` reads as exactly `size`: `100G` for 107374182400."""
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size //= 1024
        power += 1
    return f"{size}{UNITS[power].upper() if power else ''}"


def _split(low: str) -> tuple[str, str]:
    """Split into the number, as strtod(3) ends it, and the rest: `1e` is 1 and `e`."""
    at = 0
    point = False
    while at < len(low) and (low[at] in _DIGITS or (low[at] == "." and not point)):
        point = point or low[at] == "."
        at += 1
    if at < len(low) and low[at] == "e":
        end = at + 1
        if low[end : end + 1] in ("+", "-"):
            end += 1
        first = end
        while end < len(low) and low[end] in _DIGITS:
            end += 1
        if end > first:
            at = end
    return low[:at], low[at:]


def _unit(unit: str) -> int:
    """Return the power of 1024 that a unit means; -1 if it is none."""
    if not unit:
        return 0
    if unit[0] not in UNITS or unit[1:] not in ("", "b", "ib"):
        return -1
    return UNITS.index(unit[0])


def _exact(number: str, power: int) -> int:
    """Return number x 1024^power, rounded down; exact for any exponent, as integers are."""
    mantissa, _, exponent = number.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = int(whole + fraction or "0") * 1024**power
    shift = int(exponent or "0") - len(fraction)
    if digits == 0:
        return 0
    if shift >= 0:
        return digits * 10**shift if shift <= _LONGEST else LARGEST + 1
    return digits // 10**-shift if shift >= -4 * _LONGEST else 0
