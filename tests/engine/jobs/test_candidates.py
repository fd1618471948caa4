"""Many candidates of one score: what they begin with is computed once, and each has the bits that it has alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from engine.answers import ScoreResult
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Score
from tests.engine.test_engine import TWO, segments

ONE = "one day the [MASK] came over the hill"
STEMS = ("red boat", "red fish", "old cat", "bird")
WORDS = tuple(f"{stem}{end}" for stem, end in product(STEMS, ("", "s", " under", " under the hill", " of tin")))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.01, block_size=4))


def one(*texts: str, **fields: Any) -> Score:
    return replace(Score(text=segments(ONE), spans=tuple((text,) for text in texts)), **fields)


def result_of(event: ResultDone) -> ScoreResult:
    assert isinstance(event.result, ScoreResult)
    return event.result


def run(engine: Engine, score: Score) -> list[ScoreResult]:
    found = [result_of(event) for event in engine.run(score) if isinstance(event, ResultDone)]
    engine.scheduler.check()
    return found


def alone(engine: Engine, score: Score) -> list[ScoreResult]:
    """Each candidate in a request of its own."""
    assert score.spans is not None
    return [
        replace(result, index=index)
        for index, spans in enumerate(score.spans)
        for result in run(engine, replace(score, spans=(spans,)))
    ]


def num_rows(engine: Engine, score: Score) -> int:
    """Rows of a score's steps, those of its context included."""
    engine.add(engine.prepare(score, "x"), score)
    count = 0
    while not engine.idle:
        engine.step()
        assert engine.clock.last_stats is not None
        count += engine.clock.last_stats.rows
    return count


@pytest.mark.parametrize(
    "fields",
    [{}, {"logprobs": 3}, {"include_end": True, "words": True}, {"end_logprobs": False, "normalize": "token"}],
    ids=str,
)
def test_candidates_have_the_bits_that_they_have_alone(engine: Engine, fields: dict[str, Any]) -> None:
    score = one(*WORDS, WORDS[0], **fields)
    assert run(engine, score) == alone(engine, score)


def test_so_do_several_blanks_in_all_orders(engine: Engine) -> None:
    score = Score(text=segments(TWO), spans=tuple(product(WORDS[:4], WORDS[3:7])), orders="all")
    assert run(engine, score) == alone(engine, score)


def test_so_they_do_in_a_cache_that_is_too_small_for_all(folder: Path, engine: Engine) -> None:
    small = Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.0003, block_size=4))
    score = one(*(f"{a} {b}" for a, b in product(WORDS, STEMS)))
    assert run(small, score) == run(engine, score)


def test_a_common_beginning_is_computed_once(engine: Engine) -> None:
    words = ["the red boat under the hill", "the red boat under the tin", "the red boat"]
    ids = [tuple(engine.tokenizer.encode(f" {word}")) for word in words]
    engine.scheduler.clear_contexts()
    context = num_rows(engine, one("the")) - 2  # its start and its one token
    assert len(engine.tokenizer.encode(" the")) == 1
    engine.scheduler.clear_contexts()
    prefixes = {own[:n] for own in ids for n in range(len(own) + 1)}
    assert num_rows(engine, one(*words)) == context + len(prefixes)
    engine.scheduler.clear_contexts()
    without_last = {own[:n] for own in ids for n in range(len(own))}
    assert num_rows(engine, one(*words, end_logprobs=False)) == context + len(without_last)


def test_without_ends_everything_else_is_the_same(engine: Engine) -> None:
    told, untold = run(engine, one(*WORDS)), run(engine, one(*WORDS, end_logprobs=False))
    for full, short in zip(told, untold, strict=True):
        assert short.spans[0].end_logprob is None
        assert short == replace(full, spans=[replace(full.spans[0], end_logprob=None)])
    ended = one(*WORDS, include_end=True, end_logprobs=False)  # included, so computed
    assert run(engine, ended) == run(engine, one(*WORDS, include_end=True))


def test_a_stream_gives_each_candidate_when_it_is_there(engine: Engine) -> None:
    score = one(*(f"{a} {b}" for a, b in product(WORDS, WORDS)), stream=True)
    request = engine.prepare(score, "x")
    engine.add(request, score)
    steps = []
    while not engine.idle:
        steps.append([result_of(event) for event in engine.step() if isinstance(event, ResultDone)])
    assert sum(map(bool, steps)) > 1
    found = sorted((result for step in steps for result in step), key=lambda result: result.index)
    assert found == run(engine, replace(score, stream=False))


def test_others_are_served_between_its_steps(engine: Engine) -> None:
    """However many branches a score has, a request that comes behind it is over long before it is."""
    many, few = one(*(f"{a} {b} {c}" for a, b, c in product(WORDS, STEMS, STEMS))), one("cat")
    engine.add(engine.prepare(many, "many"), many)
    for _ in range(2):
        engine.step()
    few = replace(few, priority="interactive")
    engine.add(engine.prepare(few, "few"), few)
    ended: list[str] = []
    while not engine.idle:
        ended += [event.id for event in engine.step() if isinstance(event, ResultDone)]
    assert ended[0] == "few"
