"""The Chromium of the tests shows what people see, and says what is wrong with it."""

from pathlib import Path

import pytest

from tests.kit.browser import NARROW, Browser

pytestmark = pytest.mark.needs("chromium")

PAGE = """<!DOCTYPE html><html lang="en"><head><title>t</title>
<meta name="viewport" content="width=device-width"><style>
:root { color-scheme: light dark } @media (prefers-color-scheme: dark) { i { display: none } }
</style></head><body><main><h1>It is <i>light</i></h1><p id="p">quiet</p>
<script>document.querySelector("#p").textContent = "lively"</script>%s</main></body></html>"""


def test_what_people_have(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE % "")
    browser.open(page)
    assert browser.text == "It is light\nlively"
    assert browser.faults() == [] and browser.too_wide() == [] and browser.complaints() == []
    browser.colours("dark")
    assert browser.text == "It is\nlively"
    browser.scripts(False)
    browser.open(page)
    assert browser.text == "It is\nquiet"


def test_what_is_wrong_is_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE % '<img src="gone.png"><p style="width: 800px; color: #eee">wide</p>')
    browser.open(page)
    assert browser.too_wide() == []
    assert any("ERR_FILE_NOT_FOUND" in one for one in browser.complaints())
    assert [one for one in browser.asked() if one.endswith("/gone.png")]
    faults = " ".join(browser.faults())
    assert "image-alt" in faults and "color-contrast" in faults
    browser.size(*NARROW)
    assert "800px" in browser.too_wide()[0]
