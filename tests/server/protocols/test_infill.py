"""What `/v1/infill` answers, and what it asks of the engine."""

import asyncio

import pytest

from engine.answers import Usage
from engine.client import EngineOverloaded, EngineUnavailable
from engine.events import Done, Failed, ResultDone
from engine.requests import Fill, Mask, Sampling
from tests.answers import scored


def test_answer_has_the_fields_of_the_contract(client):
    response = client.post("/v1/infill", json={"text": "a [MASK]"})
    body = response.json()
    assert list(body) == ["id", "object", "created", "model", "results", "usage"]
    assert (body["object"], body["model"], body["results"][0]["text"]) == ("infill", "demo", "a b")
    assert b'": ' not in response.content


def test_request_reaches_the_engine_whole(client, engine):
    body = {
        "text": ["a [MASK] b[sMASK]", "c"], "max_tokens": [3, 4], "min_tokens": 1, "temperature": 1, "top_k": 5,
        "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "seed": 9, "n": 2,
        "logit_bias": {"7": -1.5}, "stop": ".", "order": [1, 0], "strategy": "parallel", "logprobs": 3,
        "priority": "batch", "timeout_s": 2, "num_beams": 1, "length_penalty": 1.0, "choices": None,
        "regex": None, "presence_penalty": 0.5, "frequency_penalty": -0.5,
        "model": "demo", "adapter": None, "segments": None,
    }  # fmt: skip
    rules = {
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 2,
    }  # fmt: skip
    assert client.post("/v1/infill", json=body).status_code == 200
    assert engine.asked == [
        Fill(
            inputs=(("a ", Mask("[MASK]"), " b", Mask("[sMASK]")), ("c",)),
            max_tokens=(3, 4),
            min_tokens=(1,),
            sampling=Sampling(1.0, 5, 0.5, 0.1, rules, {7: -1.5}, (".",), 9),
            n=2,
            order=(1, 0),
            strategy="parallel",
            logprobs=3,
            priority="batch",
            timeout_s=2.0,
        )
    ]


def test_text_in_segments_is_never_parsed(client, engine):
    body = {"segments": ["say [MASK]", {"mask": "[gMASK]"}]}
    assert client.post("/v1/infill", json=body).status_code == 200
    assert engine.asked[0].inputs == (("say [MASK]", Mask("[gMASK]")),)


@pytest.mark.parametrize(
    ("failed", "status", "code"),
    [
        (Failed("i", "invalid", "no [sMASK] here", "text", "unsupported_mask"), 400, "unsupported_mask"),
        (Failed("i", "deadline", "too slow"), 504, "deadline"),
        (Failed("i", "overloaded", "no blocks"), 503, "overloaded"),
        (Failed("i", "cancelled", "cancelled"), 499, "cancelled"),
        (Failed("i", "error", "/home/me/secret.py line 3"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_have_their_status(client, engine, refused, failed, status, code, stream):
    async def script(request, work_id):
        yield failed

    engine.script = script
    response = client.post("/v1/infill", json={"text": "a", "stream": stream})
    error = refused(response, status, failed.param)
    assert error["code"] == code
    assert "secret" not in error["message"]
    assert ("retry-after" in response.headers) == (status == 503)
    assert response.headers.get("x-should-retry") == ("false" if status == 500 else None)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(EngineUnavailable("loading"), "not_ready"), (EngineOverloaded("256 wait"), "queue_full")],
)
def test_an_engine_that_takes_nothing_gives_503(client, engine, refused, raised, code):
    async def script(request, work_id):
        raise raised
        yield

    engine.script = script
    response = client.post("/v1/infill", json={"text": "a"})
    assert refused(response, 503)["code"] == code
    assert response.headers["retry-after"] == "1"


def test_crash_tells_nothing_but_the_request_id(client, engine, refused):
    async def script(request, work_id):
        raise OSError("/etc/passwd")
        yield

    engine.script = script
    response = client.post("/v1/infill", json={"text": "a"}, headers={"x-request-id": "mine-1"})
    assert refused(response, 500)["message"] == "internal error; quote request id mine-1"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_never_reaches_a_client(client, engine, refused, number):
    async def script(request, work_id):
        yield ResultDone(work_id, scored(0, number))
        yield Done(work_id, Usage())

    engine.script = script
    refused(client.post("/v1/infill", json={"text": "a"}), 500)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": [2, 1025]}, "blank 1: max_tokens is 1025; the limit is 1024"),
        ({"max_tokens": [2, 2], "min_tokens": [1, 3]}, "blank 1: min_tokens is above max_tokens"),
        ({"max_tokens": 2, "min_tokens": [1, 3]}, "blank 1: min_tokens is above max_tokens"),
        ({"max_tokens": 1025}, "max_tokens is 1025; the limit is 1024"),
    ],
)
def test_a_length_that_is_wrong_for_one_blank_names_it(client, refused, fields, message):
    param = "min_tokens" if "min_tokens" in message else "max_tokens"
    error = refused(client.post("/v1/infill", json={"text": "[MASK] and [MASK]", **fields}), 400, param)
    assert error["message"] == message


@pytest.mark.parametrize(("field", "code"), [("model", "model_not_found"), ("adapter", "adapter_not_found")])
def test_unknown_names_are_404(client, refused, field, code):
    error = refused(client.post("/v1/infill", json={"text": "a", field: "other"}), 404, field)
    assert (error["type"], error["code"]) == ("not_found_error", code)


def test_events_that_just_end_are_an_error(client, engine, refused):
    async def script(request, work_id):
        return
        yield

    engine.script = script
    refused(client.post("/v1/infill", json={"text": "a"}), 500)


def test_client_that_leaves_cancels_the_request(engine, make_caller):
    async def script(request, work_id):
        await asyncio.sleep(60)
        yield Done(work_id, Usage())

    async def leave():
        engine.script = script
        caller = make_caller("/v1/infill", {"text": "a"})
        task = asyncio.create_task(caller.run())
        while not engine.num_open:
            await asyncio.sleep(0.001)
        caller.left.set()
        await asyncio.wait_for(task, 2)
        assert engine.num_open == 0
        metrics = caller.app.state.service.metrics.expose(engine)[0].decode()
        assert 'requests_total{outcome="cancelled",route="/v1/infill"} 1.0' in metrics

    asyncio.run(leave())
