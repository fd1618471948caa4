"""A real browser for the page. Without one its tests are skipped, unless GLM_INFILL_REQUIRE_BROWSER says that it must
be there, as CI does."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from server.keyfile import new_key
from tests.faults.conftest import Server

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--window-size=1280,800",
)


class Page:
    """The page in a browser, as a visitor has it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self.requested: list[str] = []

    def open(self, fragment: str = "") -> None:
        """Afresh: nothing is remembered, English, light."""
        self.driver.get(f"{self.url}/docs")
        self.driver.execute_script("localStorage.clear(); localStorage.setItem('language', 'en');")
        self.driver.get(f"{self.url}/{fragment}")
        self.until(lambda: self["model"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, is_so: Any) -> Any:
        return WebDriverWait(self.driver, 30, 0.02).until(lambda _: is_so())

    def write(self, name: str, text: str) -> None:
        self[name].clear()
        self[name].send_keys(text)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def hosts(self) -> set[str]:
        """Where anything was asked since the browser began."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        return {url.split("/")[2] for url in self.requested if url.startswith(("http", "ws"))}

    def complaints(self) -> list[str]:
        """Errors on the console, but for answers that a test asked for."""
        entries = self.driver.get_log("browser")
        return [e["message"] for e in entries if e["level"] == "SEVERE" and "the server responded" not in e["message"]]


@pytest.fixture(scope="session")
def driver() -> Iterator[webdriver.Chrome]:
    browser, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        if os.environ.get("GLM_INFILL_REQUIRE_BROWSER"):
            pytest.fail("chromium and chromedriver are not there (Debian: chromium, chromium-driver)")
        pytest.skip("chromium and chromedriver are not there")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, demo_url: str) -> Iterator[Page]:
    page = Page(driver, demo_url)
    page.open()
    yield page
    assert page.complaints() == []
    assert page.hosts() <= {demo_url.removeprefix("http://")}


@pytest.fixture
def phone(page: Page) -> Iterator[Page]:
    """The page on a phone."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield page
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def locked(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server that asks for a key, and a key for it."""
    key = new_key(tmp_path / "keys.jsonl", name="ann")
    server = Server(tiny_checkpoint(), tmp_path / "log", api_keys=tmp_path / "keys.jsonl")
    yield server, key
    server.stop()
