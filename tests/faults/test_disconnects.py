"""Faults 3 and 4: clients that leave."""

import json
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from tests.faults.conftest import LONG, Server

BLANKS = {"text": "a [MASK] b [MASK] c [MASK]", "max_tokens": 250, "min_tokens": 250, "n": 8, "strategy": "reencode"}
CANDIDATES = {
    "text": "the [MASK] cat " * 8,
    "spans": [[f"red {number} boat"] * 8 for number in range(1000)],
    "orders": 1,
}


def leave(server: Server, path: str, body: dict[str, Any], count: int) -> None:
    """Clients that hang up, all at once, when the engine has the work of all of them."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(data)}\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connections.enter_context(connection).sendall(head.encode() + data)
        server.until(lambda: server.metric("requests_running") + server.metric("requests_waiting") == count)


def test_a_storm_of_dropped_streams_leaves_nothing_behind(server: Server) -> None:
    before = server.metric("requests_total", outcome="cancelled")
    leave(server, "/v1/infill", {**LONG, "stream": True}, 200)
    server.until(lambda: server.metric("requests_total", outcome="cancelled") - before >= 200)
    server.until_idle()
    assert server.fill().status_code == 200
    assert server.metric("requests_total", outcome="cancelled") - before == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/infill", LONG), ("/v1/infill", BLANKS), ("/v1/score", CANDIDATES)],
    ids=["one blank", "several blanks", "candidates"],
)
def test_clients_that_leave_before_the_answer_free_what_they_held(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    before = server.metric("requests_total", outcome="cancelled", route=path)
    leave(server, path, body, 5)
    server.until(lambda: server.metric("requests_total", outcome="cancelled", route=path) - before >= 5)
    server.until_idle()
    assert server.fill().status_code == 200
    assert server.metric("requests_total", outcome="cancelled", route=path) - before == 5
