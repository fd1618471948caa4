"""Hugging Face's routes: which protocol a body speaks, what it becomes for the engine, streams and errors."""

import json
import math
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from engine.answers import Alternative, ScoredSpan, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Failed, ResultDone
from engine.requests import Fill, JsonSchema, Mask, Score, Tokens
from tests.answers import blank, filled, scored

USAGE = Usage(5, 2, 7)
LEAST, WRONG = "Input should be greater than or ", {"error_type": "validation"}
TOP = [[Alternative(3, "x", -0.25), Alternative(4, "y", -2.0)]]
END = {"end_token": "<eop>", "end_token_id": 9, "end_logprob": -0.5}
PROMPT = ScoredSpan(0, "a", -1.0, [5], ["a"], [-1.0], None, -0.5)
HI = {"token_ids": [3, 4], "tokens": ["h", "i"], "token_logprobs": [-0.25, -2.0], "text_offsets": [0, 1]}


def fill_of(**fields):
    async def script(request, work_id):
        if isinstance(request, Score):
            yield ResultDone(work_id, replace(scored(0, -1.0), spans=[PROMPT]))
            yield Done(work_id, USAGE)
            return
        blanks = [blank(mask="[MASK]", finish_reason="stop", **fields)] * 1
        if request.stream:
            yield Begun(work_id, USAGE, False)
            yield BlankDelta(work_id, 0, 0, 0, "h", [3], [-0.25], ["h"], [TOP[0]], [0])
            yield BlankDelta(work_id, 0, 0, 0, "", [4], [-2.0], ["i"], [TOP[0]], [1])
            yield BlankDone(work_id, 0, 0, blanks[0])
        yield ResultDone(work_id, filled(blanks))
        yield Done(work_id, USAGE)

    return script


def events(response) -> list:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


NO_MASK = "no mask token ([MASK], [gMASK]) found in inputs; for text generation give max_new_tokens"


@pytest.mark.parametrize("path", ["/", "/models/demo", "/models/demo/", "/models/"])
@pytest.mark.parametrize(
    ("body", "is_mask"),
    [
        ({"inputs": "a [MASK]"}, True),
        ({"inputs": "a [sMASK]", "parameters": {"top_k": 2}}, True),
        ({"inputs": ["a [MASK]"]}, True),
        ({"inputs": "a [MASK]", "parameters": {"max_new_tokens": None}, "stream": None}, True),
        ({"inputs": "a [MASK]", "parameters": {"max_new_tokens": 3}}, False),
        ({"inputs": "a [MASK]", "stream": False}, False),
        ({"inputs": "a", "stream": False}, False),
        ({"inputs": "a", "parameters": {"max_new_tokens": 3}}, False),
    ],
)
def test_what_text_generation_does_not_claim_is_fill_mask_s(client, engine, path, body, is_mask):
    engine.script = fill_of(text="hi", **HI, **END)
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    (asked,) = engine.asked
    assert (asked.strategy == "parallel") == is_mask
    if not is_mask:
        assert answer.json() == [{"generated_text": "hi"}]
    elif isinstance(body["inputs"], list):
        assert answer.json()[0][0]["sequence"] == "a hi"
    else:
        assert answer.json()[0]["sequence"].startswith("a hi")


def test_the_page_is_still_at_the_root(client):
    assert "text/html" in client.get("/").headers["content-type"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"inputs": "[MASK]", "parameters": {"top_k": 0}}, {"error": f"parameters.top_k: {LEAST}equal to 1"}),
        ({"inputs": ["[MASK]", "a"]}, {"error": f"input 1: {NO_MASK}"}),
        ({"inputs": ["a"]}, {"error": NO_MASK}),
        ({"inputs": "a"}, {"error": NO_MASK}),
        ({"inputs": "a", "parameters": {"top_k": 2}}, {"error": NO_MASK}),
        ({"inputs": "a", "parameters": {"targets": ["b"]}}, {"error": NO_MASK}),
        ({"inputs": "[MASK]", "parameters": {"top_k": 17}}, {"error": "top_k is 17; the limit is 16"}),
        ({"inputs": "a", "parameters": {"seed": -1}}, {"error": f"parameters.seed: {LEAST}equal to 0", **WRONG}),
        ({}, {"error": "inputs is required"}),
    ],
)  # fmt: skip
def test_errors_have_the_shape_of_what_was_asked(client, engine, body, error):
    answer = client.post("/", json=body)
    assert (answer.status_code, answer.json()) == (400, error)
    assert not engine.asked


