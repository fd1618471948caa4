"""Faults 3 and 4: clients that leave."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.faults.conftest import LONG, Server

BLANKS = {"text": "a [MASK] b [MASK] c [MASK]", "max_tokens": 250, "min_tokens": 250, "n": 8, "strategy": "reencode"}
CANDIDATES = {
    "text": "the [MASK] cat " * 8,
    "spans": [[f"red {number} boat"] * 8 for number in range(1000)],
    "orders": 1,
}


def leave(server: Server, path: str, body: dict[str, Any], count: int, seconds: float) -> None:
    """Clients that hang up after so long."""

    async def one(client: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(seconds):
                answer = await client.post(path, json=body)
        except TimeoutError:
            return
        raise AssertionError(f"answered before the client left: {answer.text[:500]}")

    async def play() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(one(client) for _ in range(count)))

    asyncio.run(play())


def test_a_storm_of_dropped_streams_leaves_nothing_behind(server: Server) -> None:
    before = server.metric("requests_total", outcome="cancelled")
    leave(server, "/v1/infill", {**LONG, "stream": True}, 200, 0.5)
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
    leave(server, path, body, 5, 0.4)
    server.until_idle()
    assert server.fill().status_code == 200
    assert server.metric("requests_total", outcome="cancelled", route=path) - before == 5
