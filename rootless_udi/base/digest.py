"""A short name for any text: FNV-1a of 128 bits, as 32 hexadecimal digits.

A node's records, what starts asked of an image and the configuration's flattened copies are files
whose names stand for a text. Who finds such a file compares the text that it holds, or takes it for
advice alone; it lies in a folder of the user's own, so nobody gains by two texts of one name. So
the digest needs no secrecy, and FNV-1a will do (by Fowler, Noll and Vo; draft-eastlake-fnv). It is
a multiplication a byte: ten lines of C with `unsigned __int128`, for any program that must come to
the same names. BLAKE2 or SipHash is a page of C, and in Python a module more at each start.
"""

_OFFSET = 0x6C62272E07BB014262B821756295C58D
_PRIME = 1 << 88 | 1 << 8 | 0x3B
_BITS = (1 << 128) - 1


def digest(data: bytes) -> str:
    """Return the digest of `data`; 0.3 microseconds a byte."""
    found = _OFFSET
    for byte in data:
        found = (found ^ byte) * _PRIME & _BITS
    return f"{found:032x}"
