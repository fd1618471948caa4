"""What the counters tell of clients that leave: a dashboard is true of an editor that cancels most of what it asks."""

import json
from typing import Any

import httpx
import pytest

from tests.faults.conftest import LONG, PATIENCE_S, Server

COUNTERS = ("prompt_tokens_total", "generated_tokens_total", "blanks_total")


def counters(server: Server) -> list[float]:
    return [server.metric(name) for name in COUNTERS]


def leave_after(server: Server, body: dict[str, Any], tokens: int) -> int:
    """Tokens that a client was sent before it left, at the least so many."""
    sent = 0
    with httpx.stream("POST", f"{server.url}/v1/infill", json=body, timeout=PATIENCE_S) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                sent += len(json.loads(line[6:]).get("token_ids", ()))
            if sent >= tokens:
                break
    return sent


@pytest.mark.parametrize("text", ["the [MASK]", "the [MASK] and a [MASK]"])
def test_what_a_client_was_sent_before_it_left_is_counted(server: Server, text: str) -> None:
    body = {**LONG, "text": text, "max_tokens": 400, "min_tokens": 400, "n": 1, "stream": True}
    asked = 400 * text.count("[MASK]")
    before = counters(server)
    sent = leave_after(server, body, asked - 350)
    server.until_idle()
    prompt, tokens, blanks = (now - then for now, then in zip(counters(server), before, strict=True))
    assert sent <= tokens < asked
    assert blanks == text.count("[MASK]") - 1
    assert prompt == server.fill(text=text).json()["usage"]["prompt_tokens"]


def test_a_request_over_its_deadline_counts_what_it_had(server: Server) -> None:
    before = counters(server)
    answer = server.fill(**LONG, timeout_s=0.3)
    assert answer.status_code != 200
    server.until_idle()
    tokens = counters(server)[1] - before[1]
    assert 0 < tokens < 2 * 900
