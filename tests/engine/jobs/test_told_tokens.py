"""What is told beside a token: a scored prompt's ranks, and the log-probabilities of tokens that were asked for.

A rank is vLLM's (v1/sample/ops/logprobs.py): how many tokens of the whole row are at least as probable.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.answers import Alternatives, EchoedPrompt, FillResult
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, ResultDone
from engine.jobs import fill_checks
from engine.requests import Fill, Mask, RequestError, Sampling, Tokens
from tests.engine.jobs.test_prompts import ids_of, part_a, reference
from tests.engine.test_families import engines  # noqa: F401
from tests.model.test_references import TOLERANCE, case_of

TEXT = "the river hill and then a boat"
ASKED = (9, 3, 9, 40)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01))


def filled(engine: Engine, inputs: Any, **fields: Any) -> FillResult:
    given = {"max_tokens": (1,), "logprobs": 0, **fields}
    (result,) = (e.result for e in engine.run(Fill(inputs, **given)) if isinstance(e, ResultDone))
    assert isinstance(result, FillResult)
    return result


def echoed(engine: Engine, ids: list[int], **fields: Any) -> EchoedPrompt:
    echo = filled(engine, ((Tokens(tuple(ids)),),), echo=True, prompt_logprobs=2, **fields).echo
    assert echo is not None
    return echo


def whole_row(engine: Engine, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What follows a scored prompt, of every token."""
    every = tuple(range(engine.card.vocab_size))
    (blank,) = filled(engine, ((Tokens(tuple(ids)),),), echo=True, logprob_token_ids=every).blanks
    top = (blank.top_logprobs or [])[0] if blank.tokens else blank.end_top_logprobs
    assert top is not None
    assert tuple(t.token_id for t in top) == every
    return np.array([t.logprob for t in top])


def test_ranks_of_a_scored_prompt_count_the_whole_row(engine: Engine) -> None:
    ids = ids_of(engine, TEXT)
    echo = echoed(engine, ids)
    rows = reference(engine, part_a(engine, ("[gMASK]",)), ids)
    for token, logprob, rank, row in zip(ids, echo.token_logprobs, echo.ranks, rows, strict=False):
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        # The reference's sums round otherwise, so that near neighbours may change places.
        assert rank is not None
        assert int((row >= row[token] + 2e-4).sum()) < rank <= int((row >= row[token] - 2e-4).sum())


def test_ranks_and_asked_tokens_are_those_of_transformers(engines: dict[str, Engine]) -> None:  # noqa: F811
    case = case_of("glm4", "long")  # GlmForCausalLM's
    ids = case.token_ids[2:].tolist()
    result = filled(engines["glm4"], ((Tokens(tuple(ids)),),), echo=True, prompt_logprobs=1, logprob_token_ids=ASKED)
    assert result.echo is not None
    rows = case.logprobs[1:]
    for token, logprob, rank, row in zip(ids, result.echo.token_logprobs, result.echo.ranks, rows, strict=False):
        assert logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
        assert rank is not None
        assert int((row >= row[token] + 2 * TOLERANCE).sum()) < rank <= int((row >= row[token] - 2 * TOLERANCE).sum())
    (blank,) = result.blanks
    (top,) = blank.top_logprobs or [blank.end_top_logprobs or []]
    assert [t.logprob for t in top] == pytest.approx([float(rows[-1][i]) for i in ASKED], abs=TOLERANCE)


def test_ranks_are_exact_in_the_engine_s_own_rows(engine: Engine) -> None:
    ids = ids_of(engine, TEXT)
    echo = echoed(engine, ids)
    for count in (1, 4, len(ids) - 1):
        row, token = whole_row(engine, ids[:count]), ids[count]
        assert echo.token_logprobs[count] == row[token]
        assert echo.ranks[count] == int((row >= row[token]).sum())
        best = np.argsort(-row, kind="stable")[:2].tolist()
        assert [t.token_id for t in echo.top_logprobs[count] or ()] == best


def test_a_context_has_no_ranks_and_ranks_come_only_where_they_are_asked_for(engine: Engine) -> None:
    context = [*ids_of(engine, "the river[MASK]"), engine.tokenizer.sop]
    echo = echoed(engine, [*context, *ids_of(engine, " hill")])
    assert echo.ranks[: len(context)] == [None] * len(context)
    assert None not in echo.ranks[len(context) :]
    plain = filled(engine, ((Tokens(tuple(context)),),), max_tokens=(2,))
    assert plain.echo is None
    asked = Fill(((TEXT,),), max_tokens=(1,), echo=True, logprobs=2)
    ranked = Fill(((TEXT,),), max_tokens=(1,), echo=True, logprobs=0, prompt_logprobs=2)
    # In one batch: each has what it has alone.
    for number, request in enumerate((asked, ranked)):
        engine.add(engine.prepare(request, str(number)), request)
    found: dict[str, EchoedPrompt | None] = {}
    while not engine.idle:
        for e in engine.step():
            if isinstance(e, ResultDone) and isinstance(e.result, FillResult):
                found[e.id] = e.result.echo
    first, second = found["0"], found["1"]
    assert first is not None
    assert second is not None
    assert first.ranks == []
    assert second == echoed(engine, list(second.token_ids))
    assert (first.token_logprobs, first.top_logprobs) == (second.token_logprobs, second.top_logprobs)


