"""`/infill` as llama.cpp's editors speak it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answers import Alternative, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Event, Failed
from engine.requests import Fill, Mask, Request, Sampling, Tokens
from server.protocols.llama_cpp.editing import Completion
from tests.answers import blank

USAGE = Usage(prompt_tokens=40, total_tokens=40)
TOP = [Alternative(9, "é", -0.5)]
LINES = ["\n", "    ", "  ", "a", "b c", "\t", "\n\n", "x\n"]


def done(work_id: str, index: int, reason: str = "stop", stop_string: str | None = None) -> BlankDone:
    whole = blank(
        token_ids=[7, 8], tokens=["o", "t"], token_logprobs=[-1.0, -2.0], top_logprobs=[TOP] * 2,
        finish_reason=reason, stop_string=stop_string,
    )  # fmt: skip
    return BlankDone(work_id, index, 0, whole)


async def writes(request: Request, work_id: str) -> AsyncIterator[Event]:
    assert isinstance(request, Fill)
    yield Begun(work_id, USAGE, True)
    for index in range(request.n):
        yield BlankDelta(work_id, index, 0, 0, "one ", [7], [-1.0])
        yield BlankDelta(work_id, index, 0, 0, f"two {index}", [8], [-1.0])
        yield done(work_id, index)
    yield Done(work_id, USAGE)


@pytest.fixture(autouse=True)
def script(engine):
    engine.script = writes


BODY = {"input_prefix": "a\n", "input_suffix": "\nz", "prompt": "b "}


def test_the_engine_gets_a_blank_between_all_that_is_around_it(client, engine):
    chunks = [{"text": "x [MASK]", "filename": "f", "time": [1, 2]}, {"text": "y"}]
    body = {
        **BODY, "input_extra": chunks, "n_predict": 9, "top_k": 4, "top_p": 0.9, "min_p": 0.2, "temperature": 0.3,
        "samplers": ["top_k", "top_p", "infill"], "stop": ["q"], "seed": 7, "repeat_penalty": 1.5, "n_cmpl": 2,
    }  # fmt: skip
    assert client.post("/infill", json=body).status_code == 200
    assert engine.asked == [
        Fill(
            inputs=(("x [MASK]\ny\na\nb ", Mask("[MASK]"), "\nz"),),
            max_tokens=(9,),
            sampling=Sampling(1.0, 4, 0.9, stop=("q",), seed=7),
            n=2,
            stream=True,
            fit=True,
            timeout_s=600.0,
        )
    ]


def test_without_a_list_of_samplers_all_that_there_are_are_used(client, engine):
    client.post("/infill", json={**BODY, "n_predict": -1, "seed": 2**32 - 1, "repeat_penalty": 1.5})
    assert engine.asked[0].sampling == Sampling(0.8, 40, 0.95, 0.05, {"repetition_penalty": 1.5}, repeat_last_n=64)
    assert engine.asked[0].max_tokens == (512,)


def test_the_whole_answer(client):
    response = client.post("/infill", json={**BODY, "n_predict": 9, "return_tokens": True, "id_slot": 0})
    answer = response.json()
    assert b'"content":"one two 0"' in response.content
    assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "eos", "")
    assert (answer["tokens"], answer["tokens_predicted"], answer["tokens_evaluated"]) == ([7, 8], 2, 40)
    assert (answer["tokens_cached"], answer["truncated"], answer["id_slot"]) == (0, True, 0)
    assert (answer["model"], answer["prompt"]) == ("demo", "a\nb [MASK]\nz")
    assert answer["generation_settings"]["n_ctx"] == 512
    timings = answer["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (40, 2)
    for name in ("prompt", "predicted"):
        for unit in ("ms", "per_token_ms", "per_second"):
            assert timings[f"{name}_{unit}"] >= 0


def test_fields_that_are_asked_for_come_under_their_paths(client):
    paths = ["content", "timings/prompt_n", "timings/none", "truncated", "content/x", "timings"]
    answer = client.post("/infill", json={**BODY, "response_fields": paths}).json()
    assert list(answer) == ["content", "timings/prompt_n", "truncated", "timings"]
    assert answer["timings/prompt_n"] == 40


def test_several_completions_are_a_list(client):
    answers = client.post("/infill", json={**BODY, "n_cmpl": 3, "response_fields": ["content"]}).json()
    assert answers == [{"content": f"one two {n}"} for n in range(3)]


def streamed(response: Any) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in response.text.split("\n\n") if part]


def test_a_stream_has_pieces_and_a_last_object_for_each_completion(client):
    body = {**BODY, "stream": True, "n_cmpl": 2, "id_slot": 3}
    events = streamed(client.post("/infill", json=body))
    for index in range(2):
        own = [event for event in events if event["index"] == index]
        assert [e["content"] for e in own] == ["one ", f"two {index}", ""]
        assert [e["tokens"] for e in own] == [[7], [8], []]
        assert [e["stop"] for e in own] == [False, False, True]
        assert [(e["tokens_predicted"], e["tokens_evaluated"], e["id_slot"]) for e in own][1:] == [(2, 40, 3)] * 2
        assert (own[-1]["stop_type"], own[-1]["timings"]["predicted_n"]) == ("eos", 2)
    (*_, last) = streamed(client.post("/infill", json={**body, "response_fields": ["stop", "timings/prompt_n"]}))
    assert last == {"stop": True, "timings/prompt_n": 40}


def test_a_stream_ends_where_the_editor_s_rules_say(client, engine):
    async def script(request, work_id):
        for number in range(10**6):
            text = ["    a", "\n    b", "\n  ", "c", "\n"][number % 5]
            yield BlankDelta(work_id, 0, 0, 0, text, [number], [-1.0])

    engine.script = script
    *pieces, last = streamed(client.post("/infill", json={**BODY, "n_indent": 4, "stream": True}))
    assert "".join(p["content"] for p in pieces) == "    a\n    b\n  "
    assert (last["stop_type"], last["tokens_predicted"]) == ("limit", 4)
    assert engine.num_open == 0


def test_a_stream_that_fails_says_so_in_llama_cpp_s_shape(client, engine):
    async def script(request, work_id):
        yield BlankDelta(work_id, 0, 0, 0, "a", [1], [-1.0])
        yield Failed(work_id, "overloaded", "no room")

    engine.script = script
    piece, error = streamed(client.post("/infill", json={**BODY, "stream": True}))
    assert piece["content"] == "a"
    assert error == {"error": {"code": 503, "message": "no room", "type": "unavailable_error"}}


def test_probabilities_come_with_what_they_are_of(client, engine):
    first = {
        "id": 7, "token": "o", "bytes": [111], "logprob": -1.0,
        "top_logprobs": [{"id": 9, "token": "é", "bytes": [195, 169], "logprob": -0.5}],
    }  # fmt: skip
    answer = client.post("/infill", json={**BODY, "n_probs": 1}).json()
    assert answer["completion_probabilities"][0] == first
    assert len(answer["completion_probabilities"]) == 2
    assert engine.asked[0].logprobs == 1

    async def script(request, work_id):
        for at, (token_id, token) in enumerate(((7, "o"), (8, "t"))):
            yield BlankDelta(work_id, 0, 0, 0, token, [token_id], [-1.0], [token], [TOP], [at])
        yield done(work_id, 0)
        yield Done(work_id, USAGE)

    engine.script = script
    one, two, last = streamed(client.post("/infill", json={**BODY, "n_probs": 1, "stream": True}))
    assert (one["completion_probabilities"], two["completion_probabilities"][0]["id"]) == ([first], 8)
    assert last["stop"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "count"), [([""], 0), ([], 22)])
def test_a_warm_up_is_answered_without_the_engine(client, engine, fields, count, stream):
    body = {
        "id_slot": 0, "input_prefix": "", "input_suffix": "", "input_extra": [], "prompt": "", "n_predict": 0,
        "samplers": [], "temperature": 0, "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": fields,
        "stream": stream,
    }  # fmt: skip
    response = client.post("/infill", json=body)
    assert response.status_code == 200
    answer = streamed(response)[0] if stream else response.json()
    assert (len(answer) > 10) == bool(count)
    assert engine.asked == []


@pytest.mark.parametrize(
    ("reason", "word", "kind"),
    [("stop", None, "eos"), ("stop", "q", "word"), ("length", None, "limit"), ("deadline", None, "limit")],
)
def test_how_a_completion_ended(client, engine, reason, word, kind):
    async def script(request, work_id):
        yield done(work_id, 0, reason, word)
        yield Done(work_id, USAGE)

    engine.script = script
    answer = client.post("/infill", json=BODY).json()
    assert (answer["stop_type"], answer["stopping_word"]) == (kind, word or "")


def test_a_shallow_line_ends_a_completion_and_frees_the_engine(client, engine):
    async def script(request, work_id):
        for number in range(10**6):
            text = ["    a", "\n    b", "\n  ", "c", "\n"][number % 5]
            yield BlankDelta(work_id, 0, 0, 0, text, [number], [-1.0])

    engine.script = script
    answer = client.post("/infill", json={**BODY, "n_indent": 4}).json()
    assert (answer["content"], answer["stop_type"], answer["has_new_line"]) == ("    a\n    b\n  ", "limit", True)
    assert answer["tokens_predicted"] == 4
    assert engine.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_token_is_predicted_too(client, engine, stream):
    """As in llama.cpp, whose `n_decoded` counts each token that is sampled."""

    async def script(request, work_id):
        yield Begun(work_id, USAGE, False)
        ended = replace(done(work_id, 0).blank, end_token="<eop>", end_logprob=-0.5)
        yield BlankDone(work_id, 0, 0, ended)
        yield Done(work_id, USAGE)

    engine.script = script
    response = client.post("/infill", json={**BODY, "stream": stream, "return_tokens": True})
    last = json.loads(response.text.removesuffix("\n\n").split("data: ")[-1])
    assert (last["tokens_predicted"], last["timings"]["predicted_n"], last["tokens_evaluated"]) == (3, 3, 40)


def test_no_tokens_are_predicted_and_the_text_is_counted(client, engine):
    answer = client.post("/infill", json={**BODY, "n_predict": 0}).json()
    assert engine.asked == []
    ((fill, _),) = engine.read_texts
    assert (fill.inputs, fill.fit) == ((("a\nb ", Mask("[MASK]"), "\nz"),), True)
    assert (answer["tokens_predicted"], answer["tokens_evaluated"], answer["truncated"]) == (0, 5, True)


def test_time_ends_a_completion_but_only_at_a_line(client, engine):
    async def script(request, work_id):
        for text in ("a", " b", "\n", "c"):
            yield BlankDelta(work_id, 0, 0, 0, text, [1], [-1.0])
            await asyncio.sleep(0.02)
        yield done(work_id, 0)
        yield Done(work_id, USAGE)

    engine.script = script
    answer = client.post("/infill", json={**BODY, "t_max_predict_ms": 1}).json()
    assert (answer["content"], answer["stop_type"]) == ("a b\n", "limit")
    unlimited = client.post("/infill", json={**BODY, "t_max_predict_ms": 0}).json()
    assert (unlimited["content"], unlimited["stop_type"]) == ("a b\nc", "eos")


@given(parts=st.lists(st.sampled_from(LINES), max_size=12), indent=st.integers(0, 5), cuts=st.sets(st.integers(0, 30)))
def test_lines_are_held_to_an_indentation_however_the_text_comes(parts: list[str], indent: int, cuts: set[int]) -> None:
    text = "".join(parts)
    # The plain rule, line by line: a shallow line is left with its white space.
    expected, lines = "", text.split("\n")
    for number, line in enumerate(lines):
        expected += line if number == 0 else f"\n{line}"
        white = len(line) - len(line.lstrip(" \t"))
        # An empty line is no deeper than the text of the next one allows: its first character is the line's end.
        is_last = number == len(lines) - 1
        if number and indent and (white < len(line) or not is_last) and white < indent:
            expected = expected[: len(expected) - len(line) + white]
            break
    completion = Completion()
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(places):
        if not completion.ended:
            completion.add(text[start:end], [], indent, False)
    assert completion.text == expected


def unsupported(answer: Any) -> None:
    assert answer.json() == {
        "error": {"code": 501, "message": "Infill is not supported by this model", "type": "not_supported_error"}
    }


@pytest.mark.parametrize("changes", [{"masked": True}, {"masks": ["[gMASK]"]}])
def test_a_model_that_cannot_write_between_says_so(client, engine, changes):
    engine.changes = changes
    response = client.post("/infill", json=BODY)
    assert response.status_code == 501
    unsupported(response)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input_suffix": ""}, "input_prefix is required"),
        ({"input_prefix": ""}, "input_suffix is required"),
        ({**BODY, "input_prefix": 5}, "input_prefix"),
        ({**BODY, "input_extra": "x"}, "input_extra"),
        ({**BODY, "input_extra": [{"filename": "f"}]}, "input_extra.0.text"),
        ({**BODY, "input_extra": [{"text": 1}]}, "input_extra.0.text"),
        ({**BODY, "prompt": [1]}, "prompt"),
        ({**BODY, "n_predict": -2}, "n_predict"),
        ({**BODY, "n_cmpl": 9}, "n_cmpl"),
        ({**BODY, "n_indent": -1}, "n_indent"),
        ({**BODY, "stream": "yes"}, "stream"),
        ({**BODY, "n_probs": 21}, "n_probs"),
    ],
)
def test_errors_have_llama_cpp_s_shape(client, engine, body, message):
    response = client.post("/infill", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert list(error) == ["code", "message", "type"]
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]
    assert engine.asked == []


def test_errors_of_others_have_that_shape_too(client, engine, make_client):
    def kind(response: Any) -> tuple[int, str]:
        error = response.json()["error"]
        assert list(error) == ["code", "message", "type"]
        return error["code"], error["type"]

    assert kind(client.get("/infill")) == (405, "invalid_request_error")
    assert kind(client.post("/infill", content=b"{", headers={"content-type": "application/json"})) == (
        400,
        "invalid_request_error",
    )
    assert kind(make_client(max_body_bytes=10).post("/infill", json=BODY)) == (413, "invalid_request_error")
    engine.status = ("loading", "40 %")
    assert kind(client.post("/infill", json=BODY)) == (503, "unavailable_error")
    engine.status = ("ready", "")
    client.app.state.drain()
    assert kind(client.post("/infill", json=BODY)) == (503, "unavailable_error")


@pytest.mark.parametrize(("outcome", "status"), [("invalid", 400), ("error", 500), ("overloaded", 503)])
def test_the_engine_s_failures(client, engine, outcome, status):
    async def script(request, work_id):
        yield Failed(work_id, outcome, "no")

    engine.script = script
    response = client.post("/infill", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)


def test_an_editor_that_kills_its_request_cancels_it(engine, make_caller):
    async def script(request, work_id):
        yield BlankDelta(work_id, 0, 0, 0, "a", [1], [-1.0])
        await asyncio.sleep(60)

    async def leave():
        engine.script = script
        caller = make_caller("/infill", BODY)
        task = asyncio.create_task(caller.run())
        while not engine.num_open:
            await asyncio.sleep(0.001)
        caller.left.set()
        await asyncio.wait_for(task, 2)
        assert engine.num_open == 0
        assert caller.app.state.service.gate.inside == 0
        assert json.loads(caller.data)["error"]["code"] == 499

    asyncio.run(leave())


@pytest.mark.parametrize(
    ("given", "biases"),
    [
        ([[7, 1.5], [9, False]], {7: 1.5, 9: -math.inf}),
        ([["a bc", -0.5], [2, 2]], {1: -0.5, 2: 1.5}),
        ({"7": 1, "a bc": False}, {7: 1.0, 1: -math.inf, 2: -math.inf}),
        ([["7", 1.0]], {1: 1.0}),
        ([], {}),
        ({}, {}),
    ],
)
def test_biases_in_llama_cpp_s_two_forms(client, engine, given, biases):
    """A text biases each of its tokens, in these tests the lengths of its words; false is never."""
    assert client.post("/infill", json={**BODY, "logit_bias": given}).status_code == 200
    assert engine.asked[0].sampling.logit_bias == biases


@pytest.mark.parametrize(
    "given",
    [[[7, True]], [[7]], [[7, 1.0, 2.0]], [[7.5, 1.0]], {"7": "1"}, 7, [[True, 1.0]], [[n, 1.0] for n in range(301)]],
)
def test_biases_that_are_none(client, engine, given):
    response = client.post("/infill", json={**BODY, "logit_bias": given})
    assert response.status_code == 400
    assert "logit_bias" in response.json()["error"]["message"]
    assert not engine.asked


def test_samplers_of_the_engine_that_llama_cpp_does_not_have(client, engine):
    assert client.post("/infill", json={**BODY, "no_repeat_ngram_size": 3, "samplers": []}).status_code == 200
    assert engine.asked[0].sampling.rules == {"no_repeat_ngram_size": 3}


@pytest.mark.parametrize(
    ("prompt", "segments", "fit"),
    [
        ("a b", ("a b",), False),
        ("a [MASK] b", ("a ", Mask("[MASK]"), " b"), True),
        ([5, 6], (Tokens((5, 6)),), False),
        (["a", 5, 6, "b"], ("a", Tokens((5, 6)), "b"), False),
    ],
)
def test_a_completion_reads_texts_and_token_ids(client, engine, prompt, segments, fit):
    body = {"prompt": prompt, "n_predict": 9, "samplers": [], "n_probs": 3}
    answer = client.post("/completion", json=body).json()
    assert (answer["content"], answer["stop"], answer["stop_type"]) == ("one two 0", True, "eos")
    assert answer["prompt"] == "".join(
        " ".join(map(str, s.ids)) if isinstance(s, Tokens) else s.name if isinstance(s, Mask) else s for s in segments
    )
    (asked,) = engine.asked
    assert (asked.inputs, asked.max_tokens, asked.fit, asked.logprobs) == ((segments,), (9,), fit, 3)


def test_a_template_of_another_model_is_a_blank(client, engine):
    answer = client.post("/completion", json={"prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"}).json()
    assert engine.asked[0].inputs == (("a", Mask("[MASK]"), "b"),)
    assert (answer["prompt"], "warnings" in answer) == ("a[MASK]b", False)
    unread = client.post("/completion", json={"prompt": "<|fim_suffix|>a<|fim_prefix|>b<|fim_middle|>"}).json()
    assert engine.asked[1].fit is False
    assert "qwen" in unread["warnings"][0]


def test_a_completion_is_streamed_as_an_infill_is(client):
    *pieces, last = streamed(client.post("/completion", json={"prompt": "a", "stream": True}))
    assert "".join(piece["content"] for piece in pieces) == "one two 0"
    assert (last["stop"], last["content"], last["tokens_evaluated"]) == (True, "", 40)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a", "b"], "prompt has several texts; give one, or send them to /v1/completions"),
        ([], "prompt: List should have at least 1 item"),
        ([100], "token id 100 is outside the vocabulary"),
        ("[MASK] [MASK]", "prompt has 2 masks"),
        (None, "prompt is required"),
    ],
)
def test_a_prompt_that_cannot_be_read(client, prompt, message):
    response = client.post("/completion", json={"prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)
    assert response.json()["error"]["code"] == 400


def test_the_properties_are_those_of_a_completion(client):
    props = client.get("/props").json()
    params = props["default_generation_settings"]["params"]
    assert params == client.post("/completion", json={"prompt": "a"}).json()["generation_settings"]
    assert (params["temperature"], params["top_k"], params["n_predict"]) == (0.8, 40, 512)
    assert (props["default_generation_settings"]["n_ctx"], props["model_path"]) == (512, "demo")
    assert (props["chat_template"], props["bos_token"], props["eos_token"]) == ("", "<sop>", "<eop>")


@pytest.mark.parametrize(("given", "stop"), [("", ()), ([""], ()), (["", "a"], ("a",))])
def test_an_empty_stop_string_is_none(client, engine, given, stop):
    client.post("/completion", json={"prompt": "a", "stop": given})
    assert engine.asked[0].sampling.stop == stop
