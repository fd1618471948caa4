"""Fault 30: web pages of other sites, as curl can play them; a browser does so in tests/playground."""

import json
import socket
from collections.abc import Callable

import httpx
import pytest

from tests.faults.conftest import Server

BODY = {"text": "the [MASK]", "max_tokens": 2}


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_server_on_loopback_works_for_its_own_names_and_pages_only(server: Server) -> None:
    port = server.port
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}"):
        headers = {"host": name, "origin": f"http://{name}"}
        assert server.post("/v1/infill", BODY, headers=headers).status_code == 200
    before = server.metric("generated_tokens_total")
    refused = [
        {"host": "evil.example"},
        {"host": f"evil.example:{port}", "origin": f"http://evil.example:{port}", "sec-fetch-site": "same-origin"},
        {"origin": "http://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": f"http://localhost:{port + 1}", "sec-fetch-site": "same-site"},
        {"origin": "null"},
        {"content-type": "text/plain"},
        {"content-type": ""},
    ]
    for path in ("/v1/infill", "/v1/score", "/v1/completions", "/infill", "/tokenize"):
        for headers in refused:
            response = httpx.post(
                server.url + path, content=json.dumps(BODY), headers={"content-type": "application/json", **headers}
            )
            assert response.status_code == (415 if "content-type" in headers else 403), (path, headers)
    bare = b"POST /v1/infill HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    data = json.dumps(BODY).encode()
    assert server.raw(bare % (len(data), data)).startswith(b"HTTP/1.1 415 ")
    assert server.metric("generated_tokens_total") == before
    assert server.metric("rejected_total", reason="host_not_allowed") == 10
    assert server.metric("rejected_total", reason="origin_not_allowed") == 15


@pytest.mark.parametrize("host", ["::1", "localhost", "0.0.0.0"])
def test_wherever_it_listens_it_is_asked_there(launch: Callable[..., Server], host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = launch(host=host, url=f"http://[{host}]" if ":" in host else "http://127.0.0.1")
    assert server.fill().status_code == 200
    page = server.url
    assert server.post("/v1/infill", BODY, headers={"origin": page, "sec-fetch-site": "same-origin"}).status_code == 200
    elsewhere = server.post("/v1/infill", BODY, headers={"host": "glm.a.example"})
    assert elsewhere.status_code == (200 if host == "0.0.0.0" else 403)
    assert server.stop() == 0


def test_further_names(launch: Callable[..., Server]) -> None:
    server = launch(host="0.0.0.0", allowed_hosts="glm.a.example, b.example")
    statuses = {
        name: server.post("/v1/infill", BODY, headers={"host": name}).status_code
        for name in ("glm.a.example:1", "b.example", "c.example", f"127.0.0.1:{server.port}")
    }
    assert list(statuses.values()) == [200, 200, 403, 200]
    assert server.stop() == 0
