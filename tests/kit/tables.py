"""Tables of the documentation that a run of the tests writes."""

import os

from tests.kit.places import TREE


def held(page: str, begin: str, end: str, table: str) -> bool:
    """Tell whether docs/PAGE.md has this table between two marks.

    UDI_DOCS=write writes it, into the file UDI_DOCS_PAGE where the caller names one (tests/run).
    """
    path = os.environ.get(f"UDI_DOCS_{page.upper()}", str(TREE / f"docs/{page}.md"))
    with open(path) as file:
        before, _, rest = file.read().partition(begin)
    old, _, after = rest.partition(end)
    if os.environ.get("UDI_DOCS") == "write":
        with open(path, "w") as file:
            file.write(before + begin + table + end + after)
        return True
    return table == old
