"""Beam search against transformers' and against every fill there is."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, BlankDone, Echoed, Failed, ResultDone
from engine.requests import Fill, RequestError, Sampling, Score, Tokens
from tests.answers import wire
from tests.engine.jobs.test_choices import ONE
from tests.engine.test_engine import TWO, next_logprobs, results, segments
from tests.engine.test_families import engines, words  # noqa: F401

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "beams.json").read_text())


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.01, block_size=4))


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['num_beams']} beams, {case['length_penalty']}"
)
def test_beams_are_those_of_transformers(engines: dict[str, Engine], case: dict[str, Any]) -> None:  # noqa: F811
    bias = dict.fromkeys(GOLDEN["ends"], case["bias"]) if case["bias"] else {}
    text = words(GOLDEN["context"][2:])
    fill = Fill(
        (segments(f"{text} [gMASK]"),),
        (case["max_tokens"],),
        (case["min_tokens"],),
        Sampling(logit_bias=bias),
        n=min(case["num_beams"], 8),
        num_beams=case["num_beams"],
        length_penalty=case["length_penalty"],
    )
    found = results(engines["glm4"].run(fill))
    assert [r["index"] for r in found] == list(range(case["num_beams"]))
    for result, sequence, worth in zip(found, case["sequences"], case["worth"], strict=True):
        blank = result["blanks"][0]
        ended = sequence[-1] in GOLDEN["ends"]
        assert blank["token_ids"] == (sequence[:-1] if ended else sequence)
        assert blank["finish_reason"] == ("stop" if ended else "length")
        total = blank["logprob"] + (blank["end_logprob"] + case["bias"] if ended else 0.0)
        assert total / len(sequence) ** case["length_penalty"] == pytest.approx(worth, abs=1e-4)


def test_enough_beams_find_the_best_fill_of_all(engine: Engine) -> None:
    """Every fill of one or two tokens out of some, by the scorer; as many beams as there are."""
    allowed = [i for i in engine.tokenizer.encode(" red old cat bird boat") if i in engine.tokenizer.text_ids()]
    barred = {i: -100.0 for i in engine.tokenizer.text_ids() if i not in allowed}
    fill = Fill((segments(ONE),), (2,), sampling=Sampling(logit_bias=dict(list(barred.items()))), num_beams=32, n=8)
    found = results(engine.run(fill))
    spans = [s for size in (1, 2) for s in itertools.product(allowed, repeat=size)]
    scored = {}
    for ids in spans:
        score = Score(context=segments(ONE), targets=(Tokens(ids),), include_end=len(ids) == 1)
        (result,) = results(engine.run(score))
        scored[ids] = result["logprob"] / 2
    best = sorted(scored, key=lambda ids: -scored[ids])[:8]
    assert [tuple(r["blanks"][0]["token_ids"]) for r in found] == best


@pytest.mark.parametrize("strategy", ["append", "reencode", "parallel"])
def test_between_blanks_the_best_fill_is_kept(engine: Engine, strategy: Any) -> None:
    fill = Fill(
        (segments(TWO),),
        (5,),
        num_beams=3,
        strategy=strategy,
        sampling=Sampling(logit_bias={engine.tokenizer.eop: 3.0}),
    )
    first, second = results(engine.run(fill))[0]["blanks"]
    assert first["finish_reason"] in ("stop", "length")
    engine.scheduler.check()
    assert not engine.scheduler.running
    if strategy == "append":  # what is written behind the first fill sees it
        part, rows, expected = engine.job_context.lay_out(segments(TWO), "text"), [], []
        for blank, place in zip((first, second), part.blanks, strict=True):
            for number, token in enumerate([engine.tokenizer.sop, *blank["token_ids"]]):
                rows.append((token, *place.place(number)))
                expected.append(next_logprobs(engine.runner.model, part, rows))  # type: ignore[union-attr]
        count = len(first["token_ids"]) + 1
        for token, logprob, after in zip(second["token_ids"], second["token_logprobs"], expected[count:], strict=False):
            assert logprob == pytest.approx(float(after[token]), abs=1e-4)


def test_parallel_blanks_have_several_fills_each(engine: Engine) -> None:
    """The j-th answer has each blank's j-th fill, whose numbers are those of the network with the other blank open."""
    fill = Fill((segments(TWO),), (4,), num_beams=4, n=3, strategy="parallel", length_penalty=0.0)
    found = results(engine.run(fill))
    assert [r["index"] for r in found] == [0, 1, 2]
    assert results(engine.run(replace(fill, n=1)))[0] == found[0]
    part = engine.job_context.lay_out(segments(TWO), "text")
    for number, place in enumerate(part.blanks):
        blanks = [r["blanks"][number] for r in found]
        assert len({tuple(b["token_ids"]) for b in blanks}) == 3
        worth = [b["logprob"] + (b["end_logprob"] or 0.0) for b in blanks]
        assert worth == sorted(worth, reverse=True)
        for blank in blanks:
            rows: list[tuple[int, int, int]] = []
            for at, token in enumerate([place.start, *blank["token_ids"]][:-1]):
                rows.append((token, *place.place(at)))
                after = next_logprobs(engine.runner.model, part, rows)  # type: ignore[union-attr]
                assert blank["token_logprobs"][at] == pytest.approx(float(after[blank["token_ids"][at]]), abs=1e-4)
    engine.scheduler.check()
    with pytest.raises(RequestError, match="strategy parallel"):
        engine.run(replace(fill, strategy="append"))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("size", [0, 3])
