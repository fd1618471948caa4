"""`/v1/fim/completions` as Mistral's clients speak it: what the engine is asked, and what becomes of its events."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.answers import Alternative, FillResult, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Event, Failed, ResultDone
from engine.requests import Fill, Mask, Request, Sampling
from server.keyfile import new_key
from tests.answers import blank

PATH = "/v1/fim/completions"
USAGE = Usage(5, 2, 7, 3)
BODY: dict[str, Any] = {"prompt": "a ", "suffix": " z"}
TOPS = [[Alternative(9, "x", -0.5)], [Alternative(7, "o", -2.0)]]


async def writes(request: Request, work_id: str) -> AsyncIterator[Event]:
    assert isinstance(request, Fill)
    tops = None if request.logprobs is None else TOPS
    whole = blank(
        text="one", token_ids=[7, 8], tokens=["o", "ne"], token_logprobs=[-1.0, -2.0], top_logprobs=tops,
        finish_reason="deadline",
    )  # fmt: skip
    if request.stream:
        yield Begun(work_id, USAGE, True)
        yield BlankDelta(work_id, 0, 0, 0, "one", [7], [-1.0], ["o"], tops and tops[:1])
        yield BlankDone(work_id, 0, 0, whole)
    yield ResultDone(work_id, FillResult(0, 0, "", 0.0, [whole], fitted=True))
    yield Done(work_id, USAGE)


@pytest.fixture(autouse=True)
def script(engine):
    engine.script = writes


def chunks(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


def test_the_engine_gets_a_blank_between_two_texts(client, engine):
    body = {**BODY, "suffix": " [MASK]", "max_tokens": 9, "min_tokens": 2, "random_seed": 7, "stop": "q", "top_p": 0.5}
    assert client.post(PATH, json=body).status_code == 200
    assert engine.asked == [
        Fill(
            inputs=(("a ", Mask("[MASK]"), " [MASK]"),),
            max_tokens=(9,),
            min_tokens=(2,),
            sampling=Sampling(0.3, 0, 0.5, stop=("q",), seed=7),
            fit=True,
            timeout_s=600.0,
        )
    ]


@pytest.mark.parametrize("length", [{}, {"max_tokens": None}, {"max_tokens": 100_000}])
def test_a_length_that_is_too_great_or_none_is_what_the_model_can_write(client, engine, length):
    client.post(PATH, json={"prompt": "a", **length})
    assert (engine.asked[0].max_tokens, engine.asked[0].inputs) == ((512,), (("a",),))


def test_the_answer_is_shaped_as_a_chat_s(client):
    answer = client.post(PATH, json={**BODY, "model": "demo"}).json()
    assert answer.pop("id").startswith("fim-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "chat.completion",
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one", "tool_calls": None},
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}
        },
        "truncated": True,
    }  # fmt: skip


def test_each_chunk_has_a_string_and_the_last_one_reason_and_usage(client):
    found = chunks(client.post(PATH, json={**BODY, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "one"}, {"content": ""}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, "length"]
    assert ["usage" in chunk for chunk in found] == [False, False, True]
    assert (found[2]["usage"]["total_tokens"], found[2]["truncated"]) == (7, True)
    assert {(chunk["object"], chunk["id"]) for chunk in found} == {("chat.completion.chunk", found[0]["id"])}


def test_log_probabilities_are_in_the_form_of_a_chat(client):
    body = {**BODY, "logprobs": True, "top_logprobs": 1}
    (whole,) = client.post(PATH, json=body).json()["choices"]
    tokens = whole["logprobs"]["content"]
    assert [(t["token"], t["bytes"], t["logprob"]) for t in tokens] == [("o", [111], -1.0), ("ne", [110, 101], -2.0)]
    assert tokens[0]["top_logprobs"] == [{"id": 9, "token": "x", "bytes": [120], "logprob": -0.5}]
    streamed = chunks(client.post(PATH, json={**body, "stream": True}))
    assert [t for c in streamed for t in c["choices"][0]["logprobs"]["content"]] == tokens


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "a"}, "prompt"),
        ({**BODY, "max_tokens": -1}, "max_tokens"),
        ({**BODY, "temperature": -1}, "temperature"),
        ({**BODY, "random_seed": -1}, "random_seed"),
        ({**BODY, "max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({**BODY, "top_logprobs": 21}, "top_logprobs"),
        ({**BODY, "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "[MASK] and [MASK]"}, "prompt"),
    ],
)
def test_refusals_name_the_field(client, refused, body, param):
    refused(client.post(PATH, json=body), 400, param)


def test_an_unknown_model_is_not_found(client, refused, engine):
    refused(client.post(PATH, json={**BODY, "model": "codestral-latest"}), 404, "model")
    assert not engine.asked


def test_a_model_that_cannot_write_between_two_texts_says_so(client, refused, engine):
    engine.changes = {"masks": ["[gMASK]"]}
    assert refused(client.post(PATH, json=BODY), 400, "suffix")["code"] == "unsupported"
    assert client.post(PATH, json={"prompt": "a"}).status_code == 200


def test_a_late_failure_is_an_event_and_the_end(client, engine):
    async def fails(request: Request, work_id: str) -> AsyncIterator[Event]:
        yield Begun(work_id, USAGE, False)
        yield Failed(work_id, "overloaded", "no room", code="overloaded")

    engine.script = fails
    *_, last = chunks(client.post(PATH, json={**BODY, "stream": True}))
    assert last["error"]["message"] == "no room"


def test_a_key_may_come_in_either_header(make_client, tmp_path):
    path = tmp_path / "keys.jsonl"
    key = new_key(path, name="ann")
    client = make_client(api_keys=path)
    statuses = [
        client.post(PATH, json=BODY, headers=headers).status_code
        for headers in ({}, {"authorization": f"Bearer {key}"}, {"x-api-key": key})
    ]
    assert statuses == [401, 200, 200]


def test_no_tokens_are_no_work(client, engine):
    answer = client.post(PATH, json={**BODY, "max_tokens": 0}).json()
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 0)
    *_, last = chunks(client.post(PATH, json={**BODY, "max_tokens": 0, "stream": True}))
    assert (last["choices"][0]["finish_reason"], last["usage"]["prompt_tokens"]) == ("length", 5)
    assert engine.asked == []


def test_a_whole_number_may_have_a_point(client, engine):
    assert client.post(PATH, json={**BODY, "max_tokens": 9.0, "random_seed": 7.0}).status_code == 200
    assert (engine.asked[0].max_tokens, engine.asked[0].sampling.seed) == ((9,), 7)
    assert client.post(PATH, json={**BODY, "max_tokens": 9.5}).status_code == 400
