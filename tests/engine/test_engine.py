"""The engine against a plain reference: every token scored alone, from scratch, without a cache."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import TERMINAL, BlankDelta, Done, Event, Failed, ResultDone
from engine.requests import Fill, Mask, Request, RequestError, Sampling, Score, Segments
from model.attention import DenseAttention, visible
from model.checkpoint import load
from model.families.glm import FAMILY
from model.layout import Layout, parse, span_ids
from model.network import Network
from quant.usage import UsageError
from tests.answers import wire

TWO = "the river [MASK] under a bridge and the [MASK] sang"
CONTEXTS = ["[MASK] of the hill", "one day the [MASK] came", TWO, "the end of the tale is [gMASK]"]


def segments(text: str) -> Segments:
    return tuple(p if isinstance(p, str) else Mask(p[0]) for p in parse(text) if p != "")


def results(events: list[Event]) -> list[dict[str, Any]]:
    assert isinstance(events[-1], Done), events[-1]
    assert sum(isinstance(e, TERMINAL) for e in events) == 1
    return [wire(e.result) for e in events if isinstance(e, ResultDone)]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(params=["none", "int8"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), quant=request.param, kv_cache_gb=0.01))


@pytest.fixture(params=["auto", "int8"])
def kv_cache_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["none", "int8"])
def any_engine(request: pytest.FixtureRequest, folder: Path, kv_cache_type: str) -> Engine:
    """With either cache: for what has no reference but the engine itself."""
    config = EngineConfig(str(folder), quant=request.param, kv_cache_gb=0.01, kv_cache_type=kv_cache_type)
    return Engine(config)


def next_logprobs(model: Network, part: Layout, rows: list[tuple[int, int, int]]) -> torch.Tensor:
    """The reference: log-probabilities after `rows` (token, position, block), everything computed from scratch."""
    ids = [*part.token_ids, *(r[0] for r in rows)]
    positions = [*range(len(part)), *(r[1] for r in rows)]
    blocks = [*(0 for _ in part.token_ids), *(r[2] for r in rows)]
    mask = visible(len(ids), torch.tensor([len(part)]))
    with torch.no_grad():
        hidden = model(*(torch.tensor([v]) for v in (ids, positions, blocks)), DenseAttention(mask))
        return torch.log_softmax(model.logits(hidden[0, -1:]), -1)[0]


def reference(engine: Engine, text: str, spans: tuple[str, ...], order: tuple[int, ...]) -> dict[int, list[float]]:
    """Each blank's token log-probabilities with the end token last, one token at a time."""
    tokenizer = engine.tokenizer
    part = FAMILY.layout.lay_out([p if isinstance(p, str) else (p[0],) for p in parse(text)], tokenizer)
    rows: list[tuple[int, int, int]] = []
    found: dict[int, list[float]] = {}
    for number in order:
        blank = part.blanks[number]
        ids = span_ids(spans[number], blank, tokenizer)
        found[number] = []
        for block, (token, target) in enumerate(zip([tokenizer.sop, *ids], [*ids, tokenizer.eop], strict=True)):
            rows.append((token, blank.position, block + 1))
            found[number].append(float(next_logprobs(engine.runner.model, part, rows)[target]))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("include_end", [False, True])
def test_a_score_is_the_sum_of_token_logprobs_computed_one_at_a_time(engine: Engine, include_end: bool) -> None:
    spans = ("runs slowly", "birds")
    (result,) = results(engine.run(Score(text=segments(TWO), spans=(spans,), include_end=include_end)))
    expected = reference(engine, TWO, spans, (0, 1))
    for span in result["spans"]:
        logprobs = expected[span["index"]]
        assert span["token_logprobs"] == pytest.approx(logprobs[:-1], abs=1e-4)
        assert span["end_logprob"] == pytest.approx(logprobs[-1], abs=1e-4)
    total = sum(p for logprobs in expected.values() for p in (logprobs if include_end else logprobs[:-1]))
    assert result["logprob"] == pytest.approx(total, abs=1e-3)


def test_all_orders_are_the_mean_of_the_explicit_ones(engine: Engine) -> None:
    text, spans = "a [MASK] b [MASK] c [MASK]", (("one", "two", "three"),)
    (mean,) = results(engine.run(Score(text=segments(text), spans=spans, orders="all")))
    each = []
    for order in itertools.permutations(range(3)):
        (single,) = results(engine.run(Score(text=segments(text), spans=spans, orders=(order,))))
        each.append(single["logprob"])
        expected = reference(engine, text, spans[0], order)
        assert single["logprob"] == pytest.approx(sum(sum(p[:-1]) for p in expected.values()), abs=1e-3)
    assert [o["logprob"] for o in mean["orders"]] == each
    assert mean["logprob"] == pytest.approx(sum(each) / 6, rel=1e-12)


