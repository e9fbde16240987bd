"""The documents as a site: links lead somewhere, pages are in the menu, no other host is asked."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.kit import documents
from tests.kit.places import TREE

pytestmark = [pytest.mark.alike, pytest.mark.needs("zensical")]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree's documents and what builds the site of them."""
    folder = tmp_path_factory.mktemp("site")
    kinds = ("docs/*.svg", "docs/*.css")
    others = [str(path.relative_to(TREE)) for kind in kinds for path in TREE.glob(kind)]
    for name in ("zensical.toml", "docs/build", *documents.pages(), *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TREE / name, folder / name)
    return folder


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", folder / "docs/build", sys.executable], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site(copy: Path) -> Path:
    """The built site; links are checked on the way."""
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build/site"


def test_every_page_is_in_the_menu(site: Path) -> None:
    menu = re.findall(r'"([^"]+)" = "([^"]+\.md)"', (TREE / "zensical.toml").read_text())
    assert sorted(page for _, page in menu) == sorted(documents.pages())
    shown = re.sub(r"\s+", " ", (site / "index.html").read_text())
    for title, page in menu:
        assert f"> {title} <" in shown or f">{title}<" in shown, page


class Loads(HTMLParser):
    """What a browser loads by itself when it shows a page, and the pages that it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        self.loads += [
            given[name] for name in ("src", "srcset", "poster", "data") if given.get(name)
        ]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """A script's own loads (mermaid, pyodide) are for blocks that no page has."""
    shown = sorted(site.rglob("*.html"))
    assert len(shown) >= len(documents.pages())
    for page in shown:
        text = page.read_text()
        parser = Loads()
        parser.feed(text)
        assert parser.loads
        for one in parser.loads:
            assert not re.match(r"(?:[a-z]+:)?//", one), f"{page}: {one}"
        assert not re.search(r'class="[^"]*\b(?:mermaid|glightbox|pyodide)\b', text), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.parametrize("link", ["nosuch.md", "mpi.md#nosuch", "../NOSUCH.md"])
def test_a_link_to_nowhere_fails(copy: Path, site: Path, tmp_path: Path, link: str) -> None:
    shutil.copytree(copy, tmp_path / "tree", ignore=shutil.ignore_patterns("build.*"))
    page = tmp_path / "tree/docs/tutorial.md"
    page.write_text(page.read_text() + f"\n[x]({link})\n")
    done = build(tmp_path / "tree")
    assert done.returncode != 0 and "does not exist" in done.stdout + done.stderr
