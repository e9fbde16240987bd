"""Guess what was meant by a word or file that is no image. Imported only for an error's hint."""

import os

from rootless_udi.base.superblock import MAGIC
from rootless_udi.store import find

_NAMES_MAX = 2000
"""Most names of stores that are compared."""
_SIF = "a SIF file"
_OFFSETS = (
    (
        _SIF,
        32,
        b"SIF_MAGIC",
        "udi-run runs it; as an image of the store: udi import {} NAME",
    ),
    (
        "a tar file",
        257,
        b"ustar",
        "docker-archive:{}, or oci-archive:{}",
    ),
    ("an ISO image", 32769, b"CD001", "the root directory in it: mount it, and give that"),
    ("an ext file system", 1080, b"\x53\xef", "mount it, and give its root directory"),
    ("an XFS file system", 0, b"XFSB", "mount it, and give its root directory"),
    ("a qcow2 disk image", 0, b"QFI\xfb", "a machine's disk is no image: pull one by name"),
    ("a program", 0, b"\x7fELF", "a program is the word after the image"),
    ("a script", 0, b"#!", "a script is the word after the image"),
    ("a gzip file", 0, b"\x1f\x8b", "of docker save | gzip: docker-archive:{}"),
    ("a zstd file", 0, b"\x28\xb5\x2f\xfd", "of docker save | zstd: docker-archive:{}"),
    ("an xz file", 0, b"\xfd7zXZ", "of docker save | xz: docker-archive:{}"),
    ("a zip file", 0, b"PK\x03\x04", "unpack it; an OCI image layout is oci:DIR"),
    ("a text of JSON", 0, b"{", "an OCI image layout is oci:DIR, its folder"),
)
"""What a file is, the offset and the bytes that tell it (magic(5), SIF's specification), and what
to give in its place; {} stands for the file."""


def kind(path: str) -> tuple[str, str]:
    """Return what the file at `path` is, and what to give in its place; ("", "") if unknown."""
    try:
        with open(path, "rb") as file:
            for what, offset, magic, hint in _OFFSETS:
                file.seek(offset)
                if file.read(len(magic)) == magic:
                    return what, hint.replace("{}", path)
            return ("an empty file", "was its copy broken off?") if not file.tell() else ("", "")
    except OSError:
        return "", ""


def stored(path: str, name: str) -> str:
    """Return how the store has what is at `path` as the image `name`; "" where that is unknown."""
    if not os.path.lexists(path):
        return ""
    if os.path.isdir(path):
        if os.path.exists(f"{path}/oci-layout"):
            return f"it is an OCI image layout: udi pull oci:{path} {name}"
        return "udi-run takes a root directory as it is"
    what, hint = kind(path)
    if what == _SIF or _is_squashfs(path):
        return f"udi import {path} {name} puts it into the store"
    return f"it is {what}: {hint}" if what else ""


def _is_squashfs(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return int.from_bytes(file.read(4), "little") == MAGIC
    except OSError:
        return False


def meant(text: str, stores: tuple[str, ...]) -> str:
    """Return "did you mean ...?" for an image that was not found; "" if nothing is similar."""
    from difflib import get_close_matches

    if not text.startswith(("/", ".")) and os.path.exists(text):
        if os.path.isfile(text) and kind(text)[0].endswith(("tar file", "gzip file")):
            return f"did you mean the file: docker-archive:{text}?"
        return f"did you mean what is here: ./{text}?"
    known = [one.removeprefix("docker.io/").removeprefix("library/") for one in _names(stores)]
    short = text.removeprefix("docker://").removeprefix("docker:")
    near = get_close_matches(short, known, 2, 0.6)
    near = near or [one for one in known if one.partition(":")[0] == short.partition(":")[0]][:2]
    return f"did you mean {' or '.join(near)}, which the store has?" if near else ""


def _names(stores: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for store in stores:
        for folder, _, files in os.walk(f"{store}/names"):
            if len(found) > _NAMES_MAX:
                return found
            inside = os.path.relpath(folder, f"{store}/names").partition("/")[2]
            found += [find.unescape(f"{inside}/{name}".lstrip("/")) for name in files]
    return found
