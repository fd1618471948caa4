"""What `/v1/completions` asks of the engine, and what it makes of the engine's events."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.answers import Alternative, EchoedPrompt, FilledBlank, FillResult, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event, Failed, ResultDone
from engine.requests import Fill, Mask, Request, Sampling, Tokens
from server.protocols.openai.logprobs import Logprobs
from tests.answers import blank

USAGE = Usage(5, 2, 7)
ECHO = EchoedPrompt(
    token_ids=[3, 4, 5],
    tokens=["a", " b", " c"],
    token_logprobs=[-0.25, -1.5, -2.5],
    top_logprobs=[[Alternative(3, "a", -0.25)], [Alternative(9, " x", -0.5)], [Alternative(5, " c", -2.5)]],
    text_offsets=[0, 1, 3],
)


def one(text: str = "no", logprob: float = -1.0, **fields: Any) -> FilledBlank:
    """A blank of one token."""
    known: dict[str, Any] = {
        "mask": "[gMASK]", "end": 7, "text": text, "token_ids": [7], "tokens": [text], "logprob": logprob,
        "token_logprobs": [logprob], "text_offsets": [0], "top_logprobs": [[Alternative(7, text, logprob)]],
    }  # fmt: skip
    return blank(**{**known, **fields})


async def completes(request: Request, work_id: str) -> AsyncIterator[Event]:
    """Answers with texts that tell which they are, the least probable first."""
    assert isinstance(request, Fill)
    if request.stream:
        yield Begun(work_id, USAGE, False)
    for index in reversed(range(len(request.inputs) * request.n)):
        number = index // request.n
        found = one(f"t{index}", -10.0 + index % request.n)
        if request.stream:
            if request.echo:
                yield Echoed(work_id, index, number, ECHO)
            yield BlankDelta(work_id, index, number, 0, f"t{index}", [7], [-1.0], ["t"], None, [0])
            yield BlankDone(work_id, index, number, found)
        yield ResultDone(work_id, FillResult(index, number, "", 0.0, [found], ECHO if request.echo else None))
    yield Done(work_id, USAGE)


@pytest.fixture(autouse=True)
def script(engine):
    engine.script = completes


def parsed(text):
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_every_field_reaches_the_engine(client, engine):
    body = {
        "model": "demo", "prompt": "a [MASK] b", "max_tokens": 3, "min_tokens": 1, "temperature": 1, "top_p": 0.5,
        "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "n": 2, "best_of": 3, "logprobs": 4, "stop": ["x"],
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"7": -1.5}, "seed": -1, "user": "me",
        "no_repeat_ngram_size": 3,
        "stream": False, "echo": False, "suffix": None, "stream_options": None,
    }  # fmt: skip
    assert client.post("/v1/completions", json=body).status_code == 200
    rules = {
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 3,
    }  # fmt: skip
    assert engine.asked == [
        Fill(
            inputs=(("a ", Mask("[MASK]"), " b"),),
            max_tokens=(3,),
            min_tokens=(1,),
            sampling=Sampling(1.0, 0, 0.5, 0.1, rules, {7: -1.5}, ("x",), 2**63 - 1),
            n=3,
            logprobs=4,
            fit=True,
            timeout_s=600.0,
        )
    ]


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", (("a",),)),
        ("", ((),)),
        (["a", "b"], (("a",), ("b",))),
        ([1, 2], ((Tokens((1, 2)),),)),
        ([[1, 2], [3]], ((Tokens((1, 2)),), (Tokens((3,)),))),
    ],
)
def test_every_kind_of_prompt(client, engine, prompt, inputs):
    assert client.post("/v1/completions", json={"prompt": prompt}).status_code == 200
    assert engine.asked[0].inputs == inputs
    assert engine.asked[0].max_tokens == (16,)
    assert engine.asked[0].sampling.temperature == 1.0


def test_prompt_and_suffix_are_text_around_a_mask(client, engine):
    client.post("/v1/completions", json={"prompt": "a [MASK]", "suffix": "[gMASK] b"})
    assert engine.asked[0].inputs == (("a [MASK]", Mask("[MASK]"), "[gMASK] b"),)


def test_choices_are_in_order_and_those_of_best_of_the_best(client):
    body = {"prompt": ["a", "b"], "n": 2, "best_of": 4}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [(c["index"], c["text"]) for c in choices] == [(0, "t3"), (1, "t2"), (2, "t7"), (3, "t6")]


def test_a_scored_prompt_hides_its_first_token_and_gives_it_apart(client, engine):
    body = {"prompt": "a b c", "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert engine.asked[0].echo
    assert engine.asked[0].inputs == (("a b c",),)
    assert choice["text"] == "a b ct0"
    assert choice["logprobs"] == {
        "tokens": ["a", " b", " c", "t0"],
        "token_logprobs": [None, -1.5, -2.5, -10.0],
        "top_logprobs": [None, {" x": -0.5, " b": -1.5}, {" c": -2.5}, {"t0": -10.0}],
        "text_offset": [0, 1, 3, 5],
    }
    assert choice["glm"] == {"first_token_logprob": -0.25}


def test_an_echo_without_logprobs_is_the_prompt_before_the_answer(client, engine):
    choice = client.post("/v1/completions", json={"prompt": "a b", "echo": True}).json()["choices"][0]
    assert (choice["text"], choice["logprobs"], engine.asked[0].echo) == ("a bt0", None, False)
    by_ids = client.post("/v1/completions", json={"prompt": [1, 2], "echo": True}).json()["choices"][0]
    assert by_ids["text"] == "1 2t0"


def test_an_end_token_is_a_token_of_the_logprobs(client, engine):
    async def script(request, work_id):
        fields: dict[str, Any] = {
            "text": "",
            "token_ids": [],
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offsets": [],
        }
        fields |= {"end_token": "<eop>", "end_logprob": -0.5, "end_top_logprobs": [], "finish_reason": "stop"}
        yield ResultDone(work_id, FillResult(0, 0, "", 0.0, [one(**fields)], ECHO))
        yield Done(work_id, USAGE)

    engine.script = script
    body = {"prompt": "a b c", "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 4
    assert choice["logprobs"]["top_logprobs"][3] == {"<eop>": -0.5}
    assert choice["text"] == "a b c"


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_is_an_answer_too(client, engine, stream):
    body = {"prompt": ["a b", "c"], "max_tokens": 0, "echo": True, "n": 2, "stream": stream}
    response = client.post("/v1/completions", json=body)
    assert engine.asked == []
    choices = [e["choices"][0] for e in parsed(response.text)] if stream else response.json()["choices"]
    assert sorted({(c["index"], c["text"]) for c in choices if c["text"]}) == [
        (0, "a b"), (1, "a b"), (2, "c"), (3, "c")
    ]  # fmt: skip
    assert choices[-1]["finish_reason"] == "length"


def test_a_stream_has_unnamed_events_and_an_end(client):
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parsed(response.text)
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None, "length"]
    assert [e["usage"] for e in events[:-1]] == [None, None]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 7
    assert {e["object"] for e in events} == {"text_completion"}
    without = parsed(client.post("/v1/completions", json={"prompt": "a", "stream": True}).text)
    assert all("usage" not in event for event in without)


@pytest.mark.parametrize("scored", [False, True])
def test_a_streamed_echo_comes_first(client, scored):
    body = {"prompt": "a b c", "stream": True, "echo": True, "n": 2, **({"logprobs": 1} if scored else {})}
    events = [e["choices"][0] for e in parsed(client.post("/v1/completions", json=body).text)]
    for index in (0, 1):
        mine = [e for e in events if e["index"] == index]
        assert [e["text"] for e in mine] == ["a b c", f"t{index}", ""]
        assert (mine[0]["logprobs"] is not None) == scored
        assert ("glm" in mine[0]) == scored


@pytest.mark.parametrize("crash", [True, False])
def test_a_late_failure_is_an_error_that_the_client_raises(client, engine, crash):
    async def script(request, work_id):
        yield BlankDelta(work_id, 0, 0, 0, "t", [7], [-1.0], ["t"], None, [0])
        if crash:
            raise RuntimeError("/secret")
        yield Failed(work_id, "error", "/secret")

    engine.script = script
    events = parsed(client.post("/v1/completions", json={"prompt": "a", "stream": True}).text)
    assert events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(events)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "[MASK] [MASK]"}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2000}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": ""}, "stop"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"seed": 1.5}, "seed"),
        ({"echo": True, "suffix": "b"}, "echo"),
        ({"echo": "yes"}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_bodies_are_400_and_name_the_field(client, engine, refused, body, param):
    whole = body if "prompt" in body or not body else {"prompt": "a", **body}
    refused(client.post("/v1/completions", json=whole), 400, param)
    assert engine.asked == []


def test_a_model_that_has_no_mask_takes_no_suffix(client, engine, refused):
    engine.changes = {"masks": ["[gMASK]"]}
    refused(client.post("/v1/completions", json={"prompt": "a", "suffix": "b"}), 400, "suffix")


def test_the_engine_s_failures_are_in_the_client_s_words(client, engine, refused):
    async def script(request, work_id):
        yield Failed(work_id, "invalid", "the text has 600 tokens", "text", "context_length_exceeded")

    engine.script = script
    error = refused(client.post("/v1/completions", json={"prompt": "a"}), 400, "prompt")
    assert error["code"] == "context_length_exceeded"
    refused(client.post("/v1/completions", json={"prompt": "a", "stream": True}), 400, "prompt")
    refused(client.post("/v1/completions", json={"prompt": [100], "max_tokens": 0}), 400, "prompt")


def test_unknown_fields_pass_and_are_told_once_by_name(capsys, make_client):
    with make_client() as client:
        for _ in range(2):
            body = {"prompt": "a", "cache_salt": "secret", "x" * 50: 1, "guided": None}
            assert client.post("/v1/completions", json=body).status_code == 200
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [line["fields"] for line in lines if line["event"] == "ignored fields"]
    assert told == [["cache_salt", "guided"]]
    assert not any("secret" in json.dumps(line) for line in lines)


def test_of_tokens_spelled_alike_the_most_probable_one_counts():
    logprobs = Logprobs()
    top = [Alternative(1, "a", -0.1), Alternative(2, "a", -3.0), Alternative(3, "b", -float("inf"))]
    logprobs.add([(1, "a"), (4, "c")], [-3.0, -1e9], [top, []], [0, 1])
    assert logprobs.top_logprobs == [{"a": -0.1, "b": -9999.0}, {"c": -9999.0}]
    assert logprobs.token_logprobs == [-3.0, -9999.0]
