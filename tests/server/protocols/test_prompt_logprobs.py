"""vLLM's `prompt_logprobs` and `logprob_token_ids` of completions: shapes and refusals of its
entrypoints/openai/completion/protocol.py."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from engine.answers import Alternative, FillResult
from engine.events import Done, ResultDone
from tests.server.protocols.test_completions import ECHO, USAGE, one

RANKED = replace(ECHO, ranks=[4, 3, 1])
OTHERS = [Alternative(8, "x", -3.0), Alternative(9, "y", -math.inf)]
TEXT = "And he said unto him, What is thy name?"
ROUTES = ["/v1/completions", "/beta/completions"]


async def scores(request, work_id):
    blank = one("no", -1.0, top_logprobs=[OTHERS] if request.logprob_token_ids else [[]])
    yield ResultDone(work_id, FillResult(0, 0, "", 0.0, [blank], RANKED if request.echo else None))
    yield Done(work_id, USAGE)


@pytest.fixture(autouse=True)
def script(engine):
    engine.script = scores


@pytest.mark.parametrize("path", ROUTES)
def test_each_token_of_the_prompt_has_an_object_by_id(client, engine, path):
    choice = client.post(path, json={"prompt": "a b c", "prompt_logprobs": 1}).json()["choices"][0]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "4": {"logprob": -1.5, "rank": 3, "decoded_token": " b"},
            "9": {"logprob": -0.5, "rank": 1, "decoded_token": " x"},
        },
        {"5": {"logprob": -2.5, "rank": 1, "decoded_token": " c"}},
    ]
    # The prompt is scored, and neither in the text nor in `logprobs`.
    assert (choice["text"], choice["logprobs"]) == ("no", None)
    assert choice["glm"] == {"first_token_logprob": -0.25}
    (fill,) = engine.asked
    assert (fill.echo, fill.prompt_logprobs, fill.logprobs, fill.inputs) == (True, 1, None, (("a b c",),))


def test_an_answer_without_it_has_no_such_field(client, engine):
    choice = client.post("/v1/completions", json={"prompt": "a", "echo": True, "logprobs": 1}).json()["choices"][0]
    assert "prompt_logprobs" not in choice
    assert engine.asked[0].prompt_logprobs is None


def test_none_but_the_token_itself_and_beside_logprobs(client):
    body = {"prompt": "a b c", "prompt_logprobs": 0, "logprobs": 0, "max_tokens": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert [None if place is None else list(place) for place in choice["prompt_logprobs"]] == [None, ["4"], ["5"]]
    assert choice["logprobs"]["tokens"] == ["no"]


def test_an_echo_has_as_many_alternatives_as_logprobs_says(client):
    body = {"prompt": "a b c", "prompt_logprobs": 1, "logprobs": 0, "echo": True}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "a b cno"
    assert choice["logprobs"]["top_logprobs"] == [None, {" b": -1.5}, {" c": -2.5}, {"no": -1.0}]
    assert len(choice["prompt_logprobs"][1]) == 2
    alone = client.post("/v1/completions", json={"prompt": "a b c", "prompt_logprobs": 0, "echo": True}).json()
    assert (alone["choices"][0]["text"], alone["choices"][0]["logprobs"]) == ("a b cno", None)


@pytest.mark.parametrize("as_ids", [False, True])
def test_the_asked_tokens_stand_beside_each_written_one(client, engine, as_ids):
    body = {"prompt": "a", "logprobs": 2, "logprob_token_ids": [8, 9], "return_tokens_as_token_ids": as_ids}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    named = ["token_id:8", "token_id:9", "token_id:7"] if as_ids else ["x", "y", "no"]
    assert choice["logprobs"]["top_logprobs"] == [dict(zip(named, [-3.0, -9999.0, -1.0], strict=True))]
    assert engine.asked[0].logprob_token_ids == (8, 9)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": "x"}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "suffix": "b"}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "guided_regex": "a"}, "guided_regex"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [], "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [-1], "logprobs": 1}, "logprob_token_ids.0"),
        ({"logprob_token_ids": list(range(129)), "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [1], "logprobs": 1, "echo": True, "max_tokens": 0}, "logprob_token_ids"),
    ],
)
def test_what_has_no_place_is_refused_by_name(client, engine, refused, asked, param):
    for path in ROUTES:
        refused(client.post(path, json={"prompt": "a", **asked}), 400, param)
    assert not engine.asked


@pytest.fixture(scope="module")
def openai_client(demo_url: str) -> Iterator[openai.OpenAI]:
    """The bundled demo's; what OpenAI does not have goes by `extra_body`."""
    with openai.OpenAI(base_url=f"{demo_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, extra: dict[str, Any], **fields: Any) -> Any:
    body: dict[str, Any] = {"model": "", "prompt": TEXT, "max_tokens": 1, "temperature": 0, **fields}
    return client.completions.create(**body, extra_body=extra).choices[0]


def test_the_numbers_are_those_of_an_echo(openai_client: openai.OpenAI) -> None:
    choice = ask(openai_client, {"prompt_logprobs": 20})
    echo = ask(openai_client, {}, echo=True, logprobs=20)
    places, size = choice.prompt_logprobs, len(choice.prompt_logprobs)
    assert echo.text == TEXT + choice.text
    assert places[0] is None
    own = [next(iter(place.values())) for place in places[1:]]
    assert [entry["logprob"] for entry in own] == echo.logprobs.token_logprobs[1:size]
    assert [entry["decoded_token"] for entry in own] == echo.logprobs.tokens[1:size]
    for place, entry in zip(places[1:], own, strict=True):
        ranked = sorted(place.values(), key=lambda e: e["rank"])
        assert [e["rank"] for e in ranked[:20]] == list(range(1, 21))
        assert [e["logprob"] for e in ranked] == sorted((e["logprob"] for e in ranked), reverse=True)
        assert (len(place) == 20) == (entry["rank"] <= 20)


def test_a_prompt_that_is_only_scored(openai_client: openai.OpenAI) -> None:
    scored = ask(openai_client, {"prompt_logprobs": 1}, max_tokens=0)
    assert scored.text == ""
    assert scored.prompt_logprobs == ask(openai_client, {"prompt_logprobs": 1}).prompt_logprobs


def test_asked_tokens_have_the_numbers_of_the_best(openai_client: openai.OpenAI, demo_url: str) -> None:
    named = {"return_tokens_as_token_ids": True}
    best = ask(openai_client, named, logprobs=4, max_tokens=3).logprobs.top_logprobs
    ids = [int(name.removeprefix("token_id:")) for name in best[0]]
    extra = {**named, "logprob_token_ids": ids}
    asked = ask(openai_client, extra, logprobs=0, max_tokens=3).logprobs.top_logprobs
    assert asked[0] == best[0]
    assert all({f"token_id:{i}" for i in ids} <= set(place) for place in asked)
    streamed = httpx.post(
        f"{demo_url}/v1/completions",
        json={"prompt": TEXT, "max_tokens": 1, "temperature": 0, "logprobs": 0, "stream": True, **extra},
    )
    assert f'"token_id:{ids[-1]}":' in streamed.text


def test_a_prompt_too_long_and_an_unknown_id_are_refused(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        ask(openai_client, {"prompt_logprobs": 0}, prompt="word " * 3000)
    assert (long.value.param, long.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as unknown:
        ask(openai_client, {"logprob_token_ids": [10**8]}, logprobs=0)
    assert unknown.value.param == "logprob_token_ids"
