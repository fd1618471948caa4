"""The load: what is asked, when it is due, and what is counted."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice, pairwise
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from server.commands.load import (
    Goal,
    Outcome,
    Workload,
    arrivals,
    ask,
    client_of,
    closed_loop,
    open_loop,
    percentiles,
    summary,
)


def test_bodies_are_the_same_for_a_seed_and_mixed_as_told() -> None:
    workload = Workload({"fill": 3.0, "score": 1.0}, words=10, tokens=5, candidates=2)
    bodies = list(islice(workload.bodies(3), 400))
    assert bodies == list(islice(workload.bodies(3), 400))
    assert bodies != list(islice(workload.bodies(4), 400))
    assert 60 < sum(kind == "score" for kind, _ in bodies) < 140
    for kind, body in bodies:
        assert body["text"].count("[MASK]") == 1
        assert 6 <= len(body["text"].split()) <= 21
        if kind == "fill":
            assert body["max_tokens"] == body["min_tokens"] == 5
        else:
            assert len(body["spans"]) == 2


def test_repeated_texts_come_again() -> None:
    texts = [body["text"] for _, body in islice(Workload(repeated=0.5).bodies(0), 200)]
    assert 80 < len(set(texts)) < 130


def test_arrivals_do_not_wait_and_have_the_rate_asked_for() -> None:
    async def due() -> list[float]:
        async def no_sleep(_: float) -> None:
            pass

        return [at async for at in arrivals(200, 10, random.Random(1), no_sleep)]

    times = asyncio.run(due())
    assert len(times) == pytest.approx(2000, rel=0.1)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.15)  # exponential gaps


def events(*pairs: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in pairs)


async def answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if "spans" in body:
        return web.json_response({"usage": {"completion_tokens": 8}})
    if body["text"] == "full":
        return web.json_response({"error": {"message": "full"}}, status=503, headers={"retry-after-ms": "1500"})
    if body["text"] == "broken":
        return web.Response(text=events(("error", {"error": {"code": "deadline"}})))
    if body["text"] == "gone":
        assert request.transport is not None
        request.transport.abort()
    return web.Response(text=events(("blank.delta", {"text": "a"}), ("done", {"usage": {"completion_tokens": 3}})))


@asynccontextmanager
async def serving() -> AsyncIterator[ClientSession]:
    """A client of a server below a path, as behind a proxy."""
    app = web.Application()
    app.router.add_post("/below/v1/{route}", answer)
    async with TestServer(app) as server, client_of(str(server.make_url("/below")), None) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "body", "status", "tokens", "error"),
    [
        ("fill", {"text": "a", "stream": True}, 200, 3, None),
        ("score", {"text": "a", "spans": [["b"]]}, 200, 8, None),
        ("fill", {"text": "full", "stream": True}, 503, 0, None),
        ("fill", {"text": "broken", "stream": True}, 200, 0, "deadline"),
        ("fill", {"text": "gone", "stream": True}, 0, 0, "ServerDisconnectedError"),
    ],
)
def test_an_outcome_is_what_came(kind: str, body: dict[str, Any], status: int, tokens: int, error: str | None) -> None:
    async def run() -> Outcome:
        async with serving() as c:
            return await ask(c, kind, body)

    outcome = asyncio.run(run())
    assert (outcome.status, outcome.tokens, outcome.error) == (status, tokens, error)
    assert outcome.ok == (status == 200 and error is None)
    assert outcome.retry_s == (1.5 if status == 503 else 0)


def test_loops_ask_as_much_as_they_should() -> None:
    async def run() -> tuple[list[Outcome], list[Outcome]]:
        async with serving() as c:
            return await closed_loop(c, Workload(), 3, 0.2, 0), await open_loop(c, Workload(), 100, 0.3, 0)

    closed, opened = asyncio.run(run())
    assert len(closed) >= 3
    assert 10 <= len(opened) <= 60
    assert all(o.ok for o in closed + opened)


def test_a_summary_counts_and_a_goal_is_kept_or_not() -> None:
    outcomes = [
        Outcome("fill", 0.0, 0.1, 0.4, 4, 200),
        Outcome("fill", 0.0, 0.3, 0.9, 4, 200),
        Outcome("score", 1.0, 1.2, 1.2, 6, 200),
        Outcome("fill", 1.0, 1.0, 1.01, 0, 503),
        Outcome("fill", 1.0, 1.5, 2.0, 0, 200, "deadline"),
    ]
    found = summary(outcomes, Goal(first=0.2), duration=4.0)
    assert (found["requests"], found["ok"], found["refused"], found["failed"]) == (5, 3, 1, 1)
    assert found["generated_tokens_per_s"] == 2.0
    assert found["scored_tokens_per_s"] == 1.5
    assert found["goodput_per_s"] == 0.5
    assert found["first_token_ms"] == {"p50": 100.0, "p90": 300.0, "p99": 300.0}
    assert found["token_ms"]["p50"] == 100.0
    assert found["refusal_ms"]["p99"] == 10.0
    assert summary([], Goal(), 1.0)["requests_per_s"] == 0.0


def test_percentiles_are_nearest_ranks() -> None:
    assert percentiles([n / 1000 for n in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([]) is None
