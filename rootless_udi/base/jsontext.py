"""JSON for a person or another program: indented, and nothing in it that a terminal obeys."""

import json
from typing import Any

from rootless_udi.base.errors import plain


def text(document: Any) -> str:
    """Return an indented document that reads back equal, without a newline at its end.

    Letters of all scripts stay as they are. What is not printable is spelled as JSON spells it: of
    the control characters JSON itself leaves DEL and those above 0x7f, of Unicode the marks that
    turn the direction of writing; half a surrogate pair could not even be printed.
    """
    found = json.dumps(document, indent=2, ensure_ascii=False)
    return plain(found, keep="\n", spell=lambda c: json.dumps(c)[1:-1].replace("\x7f", "\\u007f"))
