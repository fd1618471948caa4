"""The page as people use it, in Chromium: filling, replacing, ranking, and what they see when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.faults.conftest import Server
from tests.playground.conftest import Page

TEXT = "And [MASK] said unto him, What is thy [MASK]?"


def filled(page: Page) -> str:
    """The first answer's text, without what it is worth."""
    text: str = page.run(
        "return [...document.querySelector('.answer').childNodes]"
        ".filter((n) => n.className !== 'worth').map((n) => n.textContent).join('')"
    )
    return text


def finish(page: Page) -> None:
    page.until(lambda: page["status"].text.startswith("done"))


def test_two_blanks_fill_while_they_stream(page: Page) -> None:
    page.write("text", "And [MASK] said unto him, [gMASK]")
    page["settings"].click()
    page.write("max_tokens", "60")
    # Every state of the answer is noted, as an eye would see it.
    page.run(
        "window.seen = []; new MutationObserver(() => window.seen.push(document.querySelector('.answer')?.textContent))"
        ".observe(document.getElementById('results'), {childList: true, subtree: true, characterData: true});"
    )
    page["run"].click()
    finish(page)
    seen = page.run("return window.seen")
    lengths = [len(text) for text in seen if text]
    assert len(set(lengths)) > 4, "the text grew as it came"
    assert filled(page).startswith("And ")
    assert "[" not in filled(page)
    assert len(page.all(".fill.done")) == 2
    shades = page.run(
        "return [...document.querySelectorAll('button.token')].map((b) => b.style.getPropertyValue('--u'))"
    )
    assert len(set(shades)) > 1


def test_a_word_is_replaced_by_an_alternative_and_the_rest_is_written_anew(page: Page) -> None:
    page["run"].click()
    finish(page)
    assert filled(page) == "And he said unto him, What is thy name?"
    ActionChains(page.driver).move_to_element(page.all("button.token")[0]).perform()
    page.until(lambda: page["popover"].is_displayed())
    words = [option.find_element(By.TAG_NAME, "span").text.strip() for option in page.all("#popover button")]
    assert words[0] == "he"
    assert len(words) == 5
    page.all("#popover button")[1].click()
    page.until(lambda: filled(page).startswith(f"And {words[1]}"))
    finish(page)
    assert filled(page).endswith("What is thy name?"), "the other blank is left as it was"
    page["undo"].click()
    assert filled(page) == "And he said unto him, What is thy name?"


def test_three_candidates_are_ranked(page: Page) -> None:
    page["tab-score"].click()
    page.write("score-text", "床前明月[MASK]")
    page.write("candidates", "山\n光\n酒")
    page["score-run"].click()
    rows = page.until(lambda: page.all("#scores tbody tr"))
    assert rows[0].find_element(By.TAG_NAME, "td").text == "光"
    widths = page.run("return [...document.querySelectorAll('td.share i')].map((i) => i.getBoundingClientRect().width)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 50


def test_span_orders_are_compared(page: Page) -> None:
    page["tab-score"].click()
    page.write("score-text", "In the [MASK] God created the [MASK].")
    page.write("candidates", "beginning | heaven")
    page["all-orders"].click()
    page["score-run"].click()
    page.until(lambda: len(page.all("table.orders tbody tr")) == 2)
    pictures = page.all("svg.order")
    assert {picture.get_attribute("aria-label") for picture in pictures} == {"order 1 → 2", "order 2 → 1"}
    for picture in pictures:
        assert picture.get_attribute("role") == "img"
        # The boxes stand as in the text; the numbers say which one is written first.
        places = [box.rect["x"] for box in picture.find_elements(By.CSS_SELECTOR, "rect")]
        steps = [step.text for step in picture.find_elements(By.CSS_SELECTOR, "text")]
        assert steps == ["1", "2"]
        assert (places[0] < places[1]) == (picture.get_attribute("aria-label") == "order 1 → 2")
        assert len(picture.find_elements(By.CSS_SELECTOR, ".arc")) == 1
    values = [float(cell.text) for cell in page.all("table.orders td.number")]
    assert values == sorted(values, reverse=True)


def test_six_orders_of_three_spans_are_six_pictures(phone: Page) -> None:
    phone["tab-score"].click()
    phone.write("score-text", "[MASK] the [MASK] God created the [MASK].")
    phone.write("candidates", "In | beginning | <b>heaven</b>")
    phone["all-orders"].click()
    phone["score-run"].click()
    phone.until(lambda: len(phone.all("svg.order")) == 6)
    assert len({picture.get_attribute("aria-label") for picture in phone.all("svg.order")}) == 6
    assert phone.all("#scores b") == [], "text is text"
    assert "<b>heaven</b>" in phone["scores"].text
    assert phone.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_empty_page_has_three_examples_that_work(page: Page, language: str) -> None:
    page.run("localStorage.setItem('language', arguments[0])", language)
    for number in range(3):
        page.driver.get("about:blank")
        page.driver.get(page.url)
        page.until(lambda: page["model"].text)
        buttons = page.all("#examples button")
        assert len(buttons) == 3
        assert all(button.is_displayed() and "[MASK]" in button.text for button in buttons)
        assert all(button.text.isascii() == (language == "en") for button in buttons)
        buttons[number].click()
        page.until(lambda: page.all(".answer .worth") or page.all("svg.order"))
        assert not page["examples"].is_displayed()
    page["tab-fill"].click()
    page["text"].clear()
    assert page["examples"].is_displayed()


def test_a_refusal_names_its_field_and_leads_there(page: Page) -> None:
    page["settings"].click()
    page.write("n", "99")
    page["run"].click()
    page.until(lambda: page["error"].is_displayed())
    assert "n is 99; the limit is 8" in page["error"].text
    assert page.driver.switch_to.active_element.get_attribute("id") == "n"


def test_the_keyboard_is_enough(page: Page) -> None:
    page["text"].clear()
    keys = ActionChains(page.driver)
    keys.send_keys_to_element(page["text"], "And ").key_down(Keys.ALT).send_keys("m").key_up(Keys.ALT)
    keys.send_keys(" said unto him.").key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    assert page["text"].get_attribute("value") == "And [MASK] said unto him."
    finish(page)
    page.run("document.querySelector('button.token').focus()")
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN).send_keys(Keys.ARROW_DOWN).send_keys(Keys.ENTER).perform()
    page.until(lambda: not page["undo"].get_attribute("disabled"))
    finish(page)
    ActionChains(page.driver).key_down(Keys.ALT).send_keys("2").key_up(Keys.ALT).perform()
    assert page["panel-score"].is_displayed()
    for key, panel in ((Keys.ARROW_RIGHT, "code"), (Keys.END, "connect"), (Keys.ARROW_RIGHT, "fill")):
        ActionChains(page.driver).send_keys(key).perform()
        assert page[f"panel-{panel}"].is_displayed()
        assert page.driver.switch_to.active_element.get_attribute("id") == f"tab-{panel}"