def test_an_unknown_model_is_not_found(client):
    answer = client.post("/models/google/other", json={"inputs": "a [MASK]"})
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("path", ["/", "/models/demo", "/generate", "/generate_stream"])
def test_refusals_before_the_body_have_the_shape_and_are_work(client, make_client, path):
    answer = client.post(path, content="x", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error_type"]) == (415, "validation")
    client.app.state.drain()
    answer = client.post(path, json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "overloaded")


def test_candidates_of_spans_are_sorted_and_cut(client, engine):
    async def script(request, work_id):
        for index, (text, logprob, end) in enumerate((("a b", -1.0, -1.0), ("c", -0.5, None), ("d", -3.0, 0.0))):
            ids = {"token_ids": [index], "logprob": logprob, "end_logprob": end}
            yield ResultDone(work_id, filled([blank(text=text, **ids)], index))
        yield Done(work_id, USAGE)

    engine.script = script
    answer = client.post("/", json={"inputs": "x [MASK]!", "parameters": {"top_k": 2}}).json()
    assert answer == [
        {"score": math.exp(-0.5), "token": 1, "token_str": "c", "sequence": "x c!"},
        {"score": math.exp(-2.0), "token": 0, "token_str": "a b", "sequence": "x a b!"},
    ]
    (asked,) = engine.asked
    assert asked == Fill(
        (("x ", Mask("[MASK]"), "!"),), (16,), (1,), n=2, num_beams=5, length_penalty=0.0, strategy="parallel",
        timeout_s=600.0,
    )  # fmt: skip


def test_targets_are_choices(client, engine):
    engine.script = fill_of(choice_logprobs=[-2.0, -1.0], choice_ids=((5, 6), (7,)), text="b", **HI)
    body = {"inputs": "x [MASK]!", "parameters": {"targets": ["a c", "b", "b"], "top_k": 5}}
    answer = client.post("/", json=body).json()
    assert [(e["token"], e["token_str"], e["sequence"]) for e in answer] == [(7, "b", "x b!"), (5, "a c", "x a c!")]
    assert engine.asked[0].choices == (("a c", "b"),)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, {"temperature": 1.0}),
        ({}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"top_k": 3}, {"temperature": 1.0, "top_k": 3}),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 7}, {"temperature": 0.5, "top_p": 0.9, "seed": 7}),
        ({"repetition_penalty": 1.2, "stop": ["x", "y"]}, {"temperature": 0.0, "stop": ("x", "y")}),
    ],
)
def test_tokens_are_drawn_as_tgi_draws_them(client, engine, parameters, expected):
    """router/src/validation.rs: a field of sampling turns it on; without `parameters` it is on."""
    body = {"inputs": "a"} | ({} if parameters is None else {"parameters": parameters})
    assert client.post("/generate", json=body).status_code == 200
    drawn = engine.asked[0].sampling
    assert {name: getattr(drawn, name) for name in expected} == expected
    assert drawn.rules == ({"repetition_penalty": 1.2} if parameters and "repetition_penalty" in parameters else {})


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({}, {"max_tokens": (512,), "inputs": (("a b c",),), "n": 1, "logprobs": None}),
        ({"max_new_tokens": 3, "top_n_tokens": 2}, {"max_tokens": (3,), "logprobs": 2}),
        ({"truncate": 2}, {"inputs": ((Tokens((1, 1)),),)}),
        ({"truncate": 3}, {"inputs": (("a b c",),)}),
        ({"best_of": 2, "do_sample": True}, {"n": 2}),
        ({"grammar": {"type": "regex", "value": "x+"}}, {"regex": ("x+",)}),
        ({"grammar": {"type": "json", "value": {}}}, {"regex": (JsonSchema("{}"),)}),
        ({"grammar": {"type": "json_schema", "value": {"schema": {"a": 1}}}}, {"regex": (JsonSchema('{"a":1}'),)}),
    ],
)
def test_parameters_of_a_generation(client, engine, parameters, fields):
    assert client.post("/generate", json={"inputs": "a b c", "parameters": parameters}).status_code == 200
    assert {name: getattr(engine.asked[0], name) for name in fields} == fields


