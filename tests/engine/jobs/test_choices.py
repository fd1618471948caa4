"""Choices against the scorer: what a choice is worth is what `Score` says of it, to the bit."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta
from engine.jobs.choices import Choices, Node
from engine.requests import Fill, Request, RequestError, Sampling, Score, Tokens
from tests.answers import wire
from tests.engine.test_engine import TWO, results, segments

ONE = "one day the [MASK] came over the hill"
WORDS = ("red boat", "red", "red fish under", "old cat", "old dog", "bird", "tin", "red boat")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.01, block_size=4))


def worth(engine: Engine, text: str, choices: tuple[str, ...]) -> list[float]:
    score = Score(text=segments(text), spans=tuple((c,) for c in choices), include_end=True)
    return [r["logprob"] for r in results(engine.run(score))]


def test_the_fill_is_the_best_choice_with_the_scorer_s_numbers(engine: Engine) -> None:
    expected = worth(engine, ONE, WORDS)
    (result,) = results(engine.run(Fill((segments(ONE),), choices=(WORDS,), logprobs=3)))
    blank = result["blanks"][0]
    assert blank["choice_logprobs"] == expected
    best = expected.index(max(expected))
    assert blank["text"] == WORDS[best]
    assert result["text"] == ONE.replace("[MASK]", WORDS[best])
    assert blank["finish_reason"] == "choice"
    assert blank["logprob"] + blank["end_logprob"] == pytest.approx(expected[best], abs=1e-12)
    score = Score(text=segments(ONE), spans=((WORDS[best],),), logprobs=3)
    span = results(engine.run(score))[0]["spans"][0]
    assert span["token_logprobs"] == blank["token_logprobs"]
    assert span["top_logprobs"] == blank["top_logprobs"]
    engine.scheduler.check()


def test_choices_may_come_as_tokens(engine: Engine) -> None:
    """A choice of tokens is worth what `Score` says of the target of these tokens."""
    ids = [tuple(engine.tokenizer.encode(text)) for text in (" red boat", " bird", " tin")]
    choices = tuple(map(Tokens, ids))
    blank = results(engine.run(Fill((segments(ONE),), choices=(choices,))))[0]["blanks"][0]
    score = Score(context=segments(ONE), targets=choices, include_end=True)
    assert blank["choice_logprobs"] == [r["logprob"] for r in results(engine.run(score))]
    best = blank["choice_logprobs"].index(max(blank["choice_logprobs"]))
    assert tuple(blank["token_ids"]) == ids[best]
    with pytest.raises(RequestError, match="outside the vocabulary"):
        engine.run(Fill((segments(ONE),), choices=((Tokens((10**6,)),),)))


@pytest.mark.parametrize("choices", [("bird",), ("red boat", "red boat under"), ("red boat", "red fish")])
def test_choices_that_begin_alike_or_are_alone(engine: Engine, choices: tuple[str, ...]) -> None:
    blank = results(engine.run(Fill((segments(ONE),), choices=(choices,))))[0]["blanks"][0]
    assert blank["choice_logprobs"] == worth(engine, ONE, choices)


@pytest.mark.parametrize("strategy", ["append", "reencode", "parallel"])
@pytest.mark.parametrize("order", ["left_to_right", "right_to_left", "confident"])
def test_choices_beside_free_blanks(engine: Engine, strategy: str, order: str) -> None:
    text = "the river [MASK] under a [MASK] and the [MASK] sang"
    fill = Fill((segments(text),), (6,), choices=(("ran", "saw the hill"), None, WORDS), strategy=strategy, order=order)  # type: ignore[arg-type]
    first, free, last = results(engine.run(fill))[0]["blanks"]
    assert first["text"] in ("ran", "saw the hill")
    assert last["text"] in WORDS
    assert free["finish_reason"] in ("stop", "length")
    engine.scheduler.check()
    assert not engine.scheduler.running


def test_what_follows_a_choice_sees_it(engine: Engine) -> None:
    fill = Fill((segments(TWO),), (6,), choices=(("saw the old", "sang"), WORDS))
    first, second = results(engine.run(fill))[0]["blanks"]
    given = Score(text=segments(TWO), spans=((first["text"], second["text"]),))
    span = results(engine.run(given))[0]["spans"][1]
    assert span["token_logprobs"] == second["token_logprobs"]
    assert span["end_logprob"] == second["end_logprob"]


def test_branches_cost_what_they_differ_in(engine: Engine) -> None:
    """Rows: the start, and one for each token of the trie."""
    engine.scheduler.clear_contexts()
    choices = ("the old cat saw the red boat", "the old cat saw the red fish", "the old cat saw the blue fish")
    ids = [engine.tokenizer.encode(f" {c}") for c in choices]
    nodes = {tuple(own[:n]) for own in ids for n in range(1, len(own) + 1)}
    request = Fill((segments(ONE),), choices=(choices,))
    engine.add(engine.prepare(request, "x"), request)
    rows = 0
    while not engine.idle:
        engine.step()
        assert engine.clock.last_stats is not None
        rows += engine.clock.last_stats.rows
    context = len(engine.job_context.lay_out(segments(ONE), "text"))
    assert rows == context + 1 + len(nodes)


def test_a_choice_is_drawn_by_its_probability(engine: Engine) -> None:
    choices = ("bird", "cat", "red boat")
    weights = [math.exp(w / 2) for w in worth(engine, ONE, choices)]
    fill = Fill((segments(ONE),), choices=(choices,), sampling=Sampling(temperature=2.0), n=8)
    drawn = [
        r["blanks"][0]["text"]
        for seed in range(25)
        for r in results(engine.run(replace(fill, sampling=Sampling(temperature=2.0, seed=seed * 100))))
    ]
    for choice, weight in zip(choices, weights, strict=True):
        share = weight / sum(weights)
        assert drawn.count(choice) / len(drawn) == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / 200) + 0.01
        )
    again = results(engine.run(replace(fill, sampling=Sampling(temperature=2.0, seed=0))))
    assert [r["blanks"][0]["text"] for r in again] == drawn[:8]


def test_a_choice_streams_whole(engine: Engine) -> None:
    events = engine.run(Fill((segments(ONE),), choices=(WORDS,), stream=True))
    deltas = [e for e in events if isinstance(e, BlankDelta)]
    assert "".join(d.text for d in deltas) == results(events)[0]["blanks"][0]["text"]


def test_bits_are_the_same_preempted_and_amid_others(folder: Path, engine: Engine) -> None:
    fill = Fill((segments(TWO),), (8,), choices=(WORDS, ("sang", "old bird")), n=2)
    alone = results(engine.run(fill))
    small = Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.0002, block_size=4))
    requests: dict[str, Request] = {str(n): replace(fill, tenant=str(n % 2)) for n in range(12)}
    for name, request in requests.items():
        small.add(small.prepare(request, name), request)
    events: list[object] = []
    while not small.idle:
        events += small.step()
        small.scheduler.check()
    found = [wire(e.result) for e in events if type(e).__name__ == "ResultDone"]  # type: ignore[attr-defined]
    assert len(found) == 24
    assert all(r["blanks"] == alone[0]["blanks"] for r in found)
    assert small.scheduler.preemptions


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (Fill((segments(ONE),), choices=((),)), "choices holds an empty list"),
        (Fill((segments(ONE),), choices=(("a", ""),)), "the choice '' has no tokens"),
        (Fill((segments(ONE),), (1,), choices=(("red boat",),)), "max_tokens is 1"),
        (Fill((segments(ONE),), (9,), (3,), choices=(("red",),)), "min_tokens is 3"),
        (Fill((segments(TWO),), choices=(("a",), ("b",), ("c",))), "choices has 3 lists for 2 blanks"),
        (Fill((segments("[MASK] and " * 40),), choices=((" ".join(["boat"] * 30),),)), "choices need 1241 tokens"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(engine: Engine, fill: Fill, message: str) -> None:
    with pytest.raises(RequestError) as error:
        engine.run(fill)
    assert message in error.value.message
    assert error.value.param in ("choices", "max_tokens")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12))
def test_a_trie_holds_every_choice_once(ids: list[tuple[int, ...]]) -> None:
    def walk(node: Node, path: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
        forced, end = node.chain()
        path = (*path, *forced)
        found = [(path, end.choice)] if end.choice >= 0 else []
        for token, child in end.children.items():
            found += walk(child, (*path, token))
        return found

    texts = tuple(map(str, ids))
    found = walk(Choices(texts, texts, tuple(ids), False).trie(), ())
    assert dict(found) == {own: ids.index(own) for own in ids}
    assert len(found) == len(set(ids))