def test_a_greedy_fill_takes_the_argmax_of_the_scorer_at_every_step(engine: Engine) -> None:
    (result,) = results(engine.run(Fill((segments(TWO),), max_tokens=(5,), min_tokens=(5,))))
    part = FAMILY.layout.lay_out([p if isinstance(p, str) else (p[0],) for p in parse(TWO)], engine.tokenizer)
    allowed = torch.from_numpy(engine.job_context.logit_mask == 0)
    allowed[[engine.tokenizer.eop, engine.tokenizer.eos]] = False
    rows: list[tuple[int, int, int]] = []
    for blank, place in zip(result["blanks"], part.blanks, strict=True):
        rows.append((engine.tokenizer.sop, place.position, 1))
        for number, (token, logprob) in enumerate(zip(blank["token_ids"], blank["token_logprobs"], strict=True)):
            logprobs = next_logprobs(engine.runner.model, part, rows)  # type: ignore[union-attr]
            best = logprobs.where(allowed, torch.tensor(-torch.inf))
            assert float(best.max()) == pytest.approx(float(best[token]), abs=1e-4)
            assert logprob == pytest.approx(float(logprobs[token]), abs=1e-4)
            rows.append((token, place.position, number + 2))


def test_a_cache_in_int8_changes_scores_little(folder: Path) -> None:
    spans = ("runs slowly", "birds")
    for quant in ("none", "int8"):
        engine = Engine(EngineConfig(str(folder), quant=quant, kv_cache_gb=0.01, kv_cache_type="int8"))
        (result,) = results(engine.run(Score(text=segments(TWO), spans=(spans,))))
        expected = reference(engine, TWO, spans, (0, 1))
        found = [span["token_logprobs"] for span in result["spans"]]
        assert found == [pytest.approx(expected[index][:-1], abs=0.02) for index in (0, 1)]
        assert found != [pytest.approx(expected[index][:-1], abs=1e-6) for index in (0, 1)]


