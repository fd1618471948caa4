"""Ollama's routes: what the engine is asked, and what its events and the model's card become."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.answers import Alternative, FillResult, Usage
from engine.events import AdapterCard, Begun, BlankDelta, BlankDone, Done, Event, Failed, ResultDone
from engine.requests import Fill, JsonSchema, Mask, Request, Sampling
from tests.answers import blank

PATH = "/api/generate"
USAGE = Usage(5, 2, 7)
BODY: dict[str, Any] = {"model": "demo", "prompt": "a ", "suffix": " z"}
TOPS = [[Alternative(9, "x", -0.5)], []]
TIMES = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


async def writes(request: Request, work_id: str) -> AsyncIterator[Event]:
    assert isinstance(request, Fill)
    tops = None if request.logprobs is None else TOPS
    whole = blank(
        text="one", token_ids=[7, 8], tokens=["o", "ne"], token_logprobs=[-1.0, -2.0], top_logprobs=tops,
        finish_reason="stop",
    )  # fmt: skip
    if request.stream:
        yield Begun(work_id, USAGE, True)
        yield BlankDelta(work_id, 0, 0, 0, "one", [7], [-1.0], ["o"], tops and tops[:1])
        yield BlankDone(work_id, 0, 0, whole)
    yield ResultDone(work_id, FillResult(0, 0, "", 0.0, [whole], fitted=True))
    yield Done(work_id, USAGE, first_token_s=1e-6)


@pytest.fixture(autouse=True)
def script(engine):
    engine.script = writes


def lines(response):
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_options_are_ollama_s(client, engine):
    options = {
        "num_predict": 9, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "repeat_penalty": 1.5,
        "presence_penalty": 1, "stop": ["q"], "seed": 7, "num_ctx": 4096,
    }  # fmt: skip
    assert client.post(PATH, json={**BODY, "options": options, "keep_alive": "5m", "raw": True}).status_code == 200
    assert engine.asked == [
        Fill(
            inputs=(("a ", Mask("[MASK]"), " z"),),
            max_tokens=(9,),
            sampling=Sampling(
                0.5,
                3,
                0.5,
                0.2,
                {"repetition_penalty": 1.5, "presence_penalty": 1},
                stop=("q",),
                seed=7,
                repeat_last_n=64,
            ),
            stream=True,
            fit=True,
            timeout_s=600.0,
        )
    ]


def test_an_answer_is_json_if_its_format_says_so(client, engine):
    for given, schema in (("json", '{"type":"object"}'), ({"type": "null"}, '{"type":"null"}')):
        assert client.post(PATH, json={**BODY, "format": given}).status_code == 200
        assert engine.asked[-1].regex == (JsonSchema(schema),)
    assert client.post(PATH, json={**BODY, "format": "", "options": {"repeat_last_n": -1}}).status_code == 200
    assert (engine.asked[-1].regex, engine.asked[-1].sampling.repeat_last_n) == ((), 2**31 - 1)


def test_without_options_its_defaults_hold(client, engine):
    client.post(PATH, json={**BODY, "options": {"seed": -1, "num_predict": -2, "top_k": -1}})
    client.post(PATH, json={"prompt": "a"})
    assert engine.asked[0].sampling == Sampling(0.8, 0, 0.9, rules={"repetition_penalty": 1.1}, repeat_last_n=64)
    assert engine.asked[1].sampling == Sampling(0.8, 40, 0.9, rules={"repetition_penalty": 1.1}, repeat_last_n=64)
    assert [fill.max_tokens for fill in engine.asked] == [(512,), (512,)]


@pytest.mark.parametrize(
    ("body", "segments"),
    [
        ({"prompt": "a ", "options": {"suffix": " z"}}, ("a ", Mask("[MASK]"), " z")),  # as LiteLLM sends it
        ({"prompt": "a ", "suffix": ""}, ("a ",)),
        ({"prompt": "a [MASK] z"}, ("a ", Mask("[MASK]"), " z")),
        ({"suffix": "z"}, ("", Mask("[MASK]"), "z")),
    ],
)
def test_a_blank_is_made_of_what_there_is(client, engine, body, segments):
    assert client.post(PATH, json=body).status_code == 200
    assert engine.asked[0].inputs == (segments,)


def test_an_answer_in_one_piece(client):
    answer = client.post(PATH, json={**BODY, "model": "demo:latest", "stream": False}).json()
    assert all(answer.pop(time) >= 0 for time in TIMES)
    assert answer.pop("created_at").endswith("Z")
    assert answer == {
        "model": "demo", "response": "one", "done": True, "done_reason": "stop", "truncated": True,
        "prompt_eval_count": 5, "eval_count": 2,
    }  # fmt: skip


def test_lines_are_what_comes_unless_something_else_is_said(client):
    first, last = lines(client.post(PATH, json=BODY))
    assert (first["response"], first["done"], first["model"]) == ("one", False, "demo")
    assert (last["response"], last["done"], last["done_reason"], last["truncated"]) == ("", True, "stop", True)
    assert (last["prompt_eval_count"], last["eval_count"]) == (5, 2)
    assert last["prompt_eval_duration"] + last["eval_duration"] == last["total_duration"]


def test_log_probabilities(client):
    body = {**BODY, "logprobs": True, "top_logprobs": 1}
    whole = client.post(PATH, json={**body, "stream": False}).json()["logprobs"]
    assert [(t["token"], t["logprob"]) for t in whole] == [("o", -1.0), ("ne", -2.0)]
    assert [t["token"] for t in whole[0]["top_logprobs"]] == ["x"]
    assert [t for line in lines(client.post(PATH, json=body)) for t in line["logprobs"]] == whole


def test_nothing_to_read_says_that_the_model_is_loaded(client, engine):
    answer = client.post(PATH, json={"model": "demo"}).json()
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, "load")
    assert not engine.asked


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({**BODY, "model": "other"}, 404, "no such model is loaded; there is only 'demo'"),
        ({**BODY, "options": {"temperature": -1}}, 400, "options.temperature: "),
        ({**BODY, "options": []}, 400, "options: "),
        ({**BODY, "format": "yaml"}, 400, "format: Input should be 'json' or ''"),
        ({**BODY, "images": ["aGk="]}, 400, "images: this model does not support it"),
        ({**BODY, "think": True}, 400, "think: this model does not support it"),
        ({**BODY, "top_logprobs": 21}, 400, "top_logprobs is 21; the limit is 20"),
    ],
)
def test_an_error_is_one_text(client, engine, body, status, text):
    response = client.post(PATH, json=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(text)
    assert not engine.asked


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/api/embed", 404), ("GET", PATH, 405)])
def test_errors_of_the_router_are_one_text_too(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)


def test_a_late_failure_is_the_last_line(client, engine):
    async def fails(request: Request, work_id: str) -> AsyncIterator[Event]:
        yield BlankDelta(work_id, 0, 0, 0, "o", [7], [-1.0])
        yield Failed(work_id, "error", "/secret")

    engine.script = fails
    first, last = lines(client.post(PATH, json=BODY))
    assert first["response"] == "o"
    assert last["error"].startswith("internal error; quote request id ")


def test_silence_is_filled_with_lines_that_a_client_can_read(make_client, engine):
    async def slow(request: Request, work_id: str) -> AsyncIterator[Event]:
        yield Begun(work_id, USAGE, False)
        await asyncio.sleep(0.1)
        async for event in writes(request, work_id):
            yield event

    engine.script = slow
    found = lines(make_client(heartbeat_seconds=0.02).post(PATH, json=BODY))
    assert len(found) > 3
    assert "".join(line["response"] for line in found) == "one"


def test_a_body_without_a_content_type_is_read_unless_a_page_sent_it(client):
    body = json.dumps({**BODY, "stream": False}).encode()
    assert client.post(PATH, content=body).status_code == 200  # as LiteLLM sends it
    assert client.post("/api/show", content=b"{}").status_code == 200
    as_form = {"content-type": "application/x-www-form-urlencoded"}  # as `curl -d` in Ollama's own documentation
    assert client.post(PATH, content=body, headers=as_form).status_code == 200
    assert client.post(PATH, content=body, headers={**as_form, "origin": "http://testserver"}).status_code == 415
    assert client.post(PATH, content=body, headers={**as_form, "sec-fetch-site": "same-origin"}).status_code == 415
    assert client.post("/v1/fim/completions", content=body, headers=as_form).status_code == 415
    assert client.post(PATH, content=body, headers={"sec-fetch-site": "same-origin"}).status_code == 415
    assert client.post(PATH, content=body, headers={"origin": "http://testserver"}).status_code == 415
    assert client.post(PATH, content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/v1/fim/completions", content=body).status_code == 415


def test_models_are_listed_with_their_adapters(client, engine):
    engine.adapters = [AdapterCard("verse", "lora", 1)]
    for path in ("/api/tags", "/api/ps"):
        models = client.get(path).json()["models"]
        assert [(m["name"], m["details"]["parent_model"]) for m in models] == [("demo", ""), ("verse", "demo")]
        assert models[0]["modified_at"] == "1970-01-01T00:00:01Z"
        assert len({m["digest"] for m in models}) == 2
    client.post(PATH, json={**BODY, "model": "verse:latest"})
    assert engine.asked[0].adapter == "verse"


def test_every_name_of_the_model_is_listed_with_the_size_of_its_weights(client, engine):
    engine.changes = {"aliases": ["org/other"], "weight_bytes": 1234}
    engine.adapters = [AdapterCard("verse", "lora", 1)]
    for path in ("/api/tags", "/api/ps"):
        models = client.get(path).json()["models"]
        assert [(m["name"], m["model"], m["size"]) for m in models] == [
            ("demo", "demo", 1234), ("org/other", "org/other", 1234), ("verse", "verse", 1234),
        ]  # fmt: skip
        assert len({m["digest"] for m in models[:2]}) == 2
    assert client.post("/api/show", json={"model": "org/other"}).status_code == 200


@pytest.mark.parametrize("body", [{"model": "demo"}, {"name": "demo:latest"}])
def test_a_model_shows_that_it_takes_a_suffix(client, body):
    shown = client.post("/api/show", json=body).json()
    assert ".Suffix" in shown["template"]
    assert shown["capabilities"] == ["completion", "insert"]
    assert shown["model_info"]["general.architecture"] == "glm"
    assert shown["model_info"]["glm.context_length"] == 512


def test_a_model_that_cannot_insert_shows_it(client, engine):
    engine.changes = {"masks": ["[gMASK]"]}
    shown = client.post("/api/show", json={"model": "demo"}).json()
    assert (".Suffix" in shown["template"], shown["capabilities"]) == (False, ["completion"])
    assert client.post(PATH, json=BODY).status_code == 400


def test_an_unknown_model_is_not_shown(client):
    assert client.post("/api/show", json={"model": "other"}).status_code == 404


def test_the_version_is_one_with_log_probabilities(client):
    version = client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 11)


def test_a_field_is_called_as_the_client_calls_it(client, engine):
    async def refuses(request: Request, work_id: str) -> AsyncIterator[Event]:
        yield Failed(work_id, "invalid", "max_tokens is 9; the limit is 8", "max_tokens", "invalid_value")

    engine.script = refuses
    answer = client.post(PATH, json={**BODY, "stream": False})
    assert (answer.status_code, answer.json()) == (400, {"error": "options.num_predict is 9; the limit is 8"})
