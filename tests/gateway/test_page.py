"""The gateway's pages as people see them: in a real Chromium, wide and narrow, light and dark."""

import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.conftest import User
from tests.kit.browser import NARROW, WIDE, Browser
from tests.kit.forwarding import forwarded
from tests.kit.gateway import Gateway, gateway
from tests.kit.registry import Quiet, Registry, flaky

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway", "chromium")

BAD = "<img src=x onerror=alert(1)>"


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        yield one


@pytest.fixture
def mine(served: Gateway) -> Iterator[str]:
    """Where the pages are for the gateway's own account, an administrator."""
    with forwarded(served.socket) as port:
        yield f"http://localhost:{port}/page/"


def filled(store: Path, tags: dict[str, str]) -> None:
    """Have users looked images up on each of the last 90 days."""
    dice = random.Random(1)
    users = ("ada", "grace", "edsger", "barbara", "alan", "tony", "niklaus", "donald")
    now = time.time()
    rows = []
    for day in range(90):
        for which, (tag, digest) in enumerate(tags.items()):
            for _ in range(dice.randrange(12 // (which + 1) + 1)):
                one = dice.randrange(3 + which) % len(users)
                when = now - day * 86400
                rows.append((when, 5000 + one, users[one], "perlmutter", "docker", tag, digest))
    with sqlite3.connect(store / "gateway/gateway.sqlite") as base:
        columns = "time, uid, user, system, type, tag, digest"
        base.executemany(f"insert into lookups ({columns}) values (?, ?, ?, ?, ?, ?, ?)", rows)
        begun = [
            (f"{number:x}", row[0], ("-", "h" + "1" * 24, str(row[1]))[number % 3], row[-1])
            for number, row in enumerate(rows)
        ]
        begun += [(f"x{n}", now, str(os.getuid()), "") for n in range(3)]
        base.executemany('insert into starts (id, time, "user", digest) values (?, ?, ?, ?)', begun)


def many(store: Path) -> None:
    """Have the list more images than a page has, with names as long as any."""
    with sqlite3.connect(store / "gateway/gateway.sqlite") as base:
        for number in range(120):
            digest = f"sha256:{number:064x}"
            values = (digest, 10 ** (number % 13), 1e9, 1e9 + number, number % 3 > 0, "{}")
            columns = "digest, size, pulled, used, public, facts"
            base.execute(f"insert into images ({columns}) values (?, ?, ?, ?, ?, ?)", values)
            name = ("nvcr.io/nvidia/pytorch", f"docker.io/{'long-name/' * 14}{'x' * 80}")[
                number % 2
            ]
            columns = "platform, name, digest, pulled"
            named = ("amd64", f"{name}:{number}", digest, 1e9)
            base.execute(f"insert into names ({columns}) values (?, ?, ?, ?)", named)


def looked_at(browser: Browser, name: str) -> None:
    """Nothing keeps people from using the page that is shown, on any screen, in any colours."""
    for width, size in (("wide", WIDE), ("narrow", NARROW)):
        browser.size(*size)
        for scheme in ("light", "dark"):
            browser.colours(scheme)
            browser.picture(f"{name}-{width}-{scheme}")
            if (width, scheme) in (("wide", "light"), ("narrow", "dark")):
                assert browser.faults() == [], (name, width, scheme)
        assert browser.too_wide() == [], (name, width)
    browser.size(*WIDE)
    browser.colours("light")
    assert browser.complaints() == [], name


def test_all_pages_on_all_screens(
    browser: Browser, served: Gateway, mine: str, registry: Registry
) -> None:
    tags = {}
    for tag in ("site/box:1", "site/same:2", "site/big:1"):
        record = served.pulled(f"{registry.host}/{tag}")
        tags[f"{registry.host}/{tag}"] = "sha256:" + record["id"]
    served.pulled(f"{registry.host}/site/none:1")
    digest = tags[f"{registry.host}/site/box:1"]
    names = {f"pytorch/pytorch:2.{n}": one for n, one in enumerate([*tags.values()] * 3)}
    filled(served.store, {BAD * 3: digest, **tags, **names})
    browser.open(mine)
    assert browser.driver.current_url == f"{mine}images"
    assert "3 names" in browser.text and "site/big:1" in browser.text
    looked_at(browser, "images")
    browser.open(f"{mine}images?q=nothing+like+it")
    assert "No image that you may read" in browser.text
    browser.picture("images-none")
    many(served.store)
    browser.open(f"{mine}images?order=name&page=2")
    assert "123 names" in browser.text and "Page 2 of 3" in browser.text
    browser.picture("images-many-wide-light")
    browser.size(*NARROW)
    browser.picture("images-many-narrow-light")
    assert browser.too_wide() == []
    browser.size(*WIDE)
    browser.open(f"{mine}image?id=sha256:{1 << 200:064x}")
    # Chromium says that the answer was a 404.
    assert len(browser.complaints()) == 1
    assert "There is no image of this digest here that you may read" in browser.text
    looked_at(browser, "error")
    browser.one(".top nav a[href=queue]").click()
    browser.until(lambda: browser.one("h1").text == "Queue")
    browser.open(f"{mine}queue")
    browser.until(lambda: browser.one("#live").text == "Live")
    assert "Nothing is being pulled." in browser.text and "MANIFEST_UNKNOWN" in browser.text
    looked_at(browser, "queue")
    browser.open(f"{mine}usage?by=user&days=90")
    assert BAD * 3 in browser.text and len(browser.all(".bars rect")) > 200
    browser.picture("usage-by-user")
    labels = [one.text for one in browser.all(".legend .label")]
    assert "Starts by day" in browser.text and "not told" in labels and "h" + "1" * 24 in labels
    browser.open(f"{mine}usage?days=7")
    assert "Who uses what" in browser.text and "grace" in browser.text
    assert "images that are not here" in browser.text
    looked_at(browser, "usage")
    browser.open(f"{mine}login")
    looked_at(browser, "login")
    browser.open(f"{mine}image?id={digest}")
    assert "srun -n 64 udi-run" in browser.text and "#SBATCH --image=" in browser.text
    assert "Lookups in 90 days" in browser.text
    for one in browser.all("summary"):
        one.click()
    assert "<script>alert(1)</script>" in browser.text
    looked_at(browser, "image")
    hosts = {url.split("/")[2] for url in browser.asked() if url.startswith("http")}
    assert hosts == {mine.split("/")[2]}


def test_the_queue_moves_while_a_pull_runs(
    browser: Browser, served: Gateway, mine: str, registry: Registry
) -> None:
    half, go_on = threading.Event(), threading.Event()
    with flaky(registry.host) as slow:

        def wait(path: str, sent: int) -> None:
            if "/blobs/" in path and sent >= 1 << 20:
                half.set()
                go_on.wait(60)

        slow.at_bytes = wait
        browser.open(f"{mine}queue")
        browser.until(lambda: browser.one("#live").text == "Live")
        assert browser.all(".job") == []
        served.pull(f"{slow.host}/site/big:1")
        assert half.wait(60)
        bar = browser.until(lambda: browser.all(".job progress[value]"))[0]
        value = browser.until(lambda: int(bar.get_attribute("value") or 0))
        assert 0 < value < 1000
        assert browser.one("#summary").text == "1 pull running."
        assert browser.one(".job .state").text == "Fetching layers"
        browser.until(lambda: " MB of 9.4 MB" in browser.one(".job .amount").text)
        browser.picture("queue-runs-wide-light")
        browser.size(*NARROW)
        browser.colours("dark")
        browser.picture("queue-runs-narrow-dark")
        assert browser.faults() == [] and browser.too_wide() == []
        # Others wait behind it; two workers each have one.
        go_on.set()
        browser.until(lambda: browser.one(".job .state").text == "Ready")
        # The same row, which has become a link: what had the focus would have it still.
        link = browser.one(".job a")
        browser.driver.execute_script("arguments[0].focus()", link)
        slow.rule = refuse
        served.pull(f"{slow.host}/site/other:1")
        browser.until(lambda: browser.all("[data-kind=failed], [data-kind=waits] .message"))
        browser.until(lambda: BAD in browser.text)
        assert browser.focus == link
        assert browser.complaints() == []
        # The gateway goes, and comes again: so does the page.
        served.kill()
        browser.until(lambda: browser.one("#live").text == "Connecting again…")
        served.start()
        browser.until(lambda: browser.one("#live").text == "Live")


def refuse(proxy: object, request: Quiet, path: str) -> bool:
    """Answer as a registry that means ill: HTML in its message."""
    if "/manifests/" not in path:
        return False
    body = '{"errors": [{"code": "DENIED", "message": "%s"}]}' % BAD
    request.answer(404, body.encode(), Content_Type="application/json")
    return True


def test_without_javascript(
    browser: Browser, user: User, served: Gateway, registry: Registry
) -> None:
    for tag in ("site/box:1", "site/same:2", "site/big:1"):
        served.pulled(f"{registry.host}/{tag}")
    made = served.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body
    page = f"http://127.0.0.1:{served.port}/page/"
    browser.scripts(False)
    # Who proves nothing is asked for it, and comes where he wanted to.
    browser.open(f"{page}images?q=site&order=size")
    assert "Paste a token of yours" in browser.text and "site/box" not in browser.text
    browser.one("#token").send_keys("udi_wrong", Keys.ENTER)
    browser.until(lambda: "This token is not known" in browser.text)
    browser.one("#token").send_keys(made["token"], Keys.ENTER)
    browser.until(lambda: browser.driver.current_url == f"{page}images?q=site&order=size")
    assert browser.all("td.name a")[0].text.endswith("/site/big:1")
    browser.one("#q").clear()
    browser.one("#q").send_keys("BOX", Keys.ENTER)
    browser.until(lambda: "1 name with BOX" in browser.text)
    browser.one("td.name a").click()
    browser.until(lambda: browser.one("h1").text == f"{registry.host}/site/box:1")
    browser.open(f"{page}queue")
    assert len(browser.all(".job[data-kind=ready]")) == 3
    assert browser.one("#live a").get_attribute("href") == f"{page}queue"
    browser.open(f"{page}usage")
    assert browser.one("h1").text == "Your usage"
    (cookie,) = browser.driver.get_cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and cookie["path"] == "/page"
    assert made["token"] not in cookie["value"] and not cookie["secure"]
    browser.one(".who button").click()
    browser.until(lambda: browser.one("h1").text == "Log in")
    assert browser.driver.get_cookies() == []


def test_by_keyboard(browser: Browser, served: Gateway, mine: str, registry: Registry) -> None:
    served.pulled(f"{registry.host}/site/box:1")
    browser.open(f"{mine}images")
    browser.keys(Keys.TAB)
    assert browser.focus.text == "To the content"
    browser.keys(Keys.ENTER)
    browser.keys(Keys.TAB)
    assert browser.focus.get_attribute("id") == "q"
    assert browser.focus.value_of_css_property("outline-style") == "solid"
    browser.keys("box", Keys.ENTER)
    browser.until(lambda: browser.driver.current_url.startswith(f"{mine}images?q=box"))
    seen = []
    for _ in range(20):
        browser.keys(Keys.TAB)
        seen.append(browser.focus.text)
        assert browser.focus.value_of_css_property("outline-style") == "solid", seen
        if seen[-1].endswith("/site/box:1"):
            break
    assert seen[:4] == ["To the content", f"{served_name(browser)}", "Images", "Queue"]
    browser.keys(Keys.ENTER)
    browser.until(lambda: browser.one("h1").text.endswith("/site/box:1"))
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    copy = browser.one(".commands button")
    copy.send_keys(Keys.ENTER)
    browser.until(lambda: copy.text == "Copied")


def served_name(browser: Browser) -> str:
    return browser.one(".brand").text