def test_a_cache_in_int8_holds_more_tokens(folder: Path) -> None:
    engines = [Engine(EngineConfig(str(folder), kv_cache_gb=0.01, kv_cache_type=kind)) for kind in ("auto", "int8")]
    sizes = [engine.card.kv_cache_tokens for engine in engines]
    per_token = [2 * 2 * 2 * size for size in (4 * 32, 32 + 4)]  # layers, heads of 32, keys and values
    assert sizes == [int(0.01e9 // (16 * size)) * 16 for size in per_token]
    assert [engine.scheduler.pool.num_blocks * 16 for engine in engines] == sizes
    assert [engine.card.kv_cache_type for engine in engines] == ["float32", "int8"]


def test_an_unknown_cache_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"kv_cache_type\n  Input should be 'auto' or 'int8'"):
        EngineConfig(kv_cache_type="int3")


def test_packed_candidates_equal_separate_ones_bit_for_bit(any_engine: Engine) -> None:
    engine = any_engine
    candidates = tuple((a, b) for a in ("runs", "runs slowly by", "x") for b in ("birds", "old man"))
    packed = results(engine.run(Score(text=segments(TWO), spans=candidates)))
    for result, spans in zip(packed, candidates, strict=True):
        (alone,) = results(engine.run(Score(text=segments(TWO), spans=(spans,))))
        assert alone["logprob"] == result["logprob"]
        assert alone["spans"] == result["spans"]


def test_a_cached_context_gives_the_same_bits_as_a_fresh_one(any_engine: Engine) -> None:
    engine = any_engine
    score = Score(text=segments(TWO), spans=(("runs", "birds"),))
    fresh = results(engine.run(score))
    assert engine.scheduler.context_hits == 0
    cached = results(engine.run(score))
    assert engine.scheduler.context_hits == 1
    assert cached == fresh


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_request_gives_the_same_alone_and_amid_63_others(
    folder: Path, temperature: float, kv_cache_type: str
) -> None:
    for quant in ("none", "int8"):
        requests: list[Request] = []
        for number in range(64):
            text = segments(CONTEXTS[number % 4])
            sampling = Sampling(temperature=temperature, top_p=0.95, seed=number)
            if number % 8 == 5:
                requests.append(Score(text=segments(TWO), spans=(("runs" * (number % 5 + 1), "birds"),)))
            else:
                requests.append(Fill((text,), max_tokens=(6 + number % 3,), sampling=sampling, n=1 + number % 2))
        config = EngineConfig(str(folder), quant=quant, kv_cache_gb=0.05, kv_cache_type=kv_cache_type)
        crowd = Engine(config)
        for number, request in enumerate(requests):
            crowd.add(crowd.prepare(request, str(number)), request)
        events: list[Event] = []
        while not crowd.idle:
            events += crowd.step()
        for number in (0, 5, 7, 22, 63):
            alone = Engine(config.model_copy(update={"kv_cache_gb": 0.01})).run(requests[number], str(number))
            together = [e for e in events if e.id == str(number)]
            assert results(alone) == results(together)


def test_preempted_work_comes_to_the_same_end(folder: Path, kv_cache_type: str) -> None:
    small = {"auto": 0.0004, "int8": 0.00012}[kv_cache_type]
    config = EngineConfig(str(folder), kv_cache_gb=small, kv_cache_type=kv_cache_type)
    engine = Engine(config)
    assert engine.scheduler.pool.num_blocks < 60
    request = Fill((segments("the [MASK]"),), max_tokens=(150,), min_tokens=(150,), n=8)
    many = results(engine.run(request))
    assert engine.scheduler.preemptions > 0
    roomy = results(Engine(config.model_copy(update={"kv_cache_gb": 0.05})).run(request))
    assert sorted(many, key=lambda r: r["index"]) == sorted(roomy, key=lambda r: r["index"])
    engine.scheduler.check()


def test_many_blanks_on_one_sequence_share_a_cache_that_is_too_small_for_all(folder: Path) -> None:
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.0004))
    text = " and ".join(["the [MASK]"] * 8)
    (result,) = results(engine.run(Fill((segments(text),), max_tokens=(90,), min_tokens=(90,))))
    lengths = [len(blank["token_ids"]) for blank in result["blanks"]]
    assert sum(lengths) < engine.card.kv_cache_tokens
    assert min(lengths) >= 1
    assert {blank["finish_reason"] for blank in result["blanks"]} == {"length"}
    engine.scheduler.check()


def test_a_cache_that_was_asked_for_is_not_made_larger(folder: Path) -> None:
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.0001))
    assert engine.card.kv_cache_tokens == 96
    assert engine.card.max_context == 31
    with pytest.raises(
        UsageError, match=r"kv_cache_gb: 1e-05 hold 16 tokens, a context and a span need 96 at the least"
    ):
        Engine(EngineConfig(str(folder), kv_cache_gb=0.00001))


@pytest.mark.parametrize("strategy", ["append", "reencode", "parallel"])
@pytest.mark.parametrize("order", ["left_to_right", "right_to_left", "random", "confident", (1, 0)])
def test_every_strategy_and_order_fills_every_blank(
    engine: Engine, strategy: Any, order: str | tuple[int, ...]
) -> None:
    fill = Fill((segments(TWO),), max_tokens=(4,), min_tokens=(1,), order=order, strategy=strategy, n=2)
    for result in results(engine.run(fill)):
        texts = iter([b["text"] for b in result["blanks"]])
        parts = [p if isinstance(p, str) else next(texts) for p in parse(TWO)]
        assert result["text"] == "".join(parts)
        assert [(b["start"], b["end"]) for b in result["blanks"]] == [(10, 16), (40, 46)]
    engine.scheduler.check()
    assert engine.scheduler.usage() == 0


def test_right_to_left_fills_the_last_blank_unaware_of_the_first(engine: Engine) -> None:
    (both,) = results(engine.run(Fill((segments(TWO),), max_tokens=(3,), order="right_to_left")))
    (apart,) = results(engine.run(Fill((segments(TWO),), max_tokens=(3,), strategy="parallel")))
    assert both["blanks"][1]["token_logprobs"] == apart["blanks"][1]["token_logprobs"]


def test_stream_deltas_add_up_to_the_text(engine: Engine) -> None:
    fill = Fill((segments(TWO),), max_tokens=(12,), sampling=Sampling(temperature=2.0, seed=3), n=2, stream=True)
    events = engine.run(fill)
    for result in results(events):
        for blank in result["blanks"]:
            place = result["index"], blank["index"]
            deltas = [e for e in events if isinstance(e, BlankDelta) and (e.index, e.blank) == place]
            assert "".join(d.text for d in deltas) == blank["text"]


