"""What an installation has below share/: completion files for shells, and manual pages.

`python3 -m rootless_udi.commands.common.share DIR` writes it; setup.py does so for every wheel.
"""

import sys
from pathlib import Path

from rootless_udi.commands import completion
from rootless_udi.commands.common import manpages
from rootless_udi.commands.udi import parser

# bash and fish load one file for each command by its name; the others point to udi's.
_BASH = '. "${BASH_SOURCE[0]%/*}/udi"\n'
_FISH = "source (status dirname)/udi.fish\n"


def files() -> dict[str, str]:
    """Return the files' texts by their paths below share/.

    tcsh looks nowhere by itself: its file is to be sourced by who wants it (~/.tcshrc, or a site's
    /etc/csh.cshrc).
    """
    scripts = {shell: completion.script(shell, parser()) for shell in completion.SHELLS}
    found = {
        "zsh/site-functions/_udi": scripts["zsh"],
        "tcsh/udi.tcsh": scripts["tcsh"],
    }
    for page, text in manpages.pages().items():
        name = page.removesuffix(".1")
        first = name == "udi"
        found[f"man/man1/{page}"] = text
        found[f"bash-completion/completions/{name}"] = scripts["bash"] if first else _BASH
        found[f"fish/vendor_completions.d/{name}.fish"] = scripts["fish"] if first else _FISH
    return found


def write(folder: Path) -> list[Path]:
    """Write them below `folder` and return their paths, relative to it. Raises OSError."""
    found = files()
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [Path(name) for name in found]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
