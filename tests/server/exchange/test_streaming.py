"""The stream of a fill: its events, its heartbeats, its ends."""

import asyncio
import json

import pytest

from engine.answers import Usage
from engine.events import BlankDelta, Done, Failed

BODY = {"text": "a [MASK]", "stream": True}


def parsed(data):
    """(event, data) pairs of a stream, heartbeats left out."""
    blocks = [block for block in data.strip().split("\n\n") if not block.startswith(":")]
    pairs = [block.split("\n") for block in blocks]
    assert all(len(pair) == 2 for pair in pairs)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def delta(work_id):
    return BlankDelta(work_id, 0, 0, 0, "b", [7], [-0.5])


def test_events_come_in_the_words_of_the_contract(client):
    response = client.post("/v1/infill", json=BODY)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    events = parsed(response.text)
    assert [name for name, _ in events] == ["blank.delta", "blank.done", "result.done", "done"]
    assert events[0][1] == {
        "index": 0, "input_index": 0, "blank": 0, "text": "b", "token_ids": [7], "logprobs": [-0.5]
    }  # fmt: skip
    assert events[2][1]["text"] == "a b"
    assert events[3][1]["usage"]["total_tokens"] == 6


@pytest.mark.parametrize("crash", [True, False])
def test_late_failure_is_an_error_event(client, engine, crash):
    async def script(request, work_id):
        yield delta(work_id)
        if crash:
            raise RuntimeError("/secret")
        yield Failed(work_id, "error", "/secret")

    engine.script = script
    events = parsed(client.post("/v1/infill", json=BODY).text)
    assert [name for name, _ in events] == ["blank.delta", "error"]
    assert events[1][1]["error"]["code"] == "internal_error"
    assert "secret" not in events[1][1]["error"]["message"]
    assert 'requests_total{outcome="error",route="/v1/infill"} 1.0' in client.get("/metrics").text


def test_silence_is_filled_with_heartbeats(engine, make_client):
    async def script(request, work_id):
        yield delta(work_id)
        await asyncio.sleep(0.1)
        yield Done(work_id, Usage())

    engine.script = script
    response = make_client(heartbeat_seconds=0.02).post("/v1/infill", json=BODY)
    assert response.text.count(": heartbeat\n\n") >= 2
    assert [name for name, _ in parsed(response.text)] == ["blank.delta", "done"]


@pytest.mark.parametrize("end", ["disconnect", "abort", "stall", "cancel"])
def test_stream_that_ends_early_frees_the_engine(engine, make_caller, end):
    async def script(request, work_id):
        while True:
            yield delta(work_id)
            await asyncio.sleep(0.005)

    async def play():
        engine.script = script
        caller = make_caller("/v1/infill", BODY, write_seconds=0.05)
        if end == "stall":
            caller.send = stalling(caller.send)
        task = asyncio.create_task(caller.run())
        while b"blank.delta" not in caller.data:
            await asyncio.sleep(0.001)
        if end == "disconnect":
            caller.left.set()
        elif end == "abort":
            caller.app.state.service.gate.abort()
        elif end == "cancel":
            # Some servers do so when a client has left.
            task.cancel()
        done, _ = await asyncio.wait({task}, timeout=30)
        assert done
        assert task.cancelled() == (end == "cancel")
        assert engine.num_open == 0
        service = caller.app.state.service
        assert service.gate.inside == 0
        labels = {"route": "/v1/infill", "outcome": "error" if end == "abort" else "cancelled"}
        assert service.metrics.registry.get_sample_value("glm_infill_requests_total", labels) == 1
        assert (parsed(caller.data.decode())[-1][0] == "error") == (end == "abort")

    asyncio.run(play())


def stalling(send):
    """A client that reads the first event and then nothing more."""
    count = 0

    async def stalled(message):
        nonlocal count
        count += 1
        if count > 2:
            await asyncio.sleep(60)
        await send(message)

    return stalled