def test_stop_strings_end_a_blank_and_are_cut_off(engine: Engine) -> None:
    endless = dict.fromkeys(engine.tokenizer.ends, -100.0)
    sampling = Sampling(temperature=1.0, seed=1, logit_bias=endless)
    fill = Fill((segments(TWO),), max_tokens=(20,), sampling=sampling)
    text = results(engine.run(fill))[0]["blanks"][0]["text"]
    stop = text[4:6]
    stopped = replace(fill, sampling=replace(fill.sampling, stop=(stop,)))
    blank = results(engine.run(stopped))[0]["blanks"][0]
    assert blank["text"] == text[: text.index(stop)]
    assert blank["finish_reason"] == "stop"


def test_conditional_and_whole_text_scores_use_the_open_mask(engine: Engine) -> None:
    targets = results(engine.run(Score(context=segments("once upon"), targets=(" a time", " the hill"))))
    blank = results(engine.run(Score(text=segments("once upon[gMASK]"), spans=((" a time",), (" the hill",)))))
    assert [t["logprob"] for t in targets] == [b["logprob"] for b in blank]
    (whole,) = results(engine.run(Score(text=("the river runs",))))
    expected = reference(engine, "[gMASK]", ("the river runs",), (0,))
    assert whole["logprob"] == pytest.approx(sum(expected[0][:-1]), abs=1e-3)


def test_probabilities_are_the_softmax_of_the_normalized_scores(engine: Engine) -> None:
    events = engine.run(Score(text=segments("the [MASK]"), spans=(("river",), ("hill of the day",)), normalize="token"))
    normalized = torch.tensor([r["normalized"] for r in results(events)])
    assert isinstance(events[-1], Done)
    assert events[-1].ranking is not None
    assert events[-1].ranking.probabilities == pytest.approx(torch.softmax(normalized, 0).tolist(), abs=1e-6)
    assert events[-1].ranking.best == int(normalized.argmax())


def test_a_deadline_and_a_cancel_end_a_request_once_and_free_its_blocks(engine: Engine) -> None:
    request = Fill((segments(TWO),), max_tokens=(200,), min_tokens=(200,), timeout_s=0.0)
    (event,) = engine.run(request)
    assert isinstance(event, Failed)
    assert event.outcome == "deadline"
    forever = Fill((segments(TWO),), max_tokens=(200,), min_tokens=(200,), n=3)
    engine.add(engine.prepare(forever, "x"), forever)
    engine.step()
    assert engine.scheduler.usage() > 0
    assert [type(e) for e in engine.cancel("x")] == [Failed]
    assert engine.cancel("x") == []
    assert engine.idle
    assert engine.scheduler.usage() == 0
    engine.scheduler.check()


