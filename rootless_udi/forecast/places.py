"""Where captures of sites lie: the user's own, those that the site keeps, the examples.

~/.config/rootless_udi/sites/NAME.json      the user's (XDG_CONFIG_HOME), of `udi site add`
/etc/rootless_udi/sites/NAME.json           the site's, for all of its users
rootless_udi/forecast/sites/NAME.json       examples, made of public documents
"""

import os
from collections.abc import Iterator, Mapping

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.config import files
from rootless_udi.forecast.site import LARGEST, Capture, parse

SUFFIX = ".json"
_EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sites")


class KnownSite(Record):
    """A capture that has a name here. `kind` is "own", "site" or "example"."""

    name: str
    path: str
    kind: str


def need_archspec() -> None:
    """Raise UdiError where archspec is not installed: in a checkout that is run as it is."""
    try:
        import archspec.cpu  # noqa: F401
    except ModuleNotFoundError:
        raise UdiError(
            "captures of sites need the package archspec, which is not installed",
            "python3 -m pip install archspec, or install rootless_udi with pip, pipx or uv",
        ) from None


def own_folder(environ: Mapping[str, str]) -> str:
    """Return the folder of the user's captures; raises UdiError where there is no HOME."""
    folder = files.user_directory(environ)
    if not folder:
        raise UdiError(
            "no place for captures of sites: HOME is not set", "set HOME, or name the file itself"
        )
    return f"{folder}/sites"


def known(environ: Mapping[str, str]) -> Iterator[KnownSite]:
    """Yield every capture that has a name; a name's first one is the one that counts."""
    own = files.user_directory(environ)
    folders = [("own", f"{own}/sites")] if own else []
    folders += [("site", f"{files.site_directory(environ)}/sites"), ("example", _EXAMPLES)]
    seen: set[str] = set()
    for kind, folder in folders:
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
        except OSError:
            continue
        for file in names:
            name = file.removesuffix(SUFFIX)
            if name and not name.startswith(".") and name not in seen:
                seen.add(name)
                yield KnownSite(name, f"{folder}/{file}", kind)


def find(text: str, environ: Mapping[str, str]) -> Capture:
    """Return the capture that `text` names: NAME, or a file's path (with a "/" or .json in it).

    Raises UdiError where there is none, and for a file that is no capture.
    """
    if "/" in text or text.endswith(SUFFIX):
        return read(text)
    sites = {one.name: one for one in known(environ)}
    if text not in sites:
        raise UdiError(
            f"there is no site {text!r}",
            f"known are {', '.join(sorted(sites))}; a file is named with a '/' (./{text})",
        )
    return read(sites[text].path).replace(name=text)


def read(path: str) -> Capture:
    """Return the capture in a file. Raises UdiError."""
    try:
        with open(path, "rb") as file:
            return parse(file.read(LARGEST + 1), path)
    except OSError as error:
        raise UdiError(f"reading site capture {path} failed: {error.strerror}") from None
