"""The files of an installation below share/: completion scripts and manual pages.

`python3 -m rootless_udi.commands.common.share DIR` writes it; setup.py does so for every wheel.
"""

import sys
from pathlib import Path

from rootless_udi.commands import completion
from rootless_udi.commands.common import manpages
from rootless_udi.commands.udi import parser

# bash and fish load a file that has the command's name; those of other commands load udi's.
_BASH = '. "${BASH_SOURCE[0]%/*}/udi"\n'
_FISH = "source (status dirname)/udi.fish\n"


def files() -> dict[str, str]:
    """Return the files' texts by their paths below share/.

    tcsh loads no such file by itself: ~/.tcshrc, or a site's /etc/csh.cshrc, has to source it.
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
    """Write the files below `folder`; return their paths, relative to it. Raises OSError."""
    found = files()
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [Path(name) for name in found]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