def test_a_row_that_is_not_finite_ends_its_own_request_only(folder: Path, kv_cache_type: str) -> None:
    checkpoint = load(folder)
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.001, kv_cache_type=kv_cache_type), checkpoint)
    good = Fill((segments("the hill"),), max_tokens=(4,))
    clean = results(engine.run(good, "good"))
    checkpoint.model.transformer.position_embeddings.weight[60] = float("nan")
    bad = Fill((segments("x " * 120 + "[MASK]"),), max_tokens=(4,))
    engine.add(engine.prepare(bad, "bad"), bad)
    engine.add(engine.prepare(good, "good"), good)
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    (failed,) = [e for e in events if e.id == "bad"]
    assert isinstance(failed, Failed)
    assert failed.outcome == "error"
    assert results([e for e in events if e.id == "good"]) == clean
    # Nor do the blocks that the bad one leaves behind.
    engine.scheduler.clear_contexts()
    for number in range(20):
        other = Fill((segments("the hill" + " cat" * number),), max_tokens=(4,))
        assert results(engine.run(other, str(number)))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Fill((segments("a [MASK]"),), max_tokens=(1, 2)), "max_tokens"),
        (Fill((segments("a [MASK]"),), max_tokens=(10_000,)), "max_tokens"),
        (Fill((segments("a [MASK]"),), max_tokens=(1,), min_tokens=(2,)), "min_tokens"),
        (Fill((segments("a [MASK]"),), order=(1,)), "order"),
        (Fill((segments("a [MASK]"),), sampling=Sampling(logit_bias={10**6: 1.0})), "logit_bias"),
        (Fill((segments("word " * 2000),)), "text"),
        (Score(text=segments("a [MASK]"), spans=(("b", "c"),)), "spans"),
        (Score(text=segments("a [MASK]"), spans=(("",),)), "spans"),
        (Score(text=segments("a [MASK]"), spans=(("word " * 2000,),)), "spans"),
        (Score(text=segments("a [MASK]"), spans=(("b",),), orders=((0, 0),)), "orders"),
        (Score(text=segments("[MASK]" * 6), spans=(("b",) * 6,), orders="all"), "orders"),
        (Score(context=segments("a [MASK] [MASK]"), targets=("b",)), "context"),
        (Score(sentence_a="a", sentence_b="b"), "sentence_a"),
    ],
)
def test_what_cannot_be_served_is_refused_naming_the_field(engine: Engine, request_: Request, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        engine.run(request_)
    assert caught.value.param == param
    assert "\n" not in caught.value.message
    assert engine.idle


def test_a_key_with_a_long_queue_delays_another_s_request_by_a_few_steps_only(folder: Path) -> None:
    # Room for a few dozen sequences: most of the five hundred wait, and those that run hold every block.
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.0005, max_batch_tokens=64))
    for number in range(500):
        fill = Fill((segments("the [MASK]"),), max_tokens=(40,), min_tokens=(40,), tenant="many")
        engine.add(engine.prepare(fill, f"many {number}"), fill)
    for _ in range(30):
        engine.step()
    assert len(engine.scheduler.waiting) > 400
    fill = Fill((segments("the [MASK]"),), max_tokens=(5,), min_tokens=(5,), tenant="one")
    engine.add(engine.prepare(fill, "one"), fill)
    steps, events = 0, list[Event]()
    while not any(e.id == "one" for e in events):
        events = engine.step()
        engine.scheduler.check()
        steps += 1
    assert steps <= 5 + 3


def test_a_batch_request_waits_for_interactive_ones_but_not_for_ever(folder: Path) -> None:
    clock = 0.0
    engine = Engine(EngineConfig(str(folder), max_batch_tokens=6), now=lambda: clock)
    ended: list[str] = []

    def step(number: int) -> None:
        engine.scheduler.clear_contexts()
        fill = Fill((segments("a the [MASK]"),), max_tokens=(1,))
        engine.add(engine.prepare(fill, f"quick {number}"), fill)
        ended.extend(e.id for e in engine.step() if isinstance(e, TERMINAL))

    slow = Fill((segments("a red blue tin old cat [MASK]"),), max_tokens=(1,), priority="batch")
    step(0)
    step(1)
    engine.add(engine.prepare(slow, "slow"), slow)
    for number in range(2, 20):
        step(number)
        step(number + 100)
        clock += 0.2
    assert "slow" not in ended
    clock = 6.0
    for number in range(20, 24):
        step(number)
    assert "slow" in ended


def test_another_tenant_s_context_is_not_found_in_the_cache(engine: Engine) -> None:
    cached = []
    for tenant in ("a", "b", "a", ""):
        events = engine.run(Score(text=segments(TWO), spans=(("runs", "birds"),), tenant=tenant))
        assert isinstance(events[-1], Done)
        cached.append(events[-1].usage.cached_tokens)
    assert cached[0] == cached[1] == cached[3] == 0
    assert cached[2] > 0


def test_the_last_event_tells_queue_and_first_token(engine: Engine) -> None:
    *_, done = engine.run(Fill((segments(TWO),), max_tokens=(5,), min_tokens=(5,)))
    assert isinstance(done, Done)
    assert 0 <= done.queue_s <= done.first_token_s
    assert done.first_token_s > 0
    assert engine.clock.last_stats is not None
    assert len(engine.clock.last_stats.token_seconds) == 1


def test_contexts_that_are_looked_up_between_steps_are_counted(engine: Engine) -> None:
    request = Fill((segments(TWO),), max_tokens=(2,), strategy="reencode")
    seen: list[tuple[int, int]] = []
    for number in range(2):
        engine.add(engine.prepare(request, str(number)), request)
        while not engine.idle:
            engine.step()
            assert engine.clock.last_stats is not None
            seen.append((engine.clock.last_stats.context_cache_queries, engine.clock.last_stats.context_cache_hits))
    # Two blanks, each with a context of its own; the second request finds both.
    assert [sum(column) for column in zip(*seen, strict=True)] == [4, 2]
