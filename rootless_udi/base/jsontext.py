"""JSON texts to print: indented, without characters that a terminal obeys."""

import json
from typing import Any

from rootless_udi.base.errors import plain


def text(document: Any) -> str:
    """Return `document` as an indented JSON text, without a newline at its end.

    Letters of all scripts stay as they are. Unprintable characters are escaped (\\u202e).
    json.dumps does that for some; it leaves DEL, the control characters above 0x7f, the marks that
    turn the direction of writing, and half surrogate pairs, which no UTF-8 can hold.
    """
    found = json.dumps(document, indent=2, ensure_ascii=False)
    return plain(found, keep="\n", spell=lambda c: json.dumps(c)[1:-1].replace("\x7f", "\\u007f"))
