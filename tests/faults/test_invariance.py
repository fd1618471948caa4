"""Fault 24: a score is the same alone, in a crowd, shuffled, packed, apart and cached; over HTTP, to the bit."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.faults.conftest import Server

CANDIDATES = [["red boat"], ["old cat"], ["bird"], ["tin fish under"], ["river near"]]
SCORE = {"text": "the [MASK] sang under the hill", "spans": CANDIDATES, "include_end": True, "logprobs": 3}
FILL = {"text": "the [MASK] saw the [MASK]", "max_tokens": 8, "logprobs": 3}


def spans(answer: Any) -> dict[str, Any]:
    return {r["spans"][0]["text"]: (r["logprob"], r["spans"][0]["token_logprobs"]) for r in answer["results"]}


@pytest.fixture
def cramped(launch: Callable[..., Server]) -> Server:
    # So small a cache that contexts are dropped and sequences preempted.
    return launch(quant="int8", kv_cache_gb=0.0012)


def test_the_same_bits_alone_and_under_64_fold_mixed_load(cramped: Server) -> None:
    score, fill = cramped.post("/v1/score", SCORE).json(), cramped.post("/v1/infill", FILL).json()
    again = cramped.post("/v1/score", SCORE).json()
    assert again["usage"]["cached_tokens"] > score["usage"]["cached_tokens"]
    assert spans(again) == spans(score)
    draw = random.Random(5)

    def one(number: int) -> tuple[str, Any]:
        kind = ("score", "fill", "long", "apart")[number % 4]
        if kind == "score":
            shuffled = draw.sample(CANDIDATES, len(CANDIDATES))
            return kind, cramped.post("/v1/score", {**SCORE, "spans": shuffled}).json()
        if kind == "apart":
            return kind, cramped.post("/v1/score", {**SCORE, "spans": [CANDIDATES[number // 4 % 5]]}).json()
        if kind == "fill":
            return kind, cramped.post("/v1/infill", FILL).json()
        words = " ".join(draw.choices("the red old cat bird boat river hill".split(), k=draw.randint(5, 120)))  # noqa: SIM905
        # Several samples of one request are in the batch together, however slow the clients are.
        body = {"text": f"{words} [MASK]", "max_tokens": 40, "min_tokens": 40, "temperature": 1.0, "n": 8}
        return kind, cramped.post("/v1/infill", body).json()

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(256)))
    for kind, answer in answers:
        assert "error" not in answer, answer
        if kind in ("score", "apart"):
            found, expected = spans(answer), spans(score)
            assert found == {text: expected[text] for text in found}
        elif kind == "fill":
            assert answer["results"] == fill["results"]
    assert cramped.metric("context_cache_hits_total") > 0
    assert cramped.metric("preemptions_total") > 0
