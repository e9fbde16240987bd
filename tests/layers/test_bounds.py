"""The table of bounds has a row for every field that the code reads."""

import ast
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from rootless_udi.fuse import format
from rootless_udi.layers import bounds, tarreader
from rootless_udi.layers.tarfields import FIELDS
from tests.kit.places import TREE

ROWS = {(row.form, row.field): row for row in bounds.TABLE}
DOCUMENTS = (
    "manifest",
    "artifact",
    "sources",
    "from_layout",
    "from_registry",
    "from_archive",
    "open",
)


def parsed(name: str) -> ast.Module:
    return ast.parse((TREE / "rootless_udi" / f"{name}.py").read_text())


Key = TypeVar("Key", str, bytes)


def keys(tree: ast.Module, kind: type[Key]) -> Iterator[Key]:
    """Yield every constant that is a key: of .get(), of a subscript, on the left of `in`."""
    for node in ast.walk(tree):
        found: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            found = node.args[0] if node.func.attr == "get" else None
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            found = node.slice
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
            found = node.left
        if isinstance(found, ast.Constant) and isinstance(found.value, kind):
            yield found.value


def test_each_row_stands_once_and_says_why() -> None:
    assert len(ROWS) == len(bounds.TABLE)
    assert all(row.why and row.most != "" for row in bounds.TABLE)


def test_a_row_for_each_field_of_a_tar_header() -> None:
    assert {("tar", name) for name in FIELDS} <= set(ROWS)
    for name in ("layers/tarreader", "layers/tarsparse", "layers/tarfields"):
        for node in ast.walk(parsed(name)):
            # A header is cut by the table alone, but for the sums over all of it.
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "header":
                text = ast.unparse(node.slice)
                if name != "layers/tarfields" and text != ":1":
                    assert text.startswith("FIELDS["), f"{name}: header[{text}]"


def test_a_row_for_each_keyword_of_pax() -> None:
    known = {key.decode() for key in (*tarreader._KEYWORDS, *tarreader._XATTRS)}
    assert {("pax", key) for key in known} <= set(ROWS)
    for name in ("layers/tarreader", "layers/tarsparse"):
        for key in keys(parsed(name), bytes):
            assert len(key) == 1 or key.decode() in known, f"{name}: {key!r}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_row_for_each_key_of_a_document(name: str) -> None:
    for key in keys(parsed(f"pull/{name}"), str):
        if key[0].isalpha() and "." not in key:
            assert ("document", key) in ROWS, f"{name} reads {key!r}"


def test_a_row_for_each_field_of_squashfs() -> None:
    names = {field.partition(".")[0] for form, field in ROWS if form == "squashfs"}
    for name in format.Superblock.__slots__:
        assert ("squashfs", f"superblock.{name}") in ROWS
    found = {name: one for name, one in vars(format).items() if isinstance(one, struct.Struct)}
    assert len(found) > 12
    for name, one in found.items():
        if one is format.SUPERBLOCK:
            continue
        short = {"_HEADER": "inode"}.get(name, name.lower().strip("_"))
        rows = [
            field for form, field in ROWS if form == "squashfs" and field.startswith(f"{short}.")
        ]
        assert len(rows) == len(one.unpack(bytes(one.size))), f"{name}: {rows}"
        names.discard(short)
    plain = {"superblock", "xattr value", "names of xattrs", "metadata block"}
    assert names == plain


def test_what_a_start_loads_has_not_the_table() -> None:
    from rootless_udi import bundle

    loaded = {name for group in bundle.GROUPS.values() for name in group}
    assert "rootless_udi.layers.bounds" not in loaded
    for name in loaded:
        path = TREE / (name.replace(".", "/") + ".py")
        if path.exists():
            assert "rootless_udi.layers.bounds" not in Path(path).read_text(), name
