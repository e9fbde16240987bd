"""A real Chromium without a screen: pages looked at, clicked and typed into as people do.

Chromium's own switches stand for what people have: a narrow screen, dark colours, no JavaScript.
Whoever changes one need not change it back: the fixture `browser` does, before each test.
"""

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WIDE, NARROW = (1280, 900), (360, 740)
"""Sizes of a screen and of a small phone, in CSS pixels."""
_PATIENCE = 30
_SWITCHES = (
    "--headless=new",
    # A container or a minimal root may have no user namespaces for it, and a small /dev/shm. What
    # it shows is ours.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
    "--no-first-run",
    # It asks nobody but whom a page asks.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)
_TOO_WIDE = """
const most = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= most) return [];
return [...document.querySelectorAll("body *")]
  .filter(one => one.getBoundingClientRect().right > most + 1)
  .map(one => one.outerHTML.slice(0, 120));
"""
_AXE = """
const done = arguments[arguments.length - 1];
axe.run().then(found => done(found.violations.map(one =>
  `${one.id}: ${one.help}: ${one.nodes.map(node => node.html.slice(0, 120)).join(" | ")}`)),
  error => done([String(error)]));
"""


class Browser:
    """One Chromium. `driver` is Selenium's, for what has no method here."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def reset(self) -> None:
        """Forget cookies and pages; be wide, light and with JavaScript again."""
        self.driver.get("about:blank")
        self._do("Network.clearBrowserCookies")
        self.size(*WIDE)
        self.colours("light")
        self.scripts(True)
        self.complaints()
        self.asked()

    def _do(self, command: str, **arguments: Any) -> Any:
        """Give a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, page: str | Path) -> None:
        """Go to an address, or to a file's."""
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        self._do("Emulation.setDeviceMetricsOverride", mobile=width < 600, **metrics)

    def colours(self, scheme: str) -> None:
        """Prefer "light" or "dark" colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._do("Emulation.setEmulatedMedia", features=features)

    def scripts(self, on: bool) -> None:
        """Run JavaScript of pages that are opened from now on, or not."""
        self._do("Emulation.setScriptExecutionDisabled", value=not on)

    def one(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """All the text that the page shows."""
        return self.one("body").text

    def keys(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focus(self) -> WebElement:
        return self.driver.switch_to.active_element

    def until(self, told: Callable[[], Any]) -> Any:
        """Return what `told` says once that is true; an element may be replaced meanwhile."""
        wait = WebDriverWait(self.driver, _PATIENCE, 0.05, (StaleElementReferenceException,))
        try:
            return wait.until(lambda _: told())
        except TimeoutException:
            raise AssertionError(f"after {_PATIENCE} s: {self.text}") from None

    def too_wide(self) -> list[str]:
        """Return what makes the page wider than the screen: none, where nobody must scroll."""
        found: list[str] = self.driver.execute_script(_TOO_WIDE)
        return found

    def faults(self) -> list[str]:
        """Return what keeps people from using this page, as axe-core finds it (WCAG)."""
        spec = find_spec("axe_core_python")
        assert spec is not None and spec.origin is not None
        self.driver.execute_script(Path(spec.origin).with_name("axe.min.js").read_text())
        found: list[str] = self.driver.execute_async_script(_AXE)
        return found

    def complaints(self) -> list[str]:
        """Return what Chromium has complained of since the last time: errors, refused content."""
        return [one["message"] for one in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def asked(self) -> list[str]:
        """Return the addresses that were asked for since the last time."""
        found = []
        for row in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(row["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(str(message["params"]["request"]["url"]))
        return found

    def picture(self, name: str) -> None:
        """Save the whole page as NAME.png in the folder $UDI_PICTURES, where that is set."""
        if not os.environ.get("UDI_PICTURES"):
            return
        folder = Path(os.environ["UDI_PICTURES"])
        metrics = self._do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": metrics["width"], "height": metrics["height"], "scale": 1}
        found = self._do("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        (folder / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile below `folder`, where it also puts what it downloads."""
    options = ChromeOptions()
    for switch in (*_SWITCHES, f"--user-data-dir={folder}/profile"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    env = {"HOME": str(folder), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    service = Service("/usr/bin/chromedriver", env=env, log_output=str(folder / "log"))
    driver = Chrome(options, service)
    try:
        driver.set_page_load_timeout(_PATIENCE)
        driver.set_script_timeout(_PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()
