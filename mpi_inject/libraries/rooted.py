"""Paths below a root directory: symbolic links followed within it, small files and folders read.

`root` is "/" on a node, and in tests a tree that they have made. In records paths are as the host
itself would use them; only the source of a Mount has the root before it.
"""

import os
from errno import EINVAL

MAXSYMLINKS = 40
"""Symbolic links that are followed for one path, as many as Linux does (path_resolution(7))."""


def under(root: str, path: str) -> str:
    """Return `path` under `root`; a leading slash never escapes."""
    return path if root == "/" else root.rstrip("/") + "/" + path.lstrip("/")


def real(root: str, path: str) -> str:
    """Return `path` (as seen from `root`) with every symbolic link resolved inside `root`."""
    if root == "/":
        return os.path.realpath(path)
    done, rest, links = "", [p for p in path.split("/") if p], 0
    while rest:
        part = rest.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        try:
            target = os.readlink(under(root, done + "/" + part))
        except OSError:
            done += "/" + part
            continue
        links += 1
        if links > MAXSYMLINKS:
            return path
        if target.startswith("/"):
            done = ""
        rest[:0] = [p for p in target.split("/") if p]
    return done or "/"


def resolve(root: str, path: str) -> str:
    """Follow every symbolic link of `path` inside `root`; "" where it leads nowhere."""
    full = under(root, path)
    if not os.path.lexists(full):
        # Usually the path does not exist. Below another root it still may: an absolute link above
        # it was followed out of that root.
        if root == "/":
            return ""
        full = os.path.dirname(full)
        while full != "/" and not os.path.lexists(full):
            full = os.path.dirname(full)
        if not os.path.islink(full):
            return ""
    found = real(root, path)
    return found if os.path.exists(under(root, found)) else ""


class Links:
    """`resolve` for many paths of few folders: each folder is resolved once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._folders: dict[str, str | None] = {"": ""}

    def resolve(self, path: str) -> str:
        """Return what resolve(root, path) returns."""
        tried = path
        for _ in range(MAXSYMLINKS):
            folder, _slash, name = tried.rpartition("/")
            if name in ("", ".", ".."):
                break
            place = self._folder(folder)
            if place is None:
                return ""
            tried = f"{place}/{name}"
            try:
                target = os.readlink(under(self.root, tried))
            except OSError as error:
                # EINVAL: it exists and is no link (readlink(2)).
                return tried if error.errno == EINVAL else ""
            tried = target if target.startswith("/") else f"{place}/{target}"
        return resolve(self.root, path)

    def _folder(self, folder: str) -> str | None:
        """Return a folder's real path without a slash at its end, None where there is none."""
        if folder not in self._folders:
            self._folders[folder] = None  # ends the recursion at a link that leads to itself
            found = self.resolve(folder)
            self._folders[folder] = found.rstrip("/") if found else None
        return self._folders[folder]


def exists(root: str, path: str) -> bool:
    """Tell whether `path` is there, symbolic links followed inside `root`."""
    return os.path.exists(under(root, path)) or bool(resolve(root, path))


def read(root: str, path: str) -> str:
    """Return a small text file's content, "" where it can't be read."""
    try:
        file = os.open(under(root, path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, 65536).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)


def listing(root: str, path: str) -> list[str]:
    """Return a directory's names in order, none where it can't be read."""
    return sorted(unordered(root, path))


def names(root: str, path: str) -> str:
    """Return a directory's names in one text, a NUL before each and at the end.

    To search this text for a few names of thousands takes 0.1 ms; to look at each name takes 0.4.
    """
    found = unordered(root, path)
    found.insert(0, "")
    found.append("")
    return "\0".join(found)


def unordered(root: str, path: str) -> list[str]:
    """Return a directory's names, none where it can't be read."""
    try:
        return os.listdir(under(root, path))
    except OSError:
        return []
