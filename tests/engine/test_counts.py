"""What the counters tell of requests that end before their end: the tokens that were computed, each once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count as count_up
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Done, Event, Failed, StepStats
from engine.jobs.filling import FillJob
from engine.jobs.job import Job
from engine.jobs.masked import NextSentenceJob
from engine.jobs.scoring import ScoreJob
from engine.requests import Fill, Request, Sampling, Score
from model.checkpoint import Checkpoint, load
from model.config import Config
from model.families import family_of
from tests.engine.test_engine import segments
from tests.engine.test_families import SPECIAL, NumberedWords
from tests.model.test_references import config_of, golden, read

NAMES = ("prompt_tokens", "generated_tokens", "blanks", "score_candidates", "score_tokens")
THREE = "the river [MASK] under a bridge and the [MASK] sang of a [MASK]"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def glm(folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), kv_cache_gb=0.01, max_batch_tokens=40, threads=1))


@pytest.fixture
def bert(tmp_path: Path) -> Engine:
    model = read(tmp_path, config_of("bert"), golden("bert", "weights")).requires_grad_(False)
    tokenizer = NumberedWords(SPECIAL["bert"], model.architecture.vocab_size, ())
    checkpoint = Checkpoint("bert", family_of(Config(config_of("bert"))), model, tokenizer)
    return Engine(EngineConfig(kv_cache_gb=0.01, max_batch_tokens=20, threads=1), checkpoint)


class Count:
    """An engine, one job in it, and the sums of its counters."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine = engine
        engine.clock.idle_stats()  # of those before
        self.job: Job = engine.prepare(request, "x")
        engine.add(self.job, request)
        self.sums: Counter[str] = Counter()
        self.events: list[Event] = []

    def step(self) -> None:
        self.events += self.engine.step()
        assert self.engine.clock.last_stats is not None
        self._add(self.engine.clock.last_stats)

    def _add(self, stats: StepStats) -> None:
        self.sums.update({name: getattr(stats, name) for name in NAMES})

    def cancel(self) -> None:
        self.events += self.engine.cancel("x")
        self._add(self.engine.clock.idle_stats())

    def end(self) -> None:
        while not self.engine.idle:
            self.step()

    @property
    def found(self) -> tuple[int, ...]:
        return tuple(self.sums[name] for name in NAMES)

    def expected(self) -> tuple[int, ...]:
        """By what the job holds, of fills that are drawn token by token and of scores."""
        job = self.job
        if isinstance(job, FillJob):
            blanks = [blank for sample in job.samples for blank in sample.blanks]
            tokens = sum(len(b.tokens) + (b.end is not None) for b in blanks)
            ended = sum(b.finish_reason is not None for b in blanks)
            return tokens, ended, 0, 0
        assert isinstance(job, ScoreJob)
        scored = [[c.scored.get(order) for order in job.orders] for c in job.candidates]
        whole = [all(o is not None and all(None not in span for span in o) for o in orders) for orders in scored]
        tokens = sum(token is not None for first, *_ in scored for span in first or () for token in span)
        return 0, 0, sum(whole), tokens


def fill(**fields: Any) -> Fill:
    return replace(Fill((segments(THREE),), max_tokens=(5,), min_tokens=(2,)), **fields)


WORK: dict[str, Request] = {
    "append": fill(),
    "reencode": fill(strategy="reencode", stream=True),
    "parallel": fill(strategy="parallel", sampling=Sampling(temperature=1.0, seed=2), n=3),
    "confident": fill(order="confident"),
    "several texts": fill(inputs=(segments(THREE), segments("a [MASK]"), segments("the [MASK]"))),
    "candidates": Score(text=segments(THREE), spans=tuple((f"one{'s' * n}", "two", "red boat") for n in range(5))),
    "orders": Score(text=segments(THREE), spans=(("one", "two", "three"), ("a", "b", "c")), orders="all"),
    "targets": Score(context=segments("once upon"), targets=(" a time", " the hill", " a")),
}
MASKED: dict[str, Request] = {
    "one by one": Fill((segments("w11 [MASK] w13 [MASK] w15 [MASK]"),), strategy="reencode"),
    "surest first": Fill((segments("w11 [MASK] w13 [MASK] w15 [MASK]"),), strategy="reencode", order="confident"),
    "at once": Fill((segments("w11 [MASK] w13 [MASK]"),), n=2),
    "words": Score(text=segments("w11 [MASK] w13 [MASK]"), spans=tuple((f"w2{n}", "w30 w31") for n in range(6))),
    "whole text": Score(text=segments("w11 w12 w13 w14 w15 w16 w17 w18")),
}


