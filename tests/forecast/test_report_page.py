"""The forecast's page as a site's support sees it, in a real Chromium."""

from pathlib import Path

import pytest

from rootless_udi.forecast import report_html
from rootless_udi.forecast.check import Answer
from rootless_udi.forecast.finding import FAILS, RUNS, CheckFinding, Evidence
from tests.conftest import User
from tests.kit.browser import NARROW, WIDE, Browser

pytestmark = pytest.mark.needs("chromium")

BAD = "<script>document.title = 'mine'</script>"


def looked_at(browser: Browser, name: str) -> None:
    for width, size in (("wide", WIDE), ("narrow", NARROW)):
        browser.size(*size)
        for scheme in ("light", "dark"):
            browser.colours(scheme)
            browser.picture(f"{name}-{width}-{scheme}")
            if (width, scheme) in (("wide", "light"), ("narrow", "dark")):
                assert browser.faults() == [], (width, scheme)
        assert browser.too_wide() == [], width
    assert browser.complaints() == []


def test_a_report_on_all_screens(browser: Browser, user: User, box: Path) -> None:
    words = ["udi", "check", box, "--report=html", "--to=page.html"]
    words += [f"--site={name}" for name in ("ethernet-el8", "mi250-node")]
    done = user.run(*words, "--gpu", "--", "sh", "-c", "true")
    assert (user.home / "page.html").exists(), done.stderr
    browser.open(user.home / "page.html")
    # What is in the way is seen at once, the rest when asked for.
    assert "leave --gpu out" in browser.text and "built for Linux" not in browser.text
    browser.one("summary").click()
    assert "built for Linux" in browser.text
    looked_at(browser, "report")
    browser.size(*WIDE)
    browser.one("table a").click()
    assert browser.driver.current_url.endswith("#site0")
    assert all(url.startswith("file:") for url in browser.asked())


def test_what_an_image_says_is_text(browser: Browser, tmp_path: Path) -> None:
    long = "x" * 500
    found = CheckFinding(BAD, FAILS, BAD, Evidence(BAD, long), Evidence(long, BAD), BAD, (long,))
    fine = CheckFinding("fine", RUNS, "nothing in the way")
    page = tmp_path / "page.html"
    page.write_text(report_html.page(long, (BAD,), [Answer(long, FAILS, (fine, found))], BAD))
    browser.open(page)
    assert browser.text.count(BAD) >= 6 and browser.driver.title != "mine"
    looked_at(browser, "report-bad")