def told(top: Alternatives) -> list[int]:
    return [t.token_id for t in top]


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"sampling": Sampling(1.0, top_k=5, seed=1, logit_bias={9: 3.0})},
    "rules": {"sampling": Sampling(rules={"repetition_penalty": 1.5})},
    "regex": {"regex": ("[a-z ]{4,9}",)},
    "beams": {"num_beams": 3},
    "choices": {"choices": (("red boat", "red", "hill"),)},
    "one choice": {"choices": (("red boat",),)},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_asked_tokens_have_the_model_s_own_distribution(engine: Engine, way: str) -> None:
    inputs = (("the ", Mask("[MASK]"), " of the hill"),)
    fields = {"max_tokens": (6,), **WAYS[way]}
    (blank,) = filled(engine, inputs, logprob_token_ids=ASKED, **fields).blanks
    (plain,) = filled(engine, inputs, **fields).blanks
    assert (blank.token_ids, blank.token_logprobs) == (plain.token_ids, plain.token_logprobs)
    ends = [] if blank.end_token_id is None else [blank.end_token_id]
    tops = [*(blank.top_logprobs or ()), *([blank.end_top_logprobs or []] if ends else [])]
    rows = reference(engine, part_a(engine, "the ", ("[MASK]",), " of the hill"), blank.token_ids)
    assert len(tops) == len(blank.token_ids) + len(ends) > 0
    for top, row in zip(tops, rows, strict=False):
        assert told(top) == list(ASKED)
        assert [t.logprob for t in top] == pytest.approx([float(row[i]) for i in ASKED], abs=1e-4)


@pytest.mark.parametrize("choices", [(), (("red boat", "red"), ("hill", "old"))])
def test_several_blanks_and_a_stream_have_the_asked_tokens(engine: Engine, choices: Any) -> None:
    inputs = (("the ", Mask("[MASK]"), " of the ", Mask("[MASK]")),)
    fill = Fill(inputs, (3,), (3,) if not choices else (0,), logprobs=1, logprob_token_ids=ASKED, choices=choices)
    (result,) = (e.result for e in engine.run(fill) if isinstance(e, ResultDone))
    assert isinstance(result, FillResult)
    assert len(result.blanks) == 2
    assert all(told(top) == list(ASKED) for blank in result.blanks for top in blank.top_logprobs or ())
    streamed = Fill(inputs, (3,), logprobs=1, logprob_token_ids=ASKED, stream=True)
    deltas = [e for e in engine.run(streamed) if isinstance(e, BlankDelta)]
    assert all(told(top) == list(ASKED) for delta in deltas for top in delta.top_logprobs or ())
    assert deltas


def test_a_scored_prompt_keeps_its_best_tokens_beside_the_asked_ones(engine: Engine) -> None:
    result = filled(engine, ((TEXT,),), echo=True, logprobs=3, logprob_token_ids=ASKED, max_tokens=(2,))
    assert result.echo is not None
    assert all(len(top or ()) == 3 for top in result.echo.top_logprobs)
    assert all(told(top) == list(ASKED) for top in result.blanks[0].top_logprobs or ())


def test_an_id_outside_the_vocabulary_and_too_many_alternatives_are_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**fields: Any) -> tuple[str | None, str]:
        with pytest.raises(RequestError) as error:
            engine.run(Fill(((TEXT,),), **{"max_tokens": (2,), "logprobs": 0, **fields}))
        return error.value.param, error.value.message

    param, message = refusal(logprob_token_ids=(engine.card.vocab_size,))
    assert param == "logprob_token_ids"
    assert "is outside the vocabulary" in message
    monkeypatch.setattr(fill_checks, "MAX_ALTERNATIVES", 5)
    assert refusal(logprob_token_ids=(1, 2, 3)) == (
        "logprob_token_ids",
        "6 alternatives of written tokens are too many for one request; the limit is 5",
    )
    assert refusal(echo=True, prompt_logprobs=1)[0] == "prompt_logprobs"
    assert refusal(echo=True, logprobs=1)[0] == "logprobs"
