"""vLLM's scores: what they become for the engine, and what is made of its log-probabilities."""

import math

import httpx
import pytest

from engine.answers import Usage
from engine.events import Done, ResultDone
from engine.requests import Mask, Score, Tokens
from tests.answers import scored

USAGE = Usage(5, 2, 7)


async def labels(request, work_id):
    for index, _ in enumerate(request.targets):
        yield ResultDone(work_id, scored(index, -1.0 - index))
    yield Done(work_id, USAGE)


@pytest.mark.parametrize(
    ("body", "contexts"),
    [
        ({"query": "q ", "items": ["a", "b"]}, [("q ", "a"), ("q ", "b")]),
        ({"query": "q", "items": ["a"], "item_first": True}, [("a", "q")]),
        ({"query": "q [MASK].", "items": [" a"]}, [("q ", Mask("[MASK]"), ".", " a")]),
        ({"query": [1, 2], "items": [[3], []]}, [(Tokens((1, 2)), Tokens((3,))), (Tokens((1, 2)), Tokens(()))]),
    ],
)
def test_query_and_item_are_tokenized_apart(client, engine, body, contexts):
    """vllm/entrypoints/generate/generative_scoring/serving.py, _build_prompts."""
    engine.script = labels
    asked = {**body, "label_token_ids": [5, 6, 5], "model": "demo", "priority": 3}
    answer = client.post("/generative_scoring", json=asked).json()
    targets = (Tokens((5,)), Tokens((6,)))
    assert [(r.context, r.targets, r.priority) for r in engine.asked] == [(c, targets, "interactive") for c in contexts]
    assert (answer["object"], answer["model"]) == ("list", "demo")
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(n, "score") for n in range(len(contexts))]
    counts = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert answer["usage"] == {name: count * len(contexts) for name, count in counts.items()}


def test_a_score_is_the_first_label_s_share_or_its_probability(client, engine):
    """docs.vllm.ai, Generative Scoring: P(label 0) over the sum of all labels, which is the default, or P itself."""
    engine.script = labels
    body = {"query": "q", "items": ["a"], "label_token_ids": [5, 6]}
    share = client.post("/generative_scoring", json=body).json()["data"][0]["score"]
    assert share == pytest.approx(math.exp(-1) / (math.exp(-1) + math.exp(-2)))
    alone = client.post("/generative_scoring", json={**body, "apply_softmax": False}).json()["data"][0]["score"]
    assert alone == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (("/generative_scoring", {"items": ["a"], "label_token_ids": [1]}), "query"),
        (("/generative_scoring", {"query": "a", "items": [], "label_token_ids": [1]}), "items"),
        (("/generative_scoring", {"query": "a", "items": ["a"], "label_token_ids": []}), "label_token_ids"),
        (("/generative_scoring", {"query": "a", "items": ["a"], "label_token_ids": [-1]}), "label_token_ids.0"),
        (("/generative_scoring", {"query": "a", "items": ["a", [1]], "label_token_ids": [1]}), "items.1"),
        (("/generative_scoring", {"query": "a", "items": ["a"] * 65, "label_token_ids": [1]}), "items"),
        (("/rerank", {"query": "", "documents": ["a"]}), "query"),
        (("/rerank", {"query": "a", "documents": []}), "documents"),
        (("/rerank", {"query": "a", "documents": ["a"] * 65}), "documents"),
        (("/v1/rerank", {"query": "a", "documents": [{"txt": "a"}]}), "documents.0.text"),
        (("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}), "top_n"),
        (("/v1/rerank", {"query": "a", "documents": ["a"], "truncate_prompt_tokens": 9}), "truncate_prompt_tokens"),
        (("/v1/rerank", {"query": "a", "documents": ["a"], "model": "other"}), "model"),
    ],
)
def test_bad_bodies_name_the_field(client, engine, refused, asked, param):
    path, body = asked
    refused(client.post(path, json=body), 404 if param == "model" else 400, param)
    assert not engine.asked


async def likelihood(request, work_id):
    (document,) = request.context
    logprob = {"near\n": -2.0, "far\n": -6.0, "next\n": -4.0}[document]
    yield ResultDone(work_id, scored(0, logprob))
    yield Done(work_id, USAGE)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_documents_are_ranked_by_the_likelihood_of_the_query(client, engine, path):
    engine.script = likelihood
    body = {"query": "q", "documents": ["far", {"text": "near"}, "next"], "top_n": 2}
    answer = client.post(path, json=body).json()
    assert [(r["index"], r["document"]["text"]) for r in answer["results"]] == [(1, "near"), (2, "next")]
    assert [r["relevance_score"] for r in answer["results"]] == [math.exp(-2), math.exp(-4)]
    assert answer["usage"] == {"prompt_tokens": 15, "completion_tokens": 6, "total_tokens": 21}
    assert engine.asked[0] == Score(context=("far\n",), targets=("q",), priority="interactive", timeout_s=600.0)
    short = client.post(path, json={**body, "return_documents": False, "top_n": None}).json()["results"]
    assert [set(r) for r in short] == [{"index", "relevance_score", "glm"}] * 3


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/generative_scoring"])
def test_it_is_work(client, path):
    client.app.state.drain()
    assert client.post(path, json={}).status_code == 503


def test_the_likelihood_is_that_of_a_score(demo_url: str) -> None:
    query, documents = "What is his name?", ["And he said unto him, What is thy name?", "The sea was blue."]
    answer = httpx.post(f"{demo_url}/rerank", json={"query": query, "documents": documents}, timeout=60).json()
    for result in answer["results"]:
        body = {"context": f"{documents[result['index']]}\n", "target": query}
        score = httpx.post(f"{demo_url}/v1/score", json=body, timeout=60).json()["results"][0]
        assert result["glm"]["logprob"] == score["logprob"]
        assert result["relevance_score"] == pytest.approx(1 / score["perplexity"])
    assert answer["results"][0]["index"] == 0


def test_labels_have_the_probabilities_of_sglang_s(demo_url: str) -> None:
    # A space keeps the tokens of the two parts apart in either way.
    body = {"query": "The capital of France", "items": [" is", " was"], "label_token_ids": [260, 279, 300]}
    theirs = httpx.post(f"{demo_url}/v1/score", json={**body, "apply_softmax": True}, timeout=60).json()["scores"]
    ours = httpx.post(f"{demo_url}/generative_scoring", json=body, timeout=60).json()["data"]
    assert [item["score"] for item in ours] == pytest.approx([row[0] for row in theirs])
