"""The routes at the root that lm-evaluation-harness and llama.cpp's editors ask for tokens, and SGLang's scores."""

import math

import pytest

from engine.answers import Usage
from engine.events import Done, Failed, ResultDone
from engine.requests import Fill, Mask, Score, Tokens
from tests.answers import scored

USAGE = Usage(5, 2, 7, 0)


def test_what_a_harness_asks_of_a_tokenizer(client):
    info = client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<sop>", "<eop>", None)
    assert (info["model_max_length"], info["chat_template"]) == (512, None)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "ab c", "add_special_tokens": False}, [2, 1]),
        ({"prompt": "ab c", "model": "x"}, [2, 1]),
        ({"prompt": "ab c", "add_special_tokens": True}, [5, 2, 1]),
        ({"prompt": "<sop> ab", "add_special_tokens": True}, [5, 2]),
        ({"content": "ab c", "add_special": False, "parse_special": True}, [2, 1]),
        ({"content": "", "prompt": None}, []),
    ],
)
def test_both_words_for_a_text(client, body, tokens):
    answer = client.post("/tokenize", json=body).json()
    assert (answer["tokens"], answer["count"]) == (tokens, len(tokens))


@pytest.mark.parametrize("body", [{"prompt": "ab c"}, {"content": "ab c"}])
def test_tokens_are_spelled_as_llama_cpp_and_vllm_spell_them(client, body):
    """llama.cpp (tools/server/README.md, POST /tokenize): text, or bytes where a token is no whole character. vLLM
    (entrypoints, TokenizeResponse.token_strs): the vocabulary's own words."""
    answer = client.post("/tokenize", json={**body, "with_pieces": True}).json()
    assert answer["tokens"] == [{"id": 2, "piece": "B"}, {"id": 1, "piece": "A"}]
    assert answer["count"] == 2
    answer = client.post("/tokenize", json={**body, "return_token_strs": True}).json()
    assert (answer["tokens"], answer["token_strs"]) == ([2, 1], ["▁2", "▁1"])
    half = client.post("/tokenize", json={"content": "x" * 70, "with_pieces": True}).json()
    assert half["tokens"] == [{"id": 70, "piece": [195]}]
    assert "token_strs" not in client.post("/tokenize", json=body).json()


def test_the_native_route_gives_what_the_model_reads(client, engine, refused):
    body = {"text": "a [MASK] b"}
    assert client.post("/v1/tokenize", json=body).json() == {"tokens": [1, 6, 1], "count": 3}
    for layout, is_scored in (("fill", False), ("score", True)):
        answer = client.post("/v1/tokenize", json={**body, "layout": layout}).json()
        assert answer["layout"] == {
            "token_ids": [1, 2], "positions": [0, 1], "block_positions": [0, 0], "num_tokens": 5,
            "blanks": [{"mask": "[MASK]", "spaced": True, "start_token_id": 3, "position": 1, "block_position": 1,
                        "position_step": 0, "block_position_step": 1}],
        }  # fmt: skip
        assert engine.read_texts[-1] == (Fill((("a ", Mask("[MASK]"), " b"),), max_tokens=(1,)), is_scored)
    refused(client.post("/v1/tokenize", json={**body, "layout": "x"}), 400, "layout")
    refused(client.post("/v1/tokenize", json={"text": "[MASK]" * 65, "layout": "fill"}), 400, "text")


def test_both_words_for_the_text_of_tokens(client, refused):
    assert client.post("/detokenize", json={"tokens": [2, 6]}).json() == {"prompt": "2 6", "content": "2 6"}
    refused(client.post("/detokenize", json={"tokens": [100]}), 400, "tokens")
    refused(client.post("/detokenize", json={"tokens": [-1]}), 400, "tokens.0")
    refused(client.post("/tokenize", json={}), 400, "prompt")
    refused(client.post("/tokenize", json={"prompt": "a", "content": "b"}), 400, "prompt")


@pytest.mark.parametrize("path", ["/infill", "/tokenize", "/detokenize", "/v1/completions"])
def test_work_at_the_root_goes_through_the_gate(client, path):
    client.app.state.drain()
    assert client.post(path, json={}).status_code == 503


async def labels(request, work_id):
    for index in range(len(request.targets)):
        yield ResultDone(work_id, scored(index, -1.0 - index))
    yield Done(work_id, USAGE)


@pytest.mark.parametrize(
    ("body", "contexts"),
    [
        ({"query": "q ", "items": ["a [MASK]", "b"]}, [("q a [MASK]",), ("q b",)]),
        ({"query": "q", "items": "a", "item_first": True}, [("aq",)]),
        ({"query": [1, 2], "items": [[3], []]}, [(Tokens((1, 2, 3)),), (Tokens((1, 2)),)]),
    ],
)
def test_sglang_s_request_is_known_by_its_fields(client, engine, body, contexts):
    engine.script = labels
    answer = client.post("/v1/score", json={**body, "label_token_ids": [5, 6], "model": "demo"}).json()
    targets = (Tokens((5,)), Tokens((6,)))
    assert [(r.context, r.targets) for r in engine.asked] == [(context, targets) for context in contexts]
    assert all(isinstance(r, Score) for r in engine.asked)
    assert answer["scores"] == [[math.exp(-1), math.exp(-2)]] * len(contexts)
    assert (answer["object"], answer["model"], answer["token_logprobs"]) == ("scoring", "demo", None)
    counts = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert answer["usage"] == {name: count * len(contexts) for name, count in counts.items()}


def test_sglang_s_softmax_is_over_the_labels(client, engine):
    engine.script = labels
    body = {"query": "q", "items": ["a", "b"], "label_token_ids": [[5, 6, 7], [8]], "apply_softmax": True}
    answer = client.post("/v1/score", json={**body, "temperature": 2, "return_token_logprobs": True}).json()
    weights = [math.exp(-(1 + n) / 2) for n in range(3)]
    assert answer["scores"][0] == pytest.approx([w / sum(weights) for w in weights])
    assert answer["scores"][1] == [1.0]
    assert answer["token_logprobs"] == [[-1.0, -2.0, -3.0], [-1.0]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text_1": "a", "text_2": "b"}, "text_1"),
        ({"queries": "a", "documents": ["b"]}, "documents"),
        ({"query": "a", "documents": ["b"]}, "documents"),
        ({"query": "a", "items": ["b"]}, "label_token_ids"),
        ({"query": "a", "items": [[1]], "label_token_ids": [1]}, "items"),
        ({"query": "a", "items": [], "label_token_ids": [1]}, "items"),
        ({"query": "a", "items": ["b"], "label_token_ids": []}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": [[1], [2]]}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": [-1]}, "label_token_ids.0"),
        ({"query": "a", "items": ["b"] * 65, "label_token_ids": [1]}, "items"),
        ({"query": "a", "items": ["b"], "label_token_ids": [1], "text": "c"}, "text"),
    ],
)
def test_other_scores_are_refused_by_name(client, engine, refused, body, param):
    refused(client.post("/v1/score", json=body), 400, param)
    assert engine.asked == []


def test_one_item_that_fails_ends_all(client, engine, refused):
    async def script(request, work_id):
        if request.context == ("qb",):
            yield Failed(work_id, "invalid", "no such token", "targets")
        else:
            async for event in labels(request, work_id):
                yield event

    engine.script = script
    body = {"query": "q", "items": ["a", "b", "c"], "label_token_ids": [99]}
    error = refused(client.post("/v1/score", json=body), 400, "label_token_ids")
    assert error["message"] == "item 1: no such token"
    assert engine.num_open == 0
