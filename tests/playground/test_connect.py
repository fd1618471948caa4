"""What the page tells to type into other programs, in Chromium: only what this server has, and it works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.faults.conftest import Server
from tests.playground.conftest import Page

OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
ALL = """
const done = arguments[arguments.length - 1];
import("/playground/clients.js").then(({CLIENTS}) => done(Object.values(CLIENTS).flat()
    .map(({name, where, route}) => ({name: `${name} (${where})`, route}))));
"""
ONLY_INFILL = """
const real = window.fetch;
window.fetch = async (path, options) => path !== "/openapi.json" ? real(path, options)
    : new Response(JSON.stringify({paths: {"/infill": {post: {}}, "/": {get: {}}}}));
"""

EVERY_ROUTE = """
const done = arguments[arguments.length - 1], real = window.fetch;
import("/playground/clients.js").then(({CLIENTS}) => {
    const paths = {};
    for (const {route} of Object.values(CLIENTS).flat()) paths[route.split(" ")[1]] = {post: {}};
    window.fetch = async (path, options) => path !== "/openapi.json" ? real(path, options)
        : new Response(JSON.stringify({paths}));
    done();
});
"""


def cards(page: Page) -> dict[str, WebElement]:
    page["tab-connect"].click()
    page.until(lambda: page.all(".client"))
    return {str(card.get_attribute("aria-label")): card for card in page.all(".client")}


def lines(page: Page) -> dict[str, str]:
    """What is to be typed, by client."""
    text = "return arguments[0].querySelector('pre').textContent"
    return {name: page.run(text, card) for name, card in cards(page).items()}


@pytest.fixture
def shown(page: Page) -> dict[str, str]:
    return lines(page)


@pytest.fixture
def every(page: Page) -> dict[str, str]:
    """The lines of all clients, as a server that has every route shows them."""
    page.driver.execute_async_script(EVERY_ROUTE)
    return lines(page)


def of(shown: dict[str, str], where: str) -> list[str]:
    return [text for name, text in shown.items() if name.endswith(f"({where})")]


def test_a_client_is_shown_if_the_server_has_its_route(page: Page, shown: dict[str, str]) -> None:
    paths = httpx.get(f"{page.url}/openapi.json").json()["paths"]
    clients = page.driver.execute_async_script(ALL)
    there = [c["name"] for c in clients if c["route"].split()[0].lower() in paths.get(c["route"].split()[1], {})]
    assert list(shown) == there
    assert len(set(there)) == len(there) >= 12


def test_a_client_without_a_route_is_not_shown(page: Page) -> None:
    page.run(ONLY_INFILL)
    assert [name.partition(" (")[0] for name in cards(page)] == ["llama.vim", "llama.vscode"]


def test_all_lines_name_this_server_and_none_another(page: Page, every: dict[str, str]) -> None:
    assert len(every) >= 20
    for name, text in every.items():
        assert set(re.findall(r"https?://[\w.:]+", text)) == {page.url}, name
        assert "undefined" not in text
        assert "YOUR_KEY" not in text, "this server asks for none"
    assert sum("glm-demo" in text for text in every.values()) >= 14


def test_the_button_copies_the_lines(page: Page) -> None:
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"origin": page.url, "permissions": permissions})
    for name in ("llama.vim (vimrc)", "Zed (settings.json)"):
        card = cards(page)[name]
        button = card.find_element(By.TAG_NAME, "button")
        assert button.accessible_name == f"Copy: {name}"
        button.send_keys(Keys.ENTER)
        page.until(lambda button=button: button.text == "Copied")
        copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        assert copied == lines(page)[name]


def test_without_the_clipboard_the_old_way_copies(page: Page) -> None:
    # As on a page that came over plain HTTP from another machine.
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.run("document.addEventListener('copy', () => { window.copied = document.activeElement.value; })")
    button = cards(page)["curl (shell)"].find_element(By.TAG_NAME, "button")
    button.click()
    page.until(lambda: button.text == "Copied")
    assert page.driver.switch_to.active_element == button
    assert page.run("return window.copied") == lines(page)["curl (shell)"]
    assert page.all("textarea.unseen") == []


def test_the_lines_of_python_and_of_the_shell_run(shown: dict[str, str]) -> None:
    code = [text for text in of(shown, "Python") if find_spec(text.split()[1].strip(";").partition(".")[0])]
    assert len(code) >= 2
    commands = [[sys.executable, "-c", text] for text in code] + [["sh", "-c", shown["curl (shell)"]]]
    for command in commands:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **OFFLINE})
        assert ran.returncode == 0, f"{command[-1]}\n{ran.stderr}"
        assert "error" not in ran.stdout
        assert ran.stdout.strip()


def test_the_files_are_what_their_programs_read(page: Page, every: dict[str, str]) -> None:
    vscode: Any = json.loads(every["llama.vscode (VS Code: settings.json)"])
    assert vscode == {"llama-vscode.endpoint": page.url}
    zed = json.loads(every["Zed (settings.json)"])["edit_predictions"]
    assert zed["open_ai_compatible_api"]["api_url"] == f"{page.url}/v1/completions"
    tabby = tomllib.loads(every["Tabby (~/.tabby/config.toml)"])["model"]["completion"]["http"]
    assert (tabby["model_name"], tabby["prompt_template"]) == ("glm-demo", "{prefix}[MASK]{suffix}")
    (promptfoo,) = yaml.safe_load(every["promptfoo (promptfooconfig.yaml)"])["providers"]
    assert promptfoo["id"] == "openai:completion:glm-demo"
    (model,) = yaml.safe_load(every["Continue (~/.continue/config.yaml)"])["models"]
    assert (model["model"], model["apiBase"]) == ("glm-demo", f"{page.url}/v1")
    harness = shlex.split(every["lm-evaluation-harness (shell)"])
    assert f"model=glm-demo,base_url={page.url}/v1/completions,max_length=512" in harness


@pytest.mark.parametrize("name", ['it\'s "my" model', "模型 $HOME `x`"])
def test_the_model_s_name_is_quoted_as_each_program_needs_it(page: Page, name: str) -> None:
    page.run(
        "const real = window.fetch; window.fetch = async (path, options) => {"
        "  if (path !== '/v1/models') return real(path, options);"
        "  const answer = await (await real(path, options)).json();"
        "  answer.data[0].id = arguments_[0];"
        "  return new Response(JSON.stringify(answer));"
        "}; const arguments_ = arguments;",
        name,
    )
    page["key"].click()
    page["key-input"].send_keys("k", Keys.ENTER)
    page.until(lambda: name in page["model"].text)
    shown = lines(page)
    for text in of(shown, "Python"):
        compile(text, "lines", "exec")
        assert json.dumps(name, ensure_ascii=False)[1:-1] in text or "model=" not in text
    assert tomllib.loads(shown["Tabby (~/.tabby/config.toml)"])["model"]["completion"]["http"]["model_name"] == name
    assert yaml.safe_load(shown["promptfoo (promptfooconfig.yaml)"])["providers"][0]["id"].endswith(name)
    arguments = shlex.split(shown["lm-evaluation-harness (shell)"])
    assert any(argument.startswith(f"model={name},") for argument in arguments)


def test_a_key_has_its_place_and_is_not_shown(page: Page, locked: tuple[Server, str], tmp_path: Path) -> None:
    server, key = locked
    there = Page(page.driver, server.url)
    there.driver.get(server.url)
    there.until(lambda: there["key-dialog"].is_displayed())
    there["key-input"].send_keys(key, Keys.ENTER)
    there.until(lambda: there["model"].text)
    shown = lines(there)
    assert there["key-note"].is_displayed()
    assert all("YOUR_KEY" in text for text in shown.values())
    assert key not in there.run("return document.body.innerHTML")
    for name in ("curl (shell)", "openai (Python)"):
        program = ["sh", "-c"] if name == "curl (shell)" else [sys.executable, "-c"]
        text = shown[name].replace("YOUR_KEY", key)
        ran = subprocess.run([*program, text], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert "authentication" not in ran.stdout
    page.requested.clear()
    there.driver.get("about:blank")
    page.hosts()
    page.requested.clear()
    page.complaints()


def test_it_fits_a_phone_and_speaks_chinese(phone: Page) -> None:
    phone["language"].click()
    assert cards(phone)
    assert phone["tab-connect"].text == "接入"
    assert [head.text for head in phone.all("#clients h2")] == ["程序库", "编辑器", "评测"]
    assert phone.all(".client button")[0].text == "复制"
    assert phone.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js")
def test_the_lines_of_javascript_are_javascript(every: dict[str, str], tmp_path: Path) -> None:
    scripts = of(every, "JavaScript")
    assert len(scripts) == 4
    for text in scripts:
        (tmp_path / "lines.mjs").write_text(text)
        subprocess.run(["node", "--check", tmp_path / "lines.mjs"], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("vim") is None, reason="there is no Vim")
def test_the_line_of_vim_is_read_by_vim(page: Page, every: dict[str, str], tmp_path: Path) -> None:
    script, said = tmp_path / "lines.vim", tmp_path / "said"
    end = f"call writefile([json_encode(g:llama_config)], '{said}')\nqa!\n"
    script.write_text(f"{every['llama.vim (vimrc)']}\n{end}")
    subprocess.run(["vim", "-es", "-u", "NONE", "-S", script], check=True, timeout=60)
    assert json.loads(said.read_text())["endpoint_fim"] == f"{page.url}/infill"
