"""The part of the build that pyproject.toml can't say: completion files, manual pages, contrib.

The first two are made from the tables that parse the command lines, when the data files of a wheel
are installed; a source distribution has the tables alone.
"""

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

InstallData: Any = Distribution().get_command_class("install_data")
"""setuptools has no public name for it, and distutils is gone since Python 3.12."""


class MadeData(InstallData):  # type: ignore[misc]
    """install_data with the files that rootless_udi.commands.common.share makes."""

    def run(self) -> None:
        """Write the files below the build folder, then install them below share/."""
        sys.path.insert(0, str(Path(__file__).parent.resolve()))
        from rootless_udi.commands.common import share

        folder = Path(self.get_finalized_command("build").build_base, "share")
        self.data_files += [
            (f"share/{path.parent}", [str(folder / path)]) for path in share.write(folder)
        ]
        super().run()


def contrib() -> list[tuple[str, list[str]]]:
    """Return what a site takes from contrib/, for share/rootless_udi; the demo is the checkout's.

    These also go into a source distribution, by their names; the made ones do not.
    """
    return [
        (f"share/rootless_udi{folder.removeprefix('contrib')}", [f"{folder}/{x}" for x in files])
        for folder, _, files in sorted(os.walk("contrib"))
        if files and folder != "contrib/demo"
    ]


setup(cmdclass={"install_data": MadeData}, data_files=contrib())
