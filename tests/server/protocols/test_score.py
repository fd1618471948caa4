"""What `/v1/score` answers, and which forms it takes."""

import json
from dataclasses import replace

import pytest

from engine.requests import Mask, Score

TEXT = ("a ", Mask("[MASK]"))


def test_answer_has_the_fields_of_the_contract(client):
    body = client.post("/v1/score", json={"text": "a [MASK]", "spans": [["b"], ["c"]]}).json()
    assert list(body) == ["id", "object", "created", "model", "results", "best", "probabilities", "usage"]
    assert [result["index"] for result in body["results"]] == [0, 1]
    assert body["object"] == "score"


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"text": "a [MASK]", "spans": ["b"]}, Score(text=TEXT, spans=(("b",),))),
        ({"text": "a [MASK]", "spans": [["b"], ["c"]]}, Score(text=TEXT, spans=(("b",), ("c",)))),
        ({"context": "a [MASK]", "target": "b"}, Score(context=TEXT, targets=("b",))),
        ({"context": "a", "targets": ["b", "c"]}, Score(context=("a",), targets=("b", "c"))),
        ({"text": "a"}, Score(text=("a",))),
        ({"sentence_a": "a", "sentence_b": "[MASK]"}, Score(sentence_a="a", sentence_b="[MASK]")),
        ({"text": "a", "orders": "all"}, Score(text=("a",), orders="all")),
        ({"text": "a", "orders": 3, "seed": 1}, Score(text=("a",), orders=3, seed=1)),
        ({"text": "a", "orders": [[1, 0]]}, Score(text=("a",), orders=((1, 0),))),
        ({"text": "a", "normalize": "token", "include_end": True, "logprobs": 2, "priority": "interactive"},
         Score(text=("a",), normalize="token", include_end=True, logprobs=2, priority="interactive")),
        ({"text": "a", "pll": "word_l2r", "words": True}, Score(text=("a",), pll="word_l2r", words=True)),
        ({"text": "a", "end_logprobs": False}, Score(text=("a",), end_logprobs=False)),
    ],
)  # fmt: skip
def test_every_form_reaches_the_engine(client, engine, body, asked):
    response = client.post("/v1/score", json={**body, "timeout_s": 1})
    assert response.status_code == 200, response.text
    assert engine.asked == [replace(asked, timeout_s=1.0)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"text": "a", "context": "b", "target": "c"}, None),
        ({"context": "b", "target": "c", "targets": ["d"]}, None),
        ({"sentence_a": "a"}, None),
        ({"spans": ["a"]}, None),
        ({"text": "a [MASK]"}, "spans"),
        ({"text": "a", "spans": ["b"]}, "text"),
        ({"text": "a [MASK]", "spans": []}, "spans"),
        ({"text": "a [MASK]", "spans": [[]]}, "spans.0"),
        ({"text": "a [MASK]", "spans": ["b", "c"]}, "spans"),
        ({"text": "a [MASK]", "spans": ["see [gMASK]"]}, "spans"),
        ({"text": "a [MASK]", "spans": [["b"], "c"]}, "spans.1"),
        ({"text": "a [MASK]", "spans": [["b"]] * 16_385}, "spans"),
        ({"text": "[MASK]" * 65, "spans": ["b"] * 65}, "text"),
        ({"text": "[MASK]" * 6, "spans": ["b"] * 6, "orders": "all"}, "orders"),
        ({"text": "[MASK]" * 64, "spans": ["b"] * 64, "orders": "all"}, "orders"),
        ({"text": "a", "orders": 121}, "orders"),
        ({"text": "a", "orders": 0}, "orders"),
        ({"text": "a", "orders": True}, "orders"),
        ({"text": "a", "orders": "some"}, "orders"),
        ({"text": "a", "orders": [[]]}, "orders.0"),
        ({"context": "a", "target": "[MASK]"}, "target"),
        ({"context": "a", "targets": ["b", "[sMASK]"]}, "targets"),
        ({"context": "a", "targets": []}, "targets"),
        ({"text": "a", "normalize": "word"}, "normalize"),
        ({"text": "a", "pll": "within_word_l2r"}, "pll"),
        ({"text": "a", "words": "yes"}, "words"),
        ({"text": "a", "stream": 2}, "stream"),
        ({"text": ["a"]}, "text"),
    ],
)
def test_bad_bodies_are_400_and_name_the_field(client, engine, refused, body, param):
    error = refused(client.post("/v1/score", json=body), 400, param)
    if param is None:
        assert "sentence_a and sentence_b" in error["message"]
    assert not engine.asked


def test_a_stream_has_an_event_for_each_result_and_the_rest_at_its_end(client, engine):
    body = {"text": "a [MASK]", "spans": [["b"], ["c"]]}
    whole = client.post("/v1/score", json=body).json()
    answer = client.post("/v1/score", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [frame.split("\n") for frame in answer.text.strip().split("\n\n")]
    assert [name for name, _ in events] == ["event: result.done", "event: result.done", "event: done"]
    *results, done = (json.loads(data.removeprefix("data: ")) for _, data in events)
    assert sorted(results, key=lambda result: result["index"]) == whole["results"]  # they come in any order
    assert {**done, "results": whole["results"], "id": 0, "created": 0} == {**whole, "id": 0, "created": 0}
    assert engine.asked[-1].stream
