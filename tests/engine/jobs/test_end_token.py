"""Where the end token counts: the table of docs/scoring.md, number by number.

That sums of beams are transformers' is tests/engine/jobs/test_beams.py's to say; here the fields of one fill agree.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.requests import Fill, Sampling, Score
from tests.engine.test_engine import TWO, results, segments

ONE = "one day the [MASK] came over the hill"


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), quant="int8", kv_cache_gb=0.01, block_size=4))


def scored(engine: Engine, text: str, *spans: str, include_end: bool = False) -> dict[str, Any]:
    (result,) = results(engine.run(Score(text=segments(text), spans=(spans,), include_end=include_end)))
    return result


FILLS = {
    "greedy": Fill((segments(ONE),), (12,)),
    "drawn": Fill((segments(ONE),), (12,), sampling=Sampling(temperature=1.0, seed=3), n=4),
    "beams": Fill((segments(ONE),), (6,), num_beams=4, n=4),
    "choices": Fill((segments(ONE),), choices=(("old cat", "red", "red boat"),)),
    "several blanks": Fill((segments(TWO),), (3,), choices=(("old cat", "red"), ("sang", "boat"))),
}


@pytest.mark.parametrize("name", FILLS)
def test_logprob_of_a_fill_is_that_of_its_score_and_the_end_is_apart(engine: Engine, name: str) -> None:
    for result in results(engine.run(FILLS[name])):
        for blank in result["blanks"]:
            assert blank["logprob"] == pytest.approx(math.fsum(blank["token_logprobs"]), abs=1e-9)
            assert (blank["end_logprob"] is None) == (blank["finish_reason"] == "length")
        assert result["logprob"] == pytest.approx(sum(b["logprob"] for b in result["blanks"]), abs=1e-9)
        texts = [b["text"] for b in result["blanks"]]
        if any(
            engine.tokenizer.encode(f" {b['text']}") != b["token_ids"] or not b["token_ids"] for b in result["blanks"]
        ):
            continue  # another spelling of the same text is another span
        again = scored(engine, TWO if len(texts) > 1 else ONE, *texts)
        assert again["logprob"] == pytest.approx(result["logprob"], abs=1e-6)
        assert again["num_tokens"] == sum(len(b["token_ids"]) for b in result["blanks"])


def test_with_the_end_a_score_is_a_choice_s_worth_and_a_beam_s(engine: Engine) -> None:
    (choice,) = results(engine.run(FILLS["choices"]))
    (blank,) = choice["blanks"]
    worth = [scored(engine, ONE, text, include_end=True)["logprob"] for text in ("old cat", "red", "red boat")]
    assert blank["choice_logprobs"] == worth
    assert max(worth) == pytest.approx(blank["logprob"] + blank["end_logprob"], abs=1e-9)
    (span,) = scored(engine, ONE, blank["text"])["spans"]
    assert span["end_logprob"] == blank["end_logprob"]
    beams = results(engine.run(FILLS["beams"]))
    totals = [(b["logprob"] + (b["end_logprob"] or 0.0), len(b["token_ids"]) + (b["end_logprob"] is not None))
              for b in (r["blanks"][0] for r in beams)]  # fmt: skip
    ranked = [total / length for total, length in totals]  # length_penalty 1
    assert ranked == sorted(ranked, reverse=True)


def test_with_the_end_a_score_counts_one_token_a_span_more(engine: Engine) -> None:
    plain, ended = (scored(engine, TWO, "old cat", "sang", include_end=end) for end in (False, True))
    ends = [span["end_logprob"] for span in plain["spans"]]
    assert ends == [span["end_logprob"] for span in ended["spans"]]
    assert ended["logprob"] == pytest.approx(plain["logprob"] + sum(ends), abs=1e-9)
    assert ended["num_tokens"] == plain["num_tokens"] + 2
    for before, after, end in zip(plain["spans"], ended["spans"], ends, strict=True):
        assert after["logprob"] == pytest.approx(before["logprob"] + end, abs=1e-9)
        assert after["token_logprobs"] == before["token_logprobs"]