@pytest.mark.parametrize(
    ("path", "parameters", "name"),
    [
        ("/generate", {"best_of": 2}, "best_of"),
        ("/generate", {"best_of": 9, "do_sample": True}, "best_of"),
        ("/generate", {"grammar": {"type": "regex", "value": {}}}, "grammar"),
        ("/generate", {"grammar": {"type": "json_schema", "value": {"name": "x"}}}, "grammar"),
        ("/generate", {"grammar": {"type": "json", "value": "x"}}, "grammar"),
        ("/generate", {"watermark": True}, "watermark"),
        ("/generate", {"typical_p": 0.9}, "typical_p"),
        ("/generate", {"max_new_tokens": 0}, "max_new_tokens"),
        ("/generate", {"top_n_tokens": 21}, "top_n_tokens"),
        ("/generate", {"adapter_id": "other"}, "adapter"),
        ("/generate_stream", {"best_of": 2, "do_sample": True}, "best_of"),
        ("/generate_stream", {"decoder_input_details": True}, "decoder_input_details"),
    ],
)
def test_bad_parameters_are_refused_by_name(client, engine, path, parameters, name):
    answer = client.post(path, json={"inputs": "a", "parameters": parameters})
    assert answer.status_code in (400, 404)
    assert answer.json()["error_type"] == "validation"
    assert name in answer.json()["error"]
    assert not engine.asked


def test_details_have_all_tokens(client, engine):
    engine.script = fill_of(text="hi", **HI, **END)
    answer = client.post(
        "/generate", json={"inputs": "a [MASK] b", "parameters": {"details": True, "seed": 4, "return_full_text": True}}
    )
    tokens = [
        {"id": 3, "text": "h", "logprob": -0.25, "special": False},
        {"id": 4, "text": "i", "logprob": -2.0, "special": False},
        {"id": 9, "text": "<eop>", "logprob": -0.5, "special": True},
    ]
    details = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": 4, "prefill": [], "tokens": tokens}
    assert answer.json() == {"generated_text": "a hi b", "details": details}
    assert (answer.headers["x-prompt-tokens"], answer.headers["x-generated-tokens"]) == ("5", "2")


@pytest.mark.parametrize("fitted", [False, True])
def test_a_text_that_was_cut_is_told(client, engine, fitted):
    async def script(request, work_id):
        last = blank(mask="[MASK]", text="hi", finish_reason="length", **HI)
        if request.stream:
            yield Begun(work_id, USAGE, fitted)
            yield BlankDone(work_id, 0, 0, last)
        yield ResultDone(work_id, replace(filled([last]), fitted=fitted))
        yield Done(work_id, USAGE)

    engine.script = script
    told = {"truncated": True} if fitted else {}
    assert client.post("/generate", json={"inputs": "a [MASK]"}).json() == {"generated_text": "hi", **told}
    *others, last = events(client.post("/generate_stream", json={"inputs": "a [MASK]"}))
    assert last.get("truncated", False) is fitted
    assert not any("truncated" in event for event in others)


def test_marks_that_are_read_as_text_are_told(client, engine):
    engine.script = fill_of(text="hi", **HI)
    marks = "<fim_prefix>a<fim_suffix>b<fim_middle>c"
    assert "starcoder" in client.post("/generate", json={"inputs": marks}).json()["warnings"][0]
    assert "starcoder" in events(client.post("/generate_stream", json={"inputs": marks}))[-1]["warnings"][0]
    assert "warnings" not in client.post("/generate", json={"inputs": "a"}).json()