def test_beams_go_on_from_a_scored_prompt_as_from_one_that_is_read(engine: Engine, size: int, penalty: float) -> None:
    tokenizer = engine.tokenizer
    prompt = tuple(tokenizer.encode(" the old cat"))[:size]
    drawn = Sampling(rules={"repetition_penalty": penalty} if penalty != 1 else {})
    scored = Fill(((Tokens(prompt),),), (4,), sampling=drawn, n=2, num_beams=3, echo=True, logprobs=1)
    read = replace(scored, inputs=((Tokens((tokenizer.special["gmask"], tokenizer.sop, *prompt)),),), echo=False)
    (plain,) = results(engine.run(replace(scored, max_tokens=(0,))))
    for one, other in zip(results(engine.run(scored)), results(engine.run(read)), strict=True):
        assert one["blanks"][0]["token_ids"] == other["blanks"][0]["token_ids"]
        assert one["blanks"][0]["token_logprobs"] == pytest.approx(other["blanks"][0]["token_logprobs"], abs=1e-5)
        assert one["echo"] == plain["echo"]
        assert len(plain["echo"]["token_ids"]) == size


@pytest.mark.parametrize(("text", "more"), [(ONE, {}), (TWO, {"strategy": "parallel"}), ("", {"echo": True})])
def test_a_stream_has_every_answer(engine: Engine, text: str, more: dict[str, Any]) -> None:
    prompt = Tokens(tuple(engine.tokenizer.encode(" the old cat")))
    inputs = ((prompt,) if not text else segments(text),)
    fill = Fill(inputs, (4,), n=3, num_beams=3, stream=True, **more)
    events = list(engine.run(fill))
    for number, result in enumerate(results(engine.run(replace(fill, stream=False)))):
        for blank in result["blanks"]:
            deltas = [e for e in events if isinstance(e, BlankDelta) and (e.index, e.blank) == (number, blank["index"])]
            assert "".join(e.text for e in deltas) == blank["text"]
            assert [i for e in deltas for i in e.token_ids] == blank["token_ids"]
            done = [e for e in events if isinstance(e, BlankDone) and e.index == number]
            assert [wire(e.blank) for e in done if e.blank.index == blank["index"]] == [blank]
        assert [e.index for e in events if isinstance(e, Echoed)] == ([0, 1, 2] if fill.echo else [])


def test_stop_strings_end_a_hypothesis(engine: Engine) -> None:
    plain = results(engine.run(Fill((segments(ONE),), (6,), num_beams=3)))[0]["blanks"][0]
    stop = plain["text"].strip()[1:3]
    fill = Fill((segments(ONE),), (6,), num_beams=3, n=3, sampling=Sampling(stop=(stop,)))
    for result in results(engine.run(fill)):
        assert stop not in result["blanks"][0]["text"]


def test_bits_are_the_same_preempted_and_amid_others(folder: Path, engine: Engine) -> None:
    fill = Fill((segments(TWO),), (7,), num_beams=4, sampling=Sampling(logit_bias={engine.tokenizer.eop: 2.0}))
    alone = results(engine.run(fill))
    small = Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.0002, block_size=4))
    for name in range(10):
        request = replace(fill, tenant=str(name % 2))
        small.add(small.prepare(request, str(name)), request)
    found = []
    while not small.idle:
        found += [wire(e.result) for e in small.step() if isinstance(e, ResultDone)]
        small.scheduler.check()
    assert len(found) == 10
    assert all(r["blanks"] == alone[0]["blanks"] for r in found)
    assert small.scheduler.preemptions


@pytest.mark.parametrize("bias", [2.0, 3.0, 4.0, 5.0, 6.0])
def test_a_text_that_grows_too_long_leaves_no_beam_behind(engine: Engine, bias: float) -> None:
    """Others of the search are forked in the very step in which the best fill, spliced in, makes the text too long."""
    room = engine.card.max_context - engine.job_context.length(segments(TWO), "text")
    text = "".join([*["\n"] * room, TWO])
    assert engine.job_context.length(segments(text), "text") == engine.card.max_context
    sampling = Sampling(logit_bias={engine.tokenizer.eop: bias})
    fill = Fill((segments(text),), (20,), (2,), sampling, num_beams=3, strategy="reencode")
    last = engine.run(fill)[-1]
    assert isinstance(last, Failed)
    assert last.outcome == "invalid"
    assert not engine.scheduler.running
    engine.scheduler.check()


def test_beams_share_blocks(engine: Engine) -> None:
    fill = Fill((segments(ONE),), (40,), (40,), num_beams=4)
    engine.add(engine.prepare(fill, "x"), fill)
    most = 0
    while not engine.idle:
        engine.step()
        held = [b for s in engine.scheduler.running for b in s.blocks]
        most = max(most, len(held) - len(set(held)))
    assert most >= 6  # what hypotheses have in common stands once


@pytest.mark.parametrize(
    ("fill", "param"),
    [
        (Fill((segments(ONE),), num_beams=2, n=3), "n"),
        (Fill((segments(TWO),), num_beams=2, n=2), "n"),
        (Fill((segments(ONE),), num_beams=2, sampling=Sampling(temperature=1.0)), "num_beams"),
        (Fill((segments(ONE),), num_beams=2, choices=(("a", "b"),)), "num_beams"),
    ],
)
def test_what_beams_cannot_do_is_refused(engine: Engine, fill: Fill, param: str) -> None:
    with pytest.raises(RequestError) as error:
        engine.run(fill)
    assert error.value.param == param
