"""Faults 1 and 2: far more than the server takes."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable

import httpx

from tests.faults.conftest import Server

LIMIT = 8


def burst(server: Server, bodies: list[dict[str, object]]) -> list[httpx.Response]:
    """All at once, each on a connection of its own."""

    async def play() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/infill", json=body) for body in bodies))

    return asyncio.run(play())


def test_a_burst_of_fifty_times_the_limit_is_refused_and_what_was_admitted_finishes(
    launch: Callable[..., Server],
) -> None:
    server = launch(max_queue=LIMIT)
    burst(server, [{"text": "a [MASK]"}] * 100)
    before = server.rss()
    body = {"text": "the [MASK]", "max_tokens": 200, "min_tokens": 200, "n": 4}
    responses = burst(server, [body] * 50 * LIMIT)
    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() == {200, 503}
    assert statuses[200] >= LIMIT
    for response in responses:
        if response.status_code == 503:
            assert response.json()["error"]["code"] == "queue_full"
            milliseconds = int(response.headers["retry-after-ms"])
            assert 100 <= milliseconds <= 60_000  # as long as requests stay inside lately
            assert int(response.headers["retry-after"]) == math.ceil(milliseconds / 1000)
        else:
            # Admitted whole: all four samples or none.
            results = response.json()["results"]
            assert [len(r["blanks"][0]["token_ids"]) for r in results] == [200] * 4
    assert server.metric("rejected_total", reason="queue_full") >= statuses[503]
    assert server.rss() - before < 64e6
    server.until_idle()
    assert server.fill().status_code == 200


def test_of_many_at_once_exactly_as_many_as_the_rate_allows_pass(launch: Callable[..., Server]) -> None:
    # The next one would be due after 12 s.
    server = launch(requests_per_minute=5)
    responses = burst(server, [{"text": "the [MASK]", "max_tokens": 1}] * 200)
    assert Counter(response.status_code for response in responses) == {200: 5, 429: 195}
    for response in responses:
        if response.status_code == 429:
            assert response.json()["error"]["code"] == "requests_rate_exceeded"
            assert 0 < int(response.headers["retry-after-ms"]) <= 12_000


def test_tokens_of_many_at_once_are_counted_once(launch: Callable[..., Server]) -> None:
    body = {"text": "the [MASK]", "max_tokens": 20, "min_tokens": 20}
    server = launch(tokens_per_minute=200)
    responses = burst(server, [body] * 100)
    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() == {200, 429}
    used = sum(r.json()["usage"]["total_tokens"] for r in responses if r.status_code == 200)
    # Each is charged before it begins, by an estimate that is no less than what it takes.
    assert 0 < used <= 200
    assert {r.json()["error"]["code"] for r in responses if r.status_code == 429} == {"tokens_rate_exceeded"}


def test_huge_requests_trip_the_cap_of_tokens_and_small_ones_still_pass(launch: Callable[..., Server]) -> None:
    server = launch(max_queue_tokens=4000)
    huge = {"text": "the [MASK]", "max_tokens": 200, "min_tokens": 200, "n": 8}
    small = {"text": "the [MASK]", "max_tokens": 2}
    responses = burst(server, [huge] * 6 + [small] * 40)
    assert {r.status_code for r in responses[6:]} == {200}
    assert Counter(r.status_code for r in responses[:6]).keys() == {200, 503}
    for response in responses[:6]:
        if response.status_code == 200:
            assert len(response.json()["results"]) == 8
        else:
            assert response.json()["error"]["code"] == "queue_tokens_full"
            assert response.headers["retry-after"]
    assert server.fill(**huge).status_code == 200
    assert server.fill(max_tokens=600, n=8).json()["error"]["code"] == "request_too_large"
