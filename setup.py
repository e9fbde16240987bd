"""The part of the build that pyproject.toml can't say: completion files, manual pages, contrib, C.

The first two are made from the tables that parse the command lines, when the data files of a wheel
are installed; a source distribution has the tables alone. udi-run in C (joiner/) takes the place of
the script, which is udi-run-python then, where a compiler can make it: the wheel is of a platform
then. `CC=false` leaves it out.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup

Command: Any = Distribution().get_command_class
InstallData: Any = Command("install_data")
"""setuptools has no public name for it, and distutils is gone since Python 3.12."""
BuildScripts: Any = Command("build_scripts")
WheelCommand: Any = Command("bdist_wheel")
sys.path.insert(0, str(Path(__file__).parent.resolve()))


class MadeData(InstallData):  # type: ignore[misc]
    """install_data with the files that rootless_udi.commands.common.share makes."""

    def run(self) -> None:
        """Write the files below the build folder, then install them below share/."""
        from rootless_udi.commands.common import share

        folder = Path(self.get_finalized_command("build").build_base, "share")
        self.data_files += [
            (f"share/{path.parent}", [str(folder / path)]) for path in share.write(folder)
        ]
        super().run()


class MadeScripts(BuildScripts):  # type: ignore[misc]
    """build_scripts, which reads scripts as text, with the program in C put in afterwards."""

    in_c = False

    def run(self) -> None:
        """Copy the scripts; put the program in C, if one can be made, before the Python one."""
        super().run()
        from joiner import build

        made = Path(self.get_finalized_command("build").build_base, "compiled")
        why = build.build(made)
        if why:
            self.announce(f"udi-run in C is left out: {why}", 3)
            return
        folder = Path(self.build_dir)
        (folder / "udi-run").replace(folder / "udi-run-python")
        for name in ("udi-run", "shifter"):
            shutil.copy(made / "udi-run", folder / name)
        MadeScripts.in_c = True


class MadeWheel(WheelCommand):  # type: ignore[misc]
    """bdist_wheel, whose wheel is of this platform if a program in C is in it, of any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, ABI and platform."""
        python, abi, platform = super().get_tag()
        if MadeScripts.in_c:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return python, abi, platform


def contrib() -> list[tuple[str, list[str]]]:
    """Return what a site takes from contrib/, for share/rootless_udi; the demo is the checkout's.

    These also go into a source distribution, by their names; the made ones do not.
    """
    return [
        (f"share/rootless_udi{folder.removeprefix('contrib')}", [f"{folder}/{x}" for x in files])
        for folder, _, files in sorted(os.walk("contrib"))
        if files and folder != "contrib/demo"
    ]


setup(
    cmdclass={
        "install_data": MadeData,
        "build_scripts": MadeScripts,
        "bdist_wheel": MadeWheel,
    },
    data_files=contrib(),
)
