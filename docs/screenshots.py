"""Takes the documentation's pictures of the page: `python docs/screenshots.py URL`, of a server with the demo model.

Needs Chromium with its driver, and selenium.
"""

import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).parent / "images"
# What stands before and behind the cursor.
CODE = ("And the LORD said unto Moses,\nGo unto ", ",\nand say unto them.\n")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


def chromium() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


def show(driver: webdriver.Chrome, url: str, width: int, height: int, **stored: str) -> None:
    """A fresh page of a size, with what a visitor has chosen before."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(f"{url}/docs")
    driver.execute_script("localStorage.clear()")
    for name, value in {"language": "en", "theme": "light", **stored}.items():
        driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", name, value)
    driver.get(url)
    until(driver, lambda: driver.find_element(By.ID, "model").text)


def until(driver: webdriver.Chrome, is_so: object) -> None:
    WebDriverWait(driver, 30).until(lambda _: is_so())  # type: ignore[operator]


def fill(driver: webdriver.Chrome) -> None:
    driver.find_element(By.ID, "run").click()
    until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, ".worth"))


def main(url: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    driver = chromium()
    try:
        show(driver, url, 1280, 800)
        fill(driver)
        word = driver.find_elements(By.CSS_SELECTOR, "button.token")[-1]
        ActionChains(driver).move_to_element(word).perform()
        driver.save_screenshot(str(IMAGES / "playground.png"))
        show(driver, url, 390, 844)
        fill(driver)
        driver.save_screenshot(str(IMAGES / "playground-phone.png"))
        show(driver, url, 1280, 800, theme="dark", language="zh")
        fill(driver)
        driver.find_element(By.ID, "settings").click()
        driver.save_screenshot(str(IMAGES / "playground-dark.png"))
        show(driver, url, 1280, 800)
        driver.find_elements(By.CSS_SELECTOR, "#examples button")[2].click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "svg.order"))
        driver.save_screenshot(str(IMAGES / "playground-score.png"))
        driver.find_element(By.ID, "tab-code").click()
        driver.find_element(By.ID, "code-text").send_keys(CODE[0] + CODE[1], *[Keys.ARROW_LEFT] * len(CODE[1]))
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#code-status .unseen"))
        driver.save_screenshot(str(IMAGES / "playground-code.png"))
        driver.find_element(By.ID, "tab-connect").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, ".client"))
        driver.save_screenshot(str(IMAGES / "playground-connect.png"))
    finally:
        driver.quit()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