def test_a_prompt_is_scored_beside_what_is_written(client, engine):
    engine.script = fill_of(text="hi", **HI, **END)
    asked = {"parameters": {"decoder_input_details": True}}
    answer = client.post("/generate", json={"inputs": "a", **asked}).json()
    assert answer["generated_text"] == "hi"
    assert answer["details"]["prefill"] == [{"id": 5, "text": "a", "logprob": -1.0}]
    fill, score = sorted(engine.asked, key=lambda request: request.kind)
    assert (fill.echo, fill.inputs) == (False, (("a",),))
    assert score == Score(text=("a",), priority="interactive", timeout_s=600.0)
    masked = client.post("/generate", json={"inputs": "a [MASK]", **asked})
    assert (masked.status_code, "decoder_input_details" in masked.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("ending", "texts", "reason"),
    [
        ({"text": "hi", **END}, ["h", "i", ""], "eos_token"),
        ({"text": "hi", "finish_reason": "length"}, ["h", "i"], "length"),
        ({"text": "hi", "stop_string": "i"}, ["h", "i"], "stop_sequence"),
    ],
)
def test_a_stream_has_an_event_for_each_token(client, engine, ending, texts, reason):
    """TGI leaves the stop string in the text, and its last event has the whole text."""

    async def script(request, work_id):
        last = blank(**{"finish_reason": "stop", **HI, "top_logprobs": [TOP[0], TOP[0]], **ending})
        yield Begun(work_id, USAGE, False)
        yield BlankDelta(work_id, 0, 0, 0, "h", [3, 4], [-0.25, -2.0], ["h", "i"], [TOP[0], TOP[0]], [0, 1])
        yield BlankDone(work_id, 0, 0, last)
        yield Done(work_id, USAGE)

    engine.script = script
    body = {"inputs": "a", "parameters": {"details": True, "top_n_tokens": 2}}
    found = events(client.post("/generate_stream", json=body))
    assert [event["token"]["text"] for event in found] == texts
    assert [event["index"] for event in found] == [*range(1, len(texts) + 1)]
    assert [event["generated_text"] for event in found] == [None] * (len(texts) - 1) + ["hi"]
    assert [t["id"] for t in found[0]["top_tokens"]] == [3, 4]
    details = {"finish_reason": reason, "generated_tokens": len(texts), "seed": None, "input_length": 5}
    assert [event["details"] for event in found] == [None] * (len(texts) - 1) + [details]


def test_a_stream_that_fails_ends_with_an_error(client, engine):
    async def script(request, work_id):
        yield Begun(work_id, USAGE, False)
        yield BlankDelta(work_id, 0, 0, 0, "h", [3], [-0.25], ["h"], None, [0])
        yield Failed(work_id, "deadline", "the time is over")

    engine.script = script
    found = events(client.post("/", json={"inputs": "a", "stream": True}))
    assert found[-1] == {"error": "the time is over", "error_type": "incomplete_generation"}


def test_tgi_s_info(client):
    info = client.get("/info").json()
    assert (info["model_id"], info["model_pipeline_tag"], info["router"]) == ("demo", "text-generation", "glm-infill")
    assert (info["max_input_tokens"], info["max_total_tokens"], info["max_best_of"]) == (512, 1024, 8)


def test_fields_that_nobody_reads_are_told_to_the_log(make_app, engine, capsys):
    engine.script = fill_of(text="hi", **HI, **END)
    with TestClient(make_app(log_level="info")) as client:
        client.post("/generate", json={"inputs": "a", "parameters": {"frobnicate": True}, "options": {}})
        client.post("/models/demo", json={"inputs": "[MASK]", "options": {}})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(line["route"], line["fields"]) for line in lines if line["event"] == "ignored fields"]
    assert told == [("/generate", ["frobnicate", "options"]), ("/models/{name}", ["options"])]


@pytest.mark.parametrize("path", ["/", "/generate"])
def test_an_error_names_the_field_of_the_client(client, engine, path):
    inputs = "<|fim_prefix|>a [MASK] [MASK]"
    answer = client.post(path, json={"inputs": inputs, "parameters": {"max_new_tokens": 3}})
    assert (answer.status_code, engine.asked) == (400, [])
    assert answer.json()["error"].startswith("inputs has 2 masks")
