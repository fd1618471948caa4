"""The view of the page that writes as an editor does, in Chromium: what is asked and when, and what the keys do."""

from typing import Any

import httpx
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.faults.conftest import Server
from tests.playground.conftest import Page

BEFORE = "And the LORD said unto "
AFTER = ", Go down."
# Notes what is asked at the editors' route, and lets it go on its way.
RECORD = """
window.sent = [];
const real = window.fetch;
window.fetch = (path, options) => {
    if (path === "/infill") window.sent.push({body: JSON.parse(options.body), signal: options.signal});
    return real(path, options);
};
"""


@pytest.fixture
def code(page: Page) -> Page:
    """The view, opened, and a record of its requests."""
    page.run(RECORD)
    page["tab-code"].click()
    return page


def text(page: Page) -> str:
    value = page["code-text"].get_attribute("value")
    assert value is not None
    return value


def ghost(page: Page) -> str:
    """The suggestion, once it is whole."""
    page.until(lambda: page.all("#code-status .unseen"))
    (shown,) = page.all(".ghost")
    assert shown.is_displayed()
    return str(page.run("return arguments[0].textContent", shown))


def num_sent(page: Page) -> int:
    return int(page.run("return window.sent.length"))


def body(page: Page, number: int) -> Any:
    return page.run("return window.sent[arguments[0]].body", number)


def press(page: Page, *keys: str) -> None:
    ActionChains(page.driver).send_keys(*keys).perform()


def test_the_blank_is_at_the_cursor_and_tab_takes_what_the_model_writes_there(code: Page) -> None:
    code["code-text"].send_keys(BEFORE + AFTER, *[Keys.ARROW_LEFT] * len(AFTER))
    suggestion = ghost(code)
    asked = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 16, "temperature": 0}
    assert suggestion == httpx.post(f"{code.url}/infill", json=asked).json()["content"] != ""
    assert body(code, -1 + num_sent(code)) == {**asked, "stream": True}
    assert text(code) == BEFORE + AFTER, "what is suggested is not in the text"
    press(code, Keys.TAB)
    assert text(code) == BEFORE + suggestion + AFTER
    assert code.driver.switch_to.active_element == code["code-text"]
    assert code["code-text"].get_property("selectionStart") == len(BEFORE + suggestion)
    ActionChains(code.driver).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    assert text(code) == BEFORE + AFTER, "the field's own undo knows it"


def test_escape_takes_it_away_and_then_tab_leaves_the_field(code: Page) -> None:
    code["code-text"].send_keys(BEFORE)
    ghost(code)
    press(code, Keys.ESCAPE)
    assert not code["code-ghost"].is_displayed()
    assert not code["code-accept"].is_enabled()
    assert text(code) == BEFORE
    press(code, Keys.TAB)
    assert code.driver.switch_to.active_element == code["code-run"]
    assert text(code) == BEFORE
    asked = num_sent(code)
    ActionChains(code.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).pause(0.5).perform()
    assert num_sent(code) == asked, "who only passes through the field asks for nothing"


def test_nothing_is_asked_while_somebody_types(code: Page) -> None:
    code["code-text"].send_keys(BEFORE)
    ghost(code)
    assert num_sent(code) == 1
    assert body(code, 0)["input_prefix"] == BEFORE


def test_to_type_on_gives_the_request_under_way_up(code: Page) -> None:
    slow = {"offline": False, "latency": 1500, "downloadThroughput": -1, "uploadThroughput": -1}
    code.driver.execute_cdp_cmd("Network.enable", {})
    code.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    try:
        code["code-text"].send_keys(BEFORE)
        code.until(lambda: num_sent(code) == 1)
        code["code-text"].send_keys("Moses")
        assert code.run("return window.sent[0].signal.aborted")
        code.until(lambda: num_sent(code) == 2)
    finally:
        code.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**slow, "latency": 0})
    ghost(code)
    assert not code.run("return window.sent[1].signal.aborted")
    assert body(code, 1)["input_prefix"] == f"{BEFORE}Moses"


def test_nothing_is_sent_while_an_input_method_composes(code: Page) -> None:
    code["code-text"].click()
    for part in ("chuang", "床qian", "床前"):
        composed = {"text": part, "selectionStart": len(part), "selectionEnd": len(part)}
        code.driver.execute_cdp_cmd("Input.imeSetComposition", composed)
    ActionChains(code.driver).pause(0.6).perform()
    assert text(code) == "床前"
    assert num_sent(code) == 0
    code.driver.execute_cdp_cmd("Input.insertText", {"text": "床前明月"})
    code.until(lambda: num_sent(code) == 1)
    assert body(code, 0)["input_prefix"] == "床前明月"
    assert ghost(code)


def test_what_is_typed_as_suggested_is_not_asked_again(code: Page) -> None:
    code["code-text"].send_keys(BEFORE)
    suggestion = ghost(code)
    code["code-text"].send_keys(suggestion[:2])
    assert ghost(code) == suggestion[2:]
    assert num_sent(code) == 1
    press(code, Keys.TAB)
    assert text(code) == BEFORE + suggestion


def test_nothing_is_asked_for_an_empty_text_or_a_selection(code: Page) -> None:
    code["code-text"].send_keys("  \n")
    ActionChains(code.driver).pause(0.5).perform()
    assert num_sent(code) == 0
    code["code-text"].send_keys(BEFORE)
    ghost(code)
    ActionChains(code.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).pause(0.5).perform()
    assert not code["code-ghost"].is_displayed()
    assert num_sent(code) == 1


