"""Pages of other sites, in Chromium: nothing that they send to a server without keys reaches the engine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from tests.faults.conftest import Server
from tests.playground.conftest import Page

BODY = {"text": "the [MASK]", "max_tokens": 2}
PAGE = b"<!doctype html><title>elsewhere</title><iframe name=there></iframe><form method=post target=there></form>"
# Each way that a page has of sending a body, and what it came to: a status, "sent" where the page is told nothing,
# "refused" where the browser did not let it.
WAYS = """
const [url, body, done] = arguments;
const send = (options) => fetch(url, {method: "POST", body, ...options})
    .then((r) => r.type === "opaque" ? "sent" : r.status, () => "refused");
const form = (encoding) => new Promise((resolve) => {
    const form = document.forms[0], field = document.createElement("input");
    [form.action, form.enctype] = [url, encoding];
    [field.name, field.value] = [body, ""];
    form.replaceChildren(field);
    document.querySelector("iframe").onload = () => resolve("sent");
    form.submit();
});
(async () => done({
    "no-cors text": await send({mode: "no-cors", headers: {"Content-Type": "text/plain"}}),
    "no-cors typeless": await send({mode: "no-cors", body: new Blob([body])}),
    "no-cors json": await send({mode: "no-cors", headers: {"Content-Type": "application/json"}}),
    "no-cors json blob": await send({mode: "no-cors", body: new Blob([body], {type: "application/json"})})
        .catch(() => "refused"),
    "cors json": await send({headers: {"Content-Type": "application/json"}}),
    "cors text": await send({}),
    "beacon": navigator.sendBeacon(url, new Blob([body])) ? "sent" : "refused",
    "form": await form("application/x-www-form-urlencoded"),
    "form text": await form("text/plain"),
    "form multipart": await form("multipart/form-data"),
}))();
"""


class Elsewhere(BaseHTTPRequestHandler):
    """Another site: one page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """The port of another site on this machine."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield site.server_port
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.fixture
def server(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    host = request.param
    url = f"http://[{host}]" if ":" in host else "http://127.0.0.1"
    server = Server(tiny_checkpoint(), tmp_path_factory.mktemp("server") / "log", url=url, host=host)
    yield server
    assert server.stop() == 0


# 0.0.0.0: where others reach a server, its own names are not known; pages are refused all the same.
@pytest.mark.parametrize("server", ["127.0.0.1", "0.0.0.0"], indirect=True)
@pytest.mark.parametrize("site", ["localhost", "127.0.0.1", "elsewhere.localhost"])
def test_no_page_of_another_site_makes_the_engine_work(
    driver: webdriver.Chrome, server: Server, elsewhere: int, site: str
) -> None:
    driver.get(f"http://{site}:{elsewhere}/")
    driver.set_script_timeout(60)
    answers = driver.execute_async_script(WAYS, f"{server.url}/v1/infill", json.dumps(BODY))
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    posted = [name for name, answer in answers.items() if answer == "sent"]
    # These did reach the server, or the test would say nothing.
    assert {"no-cors text", "no-cors typeless", "form", "form text", "form multipart"} <= set(posted)
    assert answers["cors json"] == answers["cors text"] == "refused"
    server.until(lambda: server.metric("rejected_total", reason="origin_not_allowed") >= len(posted))
    assert server.metric("requests_total", route="/v1/infill", outcome="ok") == 0
    assert server.metric("generated_tokens_total") == 0
    assert server.fill().status_code == 200


@pytest.mark.parametrize("server", ["127.0.0.1"], indirect=True)
def test_a_page_that_gave_its_name_the_server_s_address_sees_nothing(driver: webdriver.Chrome, server: Server) -> None:
    # Chromium takes all names below localhost for this machine, as after a rebinding of a name.
    url = f"http://rebound.localhost:{server.port}"
    driver.get(f"{url}/")
    assert "host_not_allowed" in driver.page_source
    status = driver.execute_async_script(
        "fetch('/v1/infill', {method: 'POST', body: arguments[0], headers: {'Content-Type': 'application/json'}})"
        ".then((r) => arguments[1](r.status), () => arguments[1](0))",
        json.dumps(BODY),
    )
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    assert status == 403
    assert server.metric("generated_tokens_total") == 0


@pytest.mark.parametrize(
    ("server", "names"),
    [("localhost", ["localhost", "127.0.0.1"]), ("0.0.0.0", ["localhost", "127.0.0.1"]), ("::1", ["[::1]"])],
    indirect=["server"],
)
def test_the_server_s_own_page_works_by_each_of_its_names(
    driver: webdriver.Chrome, server: Server, names: list[str]
) -> None:
    for name in names:
        page = Page(driver, f"http://{name}:{server.port}")
        page.open()
        page.write("text", "the [MASK]")
        page["run"].click()
        page.until(lambda page=page: page["status"].text.startswith("done"))
        assert page.complaints() == []
        assert page.hosts() == {f"{name}:{server.port}"}
