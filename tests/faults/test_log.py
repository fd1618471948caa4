"""Fault 34: a log that cannot be written, because the disk is full or whoever read it has gone."""

from collections.abc import Callable

import httpx
import pytest

from tests.faults.conftest import Server


@pytest.mark.parametrize("to", ["/dev/full", ">(exec true)"], ids=["full disk", "closed pipe"])
def test_without_a_log_requests_are_answered_and_the_end_is_clean(launch: Callable[..., Server], to: str) -> None:
    server = launch(by=["bash", "-c", f'exec "$@" 2> {to}', "bash"])
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(20):
            body = {"text": "the [MASK]", "max_tokens": 2}
            assert client.post("/v1/infill", json=body).headers.get("connection") != "close"
            assert client.post("/v1/infill", json={"text": 5}).status_code == 400
    assert server.metric("requests_total", route="/v1/infill", outcome="ok") == 20
    server.until_idle()
    # 120 is Python's own word for a stderr that cannot be flushed.
    assert server.stop() in (0, 120)