def test_a_suggestion_moves_nothing_that_stands_before_the_cursor(code: Page) -> None:
    long = f"{BEFORE}averyveryverylongwordthathasnospace " * 7 + "\n\tin" + AFTER
    code["code-text"].send_keys(long.replace("\t", ""), *[Keys.ARROW_LEFT] * len(AFTER))
    suggestion = ghost(code)
    # The layer without the suggestion breaks its lines where the field breaks them.
    heights = """
        const [field, layer] = ["code-text", "code-ghost"].map((id) => document.getElementById(id));
        const ghost = layer.querySelector(".ghost"), range = document.createRange();
        range.selectNodeContents(layer.firstChild);
        const before = [...range.getClientRects()].map((r) => [r.x, r.y, r.width]);
        ghost.remove();
        field.style.alignSelf = layer.style.alignSelf = "start";
        field.rows = 1;
        const after = [...range.getClientRects()].map((r) => [r.x, r.y, r.width]);
        return [field.scrollHeight, layer.scrollHeight, before, after];
    """
    field, layer, before, after = code.run(heights)
    assert suggestion
    assert field == layer
    assert before == after


def test_a_long_text_is_seen_whole_and_its_buttons_too(phone: Page) -> None:
    phone["tab-code"].click()
    phone["code-text"].send_keys("one\n" * 60)
    assert phone.run("const f = document.getElementById('code-text'); return f.scrollHeight <= f.clientHeight")
    phone.run("document.getElementById('code-text').scrollIntoView({block: 'start'})")
    bottom = phone.run("return document.getElementById('code-run').getBoundingClientRect().bottom")
    assert 0 < bottom <= 844


def test_others_hear_what_is_suggested(code: Page) -> None:
    code["code-text"].send_keys(BEFORE)
    suggestion = ghost(code)
    assert code["code-status"].get_attribute("role") == "status"
    assert f"suggestion: {suggestion}" in str(code["code-status"].get_attribute("textContent"))
    assert code["code-ghost"].get_attribute("aria-hidden") == "true"
    assert code["code-text"].accessible_name == "Text"


def test_a_phone_has_a_button_in_place_of_tab(phone: Page) -> None:
    phone.run(RECORD)
    phone["tab-code"].click()
    phone["code-text"].send_keys(BEFORE + "Moses, and unto Aaron, and unto ")
    suggestion = ghost(phone)
    assert phone.run("return document.documentElement.scrollWidth") <= 390
    phone["code-accept"].click()
    assert text(phone) == BEFORE + "Moses, and unto Aaron, and unto " + suggestion


def test_a_text_that_is_too_long_is_read_around_the_cursor(code: Page) -> None:
    code.run("document.getElementById('code-text').value = arguments[0]", "And it came to pass. " * 500 + BEFORE)
    code["code-run"].click()
    assert ghost(code)
    assert "too long" in code["code-status"].text


def test_a_link_brings_back_the_text_and_the_cursor(code: Page) -> None:
    code["code-text"].send_keys(BEFORE + AFTER, *[Keys.ARROW_LEFT] * len(AFTER))
    code.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": code.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    code["code"].click()
    code["share"].click()
    code.until(lambda: code["share"].text == "Copied")
    link = code.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    code.open(link.partition("/#")[2] and f"#{link.partition('/#')[2]}")
    assert code["panel-code"].is_displayed()
    assert text(code) == BEFORE + AFTER
    assert code["code-text"].get_property("selectionStart") == len(BEFORE)


def test_a_refusal_is_shown_and_the_command_shown_does_the_same(code: Page) -> None:
    code["settings"].click()
    code.write("temperature", "101")
    code["code-text"].send_keys(BEFORE)
    code.until(lambda: code["code-error"].is_displayed())
    assert "temperature" in code["code-error"].text
    assert "/infill" in str(code["curl"].get_attribute("textContent"))


def test_a_model_that_writes_nothing_between_two_texts_has_no_such_view(code: Page) -> None:
    code.run(
        "const real = window.fetch; window.fetch = async (path, options) => {"
        "  if (path !== '/v1/models') return real(path, options);"
        "  const answer = await (await real(path, options)).json();"
        "  answer.data[0].capabilities.echo = false;"
        "  return new Response(JSON.stringify(answer));"
        "};"
    )
    code["key"].click()
    code["key-input"].send_keys("k", Keys.ENTER)
    code.until(lambda: not code["tab-code"].is_displayed())
    assert code["panel-fill"].is_displayed()
    code["tab-connect"].click()
    names = code.until(lambda: [card.text for card in code.all(".client h3")])
    assert "curl" in names
    assert "llama.vim" not in names


def test_who_writes_is_not_interrupted_for_a_key(page: Page, locked: tuple[Server, str]) -> None:
    server, key = locked
    page.driver.get(server.url)
    page.until(lambda: page["key-dialog"].is_displayed())
    press(page, Keys.ESCAPE)
    page["tab-code"].click()
    page["code-text"].send_keys(BEFORE)
    page.until(lambda: page["code-error"].is_displayed())
    assert not page["key-dialog"].is_displayed()
    assert page.driver.switch_to.active_element == page["code-text"]
    page["code-error"].find_element(By.TAG_NAME, "button").click()
    page["key-input"].send_keys(key, Keys.ENTER)
    page.until(lambda: page.all("#code-status .unseen"))
    page.driver.get("about:blank")
    page.hosts()
    page.requested.clear()
    page.complaints()
