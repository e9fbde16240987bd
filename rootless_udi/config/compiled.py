"""Write the flattened copy of the configuration: a JSON file that starts read in place of TOML."""

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.config import files
from rootless_udi.config.files import ConfigFile
from rootless_udi.config.merge import merged
from rootless_udi.plan.site import to_flat


def write_cache(
    path: str, sources: list[ConfigFile], texts: list[str], flat: Mapping[str, Any]
) -> None:
    """Write a flattened copy at `path`; do nothing where that fails, since starts can do without.

    `sources` are the files that `flat` was made of, `texts` their contents.
    """
    try:
        if trust.make(os.path.dirname(path), 0o700) == os.getuid():
            _write(path, sources, texts, flat, 0o600)
    except OSError:
        return


def compile_site(environ: Mapping[str, str]) -> str:
    """Write the flattened copy of the site's files beside them (`udi config compile`); return its
    path.

    Raises UdiError where the site has no files, one is wrong, or the copy can't be written.
    """
    own = {"UDI_SITE_DIR": files.site_directory(environ)}
    sources = files.find(own)
    path = f"{own['UDI_SITE_DIR']}/{files.COMPILED}"
    if not sources:
        raise UdiError(f"no configuration in {own['UDI_SITE_DIR']}", "write udi.toml there first")
    texts = [files.read(source) for source in sources]
    try:
        _write(path, sources, texts, to_flat(merged(sources, texts)), 0o644)
    except OSError as error:
        raise UdiError(
            f"writing {path} failed: {error.strerror}",
            disk_hint(error.errno, "run it as the owner of that directory"),
        ) from error
    return path


def _write(
    path: str, sources: list[ConfigFile], texts: list[str], flat: Mapping[str, Any], mode: int
) -> None:
    rows = [
        [s.path, s.kind, s.mtime, s.size, s.inode, t] for s, t in zip(sources, texts, strict=True)
    ]
    document = {"format": files.FORMAT, "files": rows, "site": flat}
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".config-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
            os.fchmod(file.fileno(), mode)
        os.replace(partial, path)
    except OSError:
        os.unlink(partial)
        raise