def test_a_link_brings_back_what_was_there(page: Page) -> None:
    state = {"tab": "score", "score-text": "the [MASK] sea", "candidates": "red\ndead", "normalize": "token"}
    page.open(f"#{quote(json.dumps(state))}")
    assert page["panel-score"].is_displayed()
    assert page["score-text"].get_attribute("value") == "the [MASK] sea"
    assert page["normalize"].get_attribute("value") == "token"


def test_what_was_done_is_remembered_and_forgotten(page: Page) -> None:
    page["run"].click()
    finish(page)
    page["past"].find_element(By.TAG_NAME, "summary").click()
    assert [button.text for button in page.all("#history button")] == [TEXT]
    page["forget"].click()
    assert page.all("#history button") == []
    assert page.run("return localStorage.getItem('history')") is None


def test_the_commands_shown_do_what_the_page_did(page: Page, tmp_path: Path) -> None:
    page.write("text", 'It\'s "quoted" \\ and [MASK] $HOME `x`.')
    page["run"].click()
    finish(page)
    expected = filled(page)
    for name in ("curl", "python"):
        code = page.run("return document.getElementById(arguments[0]).textContent", name)
        command = ["sh", "-c", code] if name == "curl" else [sys.executable, "-c", code]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        answer: Any = json.loads(ran.stdout) if name == "curl" else eval(ran.stdout)  # a dict as Python prints it
        assert answer["results"][0]["text"] == expected


def test_it_speaks_chinese_and_is_dark(page: Page) -> None:
    page["language"].click()
    page["theme"].click()
    assert page["run"].text == "填空"
    assert page.run("return document.documentElement.lang") == "zh"
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    page.driver.refresh()
    assert page["run"].text == "填空"


def test_it_fits_a_phone(phone: Page) -> None:
    assert len(phone.all("#examples button")) == 3
    assert phone.run("return document.documentElement.scrollWidth") <= 390
    phone["run"].click()
    finish(phone)
    assert phone.run("return document.documentElement.scrollWidth") <= 390


def test_nothing_of_another_s_script_would_run(page: Page) -> None:
    """The policy holds: a script put into the page is refused."""
    page.run("const s = document.createElement('script'); s.textContent = 'window.evil = 1'; document.body.append(s);")
    assert page.run("return window.evil") is None
    complaints = page.complaints()
    assert len(complaints) == 1
    assert "Content Security Policy" in complaints[0]


def test_a_key_is_asked_for_and_a_server_that_has_gone_is_said_kindly(
    page: Page, locked: tuple[Server, str], demo_url: str
) -> None:
    server, key = locked
    page.driver.get(server.url)
    page.until(lambda: page["key-dialog"].is_displayed())
    assert "asks for a key" in page["error"].get_attribute("textContent")  # type: ignore[operator]
    page["key-input"].send_keys(key, Keys.ENTER)
    page.until(lambda: page["model"].text)
    page["run"].click()
    finish(page)
    assert key not in page.run("return JSON.stringify(localStorage) + location.href + document.body.innerHTML")
    server.stop()
    page["run"].click()
    page.until(lambda: "cannot be reached" in page["error"].text)
    page.complaints()  # the refused connection is one
    page.requested.clear()
    page.hosts()
    page.requested.clear()
