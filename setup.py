"""The part of the build that pyproject.toml can't say: completion files and manual pages.

They are made from the tables that parse the command lines, when the data files of a wheel (also an
editable one's) are installed; a source distribution has the tables alone.
"""

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
        self.data_files = [
            (f"share/{path.parent}", [str(folder / path)]) for path in share.write(folder)
        ]
        super().run()


# Any entry makes setuptools run install_data; which files there are is known only then.
setup(cmdclass={"install_data": MadeData}, data_files=[("share", [])])
