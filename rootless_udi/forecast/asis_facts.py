"""Gather of an image's files who may read them, and scripts that expect to be started by root."""

import re
from typing import Any

from rootless_udi.forecast.needs import FileContent, ImageEntry

_USUAL = re.compile(
    r"/(root|lost\+found)(/|\Z)|/etc/(shadow|gshadow|sudoers|security|ssl/private|polkit|audit|.pwd)"
    r"|/var/(cache|log|spool|lib/(apt|dpkg|private|polkit|systemd))"
)
"""Private files of every distribution, which its services alone read."""
_EXPECTS_ROOT = re.compile(
    rb"\b(gosu|su-exec|chown|chroot|useradd|usermod|groupmod|runuser|setpriv|setcap)\b|id -u"
)
_SCRIPT = re.compile(r"entry|init|start|run|boot", re.I)
_MOST, _LONGEST = 60, 500


class AsIsFacts:
    """The gatherer "asis":

    private   [path, mode, uid] of files and folders that others than their owner may not read
    setuid    paths of programs with setuid or setgid
    scripts   [path, word] of scripts that by this word expect root
    """

    NAME, VERSION = "asis", 1

    def __init__(self) -> None:
        self._private: list[list[Any]] = []
        self._setuid: list[str] = []
        self._scripts: list[list[str]] = []
        self._closed: set[str] = set()

    def wants(self, entry: ImageEntry) -> bool:
        """Note an entry; scripts are looked into that by their names begin something."""
        if entry.kind not in ("file", "directory") or len(entry.path) > _LONGEST:
            return False
        need = 0o004 if entry.kind == "file" else 0o005
        if entry.mode & need != need and not _USUAL.match(entry.path):
            self._closed_entry(entry)
        if entry.kind == "directory":
            return False
        if entry.mode & 0o6000 and entry.mode & 0o111 and len(self._setuid) < _MOST:
            self._setuid.append(entry.path)
        name = entry.path.rpartition("/")[2]
        script = entry.mode & 0o111 and entry.size < 1 << 16 and _SCRIPT.search(name)
        return bool(script) and len(self._scripts) < _MOST

    def _closed_entry(self, entry: ImageEntry) -> None:
        """Note what is closed to others, but not what is in a folder that is."""
        above = entry.path.rpartition("/")[0]
        while above:
            if above in self._closed:
                return
            above = above.rpartition("/")[0]
        if len(self._private) < _MOST:
            self._private.append([entry.path, entry.mode, entry.uid])
            if entry.kind == "directory":
                self._closed.add(entry.path)

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        """Look at a script's beginning."""
        head = content.head
        word = _EXPECTS_ROOT.search(head) if head[:2] == b"#!" else None
        if word:
            self._scripts.append([entry.path, word[0].decode("ascii")])

    def result(self) -> dict[str, Any]:
        """Return the facts."""
        return {"private": sorted(self._private), "setuid": self._setuid, "scripts": self._scripts}
