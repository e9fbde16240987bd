"""Load the configuration of the site and the user, as one frozen record.

Reading TOML (`rootless_udi.config.merge`) costs 18 ms of imports. So its result is kept as a
flattened copy, a JSON file: in the user's cache, or beside the site's files where the administrator
ran `udi config compile`. A launch reads that copy if it was made of exactly the files that are
there. Where there are no files, a launch looks at two paths and is done. The configuration is no
privilege boundary: anybody may name another site directory in UDI_SITE_DIR.
"""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.config.files import (
    COMPILED,
    FORMAT,
    ConfigFile,
    cache_file,
    find,
    read,
    site_directory,
)
from rootless_udi.plan.site import Site, from_flat, to_flat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_RACY = 2 * 10**9
"""Nanoseconds. File systems keep times in steps of up to 2 s: a file that was changed within one
step of the copy may have been changed again without another time, so its text is compared."""


def load(environ: "Mapping[str, str]") -> Site:
    """Return the merged configuration for this environment, paths expanded.

    Raises UdiError for a file that has an error (naming the line), can't be read, or may be written
    by others.
    """
    sources = find(environ)
    site = from_flat(_flattened(sources, environ)) if sources else Site()
    # Set here and not by the flattened copy, which could say anybody.
    owner = sources[0].owner if sources and sources[0].kind.startswith("site") else 0
    return expanded(site, environ).replace(owner=owner)


def _flattened(sources: list[ConfigFile], environ: "Mapping[str, str]") -> "dict[str, Any]":
    own = cache_file(sources, environ)
    compiled = f"{site_directory(environ)}/{COMPILED}"
    for path in (compiled, own) if sources[0].kind.startswith("site") else (own,):
        flat = _from_cache(path, sources) if path else None
        if flat is not None:
            return flat
    from rootless_udi.config.compiled import write_cache
    from rootless_udi.config.merge import merged

    texts = [read(source) for source in sources]
    flat = to_flat(merged(sources, texts))
    if own:
        write_cache(own, sources, texts, flat)
    return flat


def _from_cache(path: str, sources: list[ConfigFile]) -> "dict[str, Any] | None":
    """Return the flattened copy at `path` if it was made of exactly these files, else None.

    That is so if each file has the same time, size and inode as then, or else the same text: nodes
    have each their own /etc, with equal files, and share one HOME.
    """
    from rootless_udi.base.fastjson import loads

    try:
        with open(trust.opened(path, (sources[0].owner,)), "rb") as file:
            info = os.fstat(file.fileno())
            copy = loads(file.read().decode())
        rows = copy["files"]
        if copy["format"] != FORMAT or len(rows) != len(sources):
            return None
        again = False
        for source, row in zip(sources, rows, strict=True):
            if [source.path, source.kind] != row[:2]:
                return None
            same = [source.mtime, source.size, source.inode] == row[2:5]
            fresh = source.mtime > info.st_mtime_ns - _RACY
            if (fresh or not same) and read(source) != row[5]:
                return None
            again = again or (fresh and same)
        flat: dict[str, Any] = copy["site"]
        from_flat(flat)
    except (OSError, UdiError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    if again and info.st_uid == os.getuid():
        # The contents were compared and are equal: touch the copy, so that later starts may trust
        # the files' times and need not read them.
        try:
            os.utime(path)
        except OSError:
            return flat
    return flat


def expanded(site: Site, environ: "Mapping[str, str]") -> Site:
    """Return the Site with `$NAME` and `${NAME}` in its paths replaced by the variables' values.

    A path of a list and an optional mount are left out if a variable in them is unset or empty.
    Raises UdiError if that is so for a required mount. It also gives each mount the site's
    propagation.
    """
    known = {**environ, "UID": str(os.getuid())}

    def those(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path for path in (expand(one, known) for one in paths) if path)

    rows = []
    for row in site.mounts:
        own = {"slave", "private", "sqfs"}.intersection(row.options)
        if site.propagation == "slave" and not own:
            row = row.replace(options=(*row.options, "slave"))
        source, destination = expand(row.source, known), expand(row.destination, known)
        if source and destination:
            rows.append(
                row
                if source is row.source and destination is row.destination
                else row.replace(source=source, destination=destination)
            )
        elif row.required:
            raise UdiError(
                f"mount {row.source} on {row.destination} ({row.origin}): a variable is unset",
                "set it, or write required = false",
            )
    return site.replace(
        store=expand(site.store, known) or "",
        site_stores=those(site.site_stores),
        cache_paths=those(site.cache_paths),
        cdi_spec_dirs=those(site.cdi_spec_dirs),
        state_directories=those(site.state_directories),
        mounts=tuple(rows),
    )


def expand(text: str, variables: "Mapping[str, str]") -> str | None:
    """Return `text` with `$NAME` and `${NAME}` replaced; None if a variable is unset or empty."""
    if "$" not in text:
        return text
    head, *rest = text.split("$")
    for piece in rest:
        if piece.startswith("{"):
            name, brace, tail = piece[1:].partition("}")
            if not brace:
                return None
        else:
            end = 0
            while end < len(piece) and (piece[end].isalnum() or piece[end] == "_"):
                end += 1
            name, tail = piece[:end], piece[end:]
        value = variables.get(name, "")
        if not value:
            return None
        head += value + tail
    return head