@pytest.mark.parametrize("kind", [*WORK, *MASKED])
def test_a_cancelled_request_counts_what_it_computed(glm: Engine, bert: Engine, kind: str) -> None:
    """After few steps and many; the last time it is not cancelled, and its usage is what was counted."""
    engine, request = (glm, WORK[kind]) if kind in WORK else (bert, MASKED[kind])
    seen = []
    for steps in (0, 1, 2, 3, 5, 9, 13, 20, 1000):
        count = Count(engine, request)
        for _ in range(steps):
            if not engine.idle:
                count.step()
        if engine.idle:
            break
        count.cancel()
        assert count.found[1:] == count.expected()
        seen.append(count.found)
    assert seen[0] == (0,) * 5
    assert seen == sorted(seen)
    done = count.events[-1]
    assert isinstance(done, Done)
    assert count.found[1:] == count.expected()
    assert done.usage.prompt_tokens == count.found[0]
    assert done.usage.completion_tokens == count.found[1] + count.found[4]
    assert done.usage.completion_tokens > 0


def test_each_text_of_a_request_counts_when_it_is_read(glm: Engine) -> None:
    texts = tuple(segments(f"{number} " + "the " * 28 + "[MASK]") for number in range(4))
    count = Count(glm, Fill(texts, max_tokens=(9,), min_tokens=(9,)))
    whole = count.job.counts.prompt_tokens
    count.step()
    assert count.found[0] == whole // 4
    count.cancel()
    assert count.found[0] == whole // 4


def test_beams_count_when_their_search_is_over_or_left(glm: Engine) -> None:
    for n, text, blanks in ((1, THREE, 3), (2, "the [MASK]", 1)):
        request = fill(inputs=(segments(text),), num_beams=3, n=n, min_tokens=(5,))
        whole = Count(glm, request)
        whole.end()
        done = whole.events[-1]
        assert isinstance(done, Done)
        assert whole.found == (done.usage.prompt_tokens, done.usage.completion_tokens, blanks, 0, 0)
        assert done.usage.completion_tokens == n * blanks * 5
        for steps in (0, 1, 4, 5, 13)[: blanks + 2]:
            count = Count(glm, request)
            for _ in range(steps):
                count.step()
            assert count.found[1] == steps // 5 * 5
            count.cancel()
            assert count.found[1:3] == (steps, steps // 5)


def test_choices_count_when_one_is_chosen_or_they_are_left(glm: Engine) -> None:
    choices = ("red boat on the river", "red boat under", "blue")
    request = fill(choices=(choices, None, choices), max_tokens=(20,), min_tokens=(0,))
    whole = Count(glm, request)
    whole.end()
    done = whole.events[-1]
    assert isinstance(done, Done)
    assert whole.found[:3] == (done.usage.prompt_tokens, done.usage.completion_tokens, 3)
    count = Count(glm, request)
    assert isinstance(count.job, FillJob)
    (sample,) = count.job.samples
    while not (reached := max((search.reached for search in sample.searches.values()), default=0)):
        count.step()
    assert count.found[1] == 0
    count.cancel()
    assert count.found[1] == reached


def test_sentences_count_once_they_are_compared(bert: Engine) -> None:
    request = Score(sentence_a="w11 w12", sentence_b="w20 w21")
    count = Count(bert, request)
    assert isinstance(count.job, NextSentenceJob)
    count.cancel()
    assert count.found == (0,) * 5
    count = Count(bert, request)
    count.end()
    assert count.found == (7, 0, 0, 1, 0)


def test_a_deadline_counts_what_was_computed_before(folder: Path) -> None:
    seconds = count_up()
    config = EngineConfig(str(folder), kv_cache_gb=0.01, max_batch_tokens=40, threads=1)
    engine = Engine(config, now=lambda: float(next(seconds)))  # every look at the clock takes a second
    count = Count(engine, fill(max_tokens=(60,), min_tokens=(60,), n=4, timeout_s=100.0))
    count.end()
    assert count.found[1] > 0
    assert isinstance(count.events[-1], Failed)
    assert count.events[-1].outcome == "deadline"
    assert count.found[1:] == count.expected()


def test_a_failure_counts_what_was_computed_before(folder: Path) -> None:
    checkpoint = load(folder)
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.001, threads=1), checkpoint)
    checkpoint.model.transformer.block_position_embeddings.weight[6] = float("nan")  # of the row of the fifth token
    count = Count(engine, Fill((segments("the [MASK]"),), max_tokens=(9,), min_tokens=(9,)))
    count.end()
    assert isinstance(count.events[-1], Failed)
    assert count.found == (count.job.counts.prompt_tokens, 5, 0, 0, 0)


def test_a_text_that_grows_over_the_limit_counts_what_was_written(glm: Engine) -> None:
    text = "the " * (glm.card.max_context - 20) + "[MASK] and [MASK]"
    count = Count(glm, Fill((segments(text),), max_tokens=(40,), min_tokens=(40,), strategy="reencode"))
    count.end()
    assert isinstance(count.events[-1], Failed)
    assert count.events[-1].outcome == "invalid"
    assert count.found[1:] == count.expected() == (40, 1, 0, 0)


def test_what_is_computed_again_counts_once(folder: Path) -> None:
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.0004, threads=1))
    count = Count(engine, Fill((segments("the [MASK]"),), max_tokens=(150,), min_tokens=(150,), n=8))
    count.end()
    assert engine.scheduler.preemptions > 0
    assert count.found == (count.job.counts.prompt_tokens, 8 * 150, 8, 0, 0)
