"""Prompts by token ids and prompts that are scored, against the plain reference: one token at a time, from scratch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, Done, Echoed, Event, ResultDone
from engine.requests import Fill, Mask, RequestError, Sampling, Score, Tokens
from model.attention import DenseAttention, visible
from model.layout import Layout
from tests.answers import wire

TEXT = "the river hill and then a boat"


def results(events: list[Event]) -> list[dict[str, Any]]:
    assert isinstance(events[-1], Done), events[-1]
    return [wire(e.result) for e in events if isinstance(e, ResultDone)]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01))


def reference(engine: Engine, part: Layout, ids: list[int]) -> list[torch.Tensor]:
    """The distributions after the start token and after each of `ids`, everything computed from scratch each time."""
    blank = part.blanks[0]
    found = []
    for count in range(len(ids) + 1):
        fed = [blank.start, *ids[:count]]
        places = [blank.place(n) for n in range(len(fed))]
        tokens = torch.tensor([[*part.token_ids, *fed]])
        positions = torch.tensor([[*range(len(part)), *(p for p, _ in places)]])
        blocks = torch.tensor([[*(0 for _ in part.token_ids), *(b for _, b in places)]])
        mask = visible(tokens.shape[1], torch.tensor([len(part)]))
        with torch.no_grad():
            hidden = engine.runner.model(tokens, positions, blocks, DenseAttention(mask))  # type: ignore[union-attr]
            found.append(torch.log_softmax(engine.runner.model.logits(hidden[0, -1:]), -1)[0])  # type: ignore[union-attr]
    return found


def ids_of(engine: Engine, text: str) -> list[int]:
    return engine.job_context.spelling.tokenize_masks(text)


def part_a(engine: Engine, *segments: Any) -> Layout:
    return engine.job_context.rules.lay_out(list(segments), engine.tokenizer, True)


def echo(ids: list[int], **fields: Any) -> Fill:
    return Fill(((Tokens(tuple(ids)),),), **{"max_tokens": (1,), "echo": True, "logprobs": 1, **fields})


def test_a_scored_prompt_is_read_from_left_to_right_behind_the_open_mask(engine: Engine) -> None:
    ids = ids_of(engine, TEXT)
    (result,) = results(engine.run(echo(ids, max_tokens=(0,))))
    expected = reference(engine, part_a(engine, ("[gMASK]",)), ids)
    found = result["echo"]["token_logprobs"]
    assert found == pytest.approx([float(row[i]) for row, i in zip(expected, ids, strict=False)], abs=1e-4)
    assert result["blanks"][0]["finish_reason"] == "length"
    assert result["echo"]["token_ids"] == ids


def test_what_is_generated_behind_a_scored_prompt_goes_on_from_it(engine: Engine) -> None:
    ids = ids_of(engine, TEXT)
    (result,) = results(engine.run(echo(ids, max_tokens=(4,), min_tokens=(4,))))
    drawn = result["blanks"][0]["token_ids"]
    expected = reference(engine, part_a(engine, ("[gMASK]",)), [*ids, *drawn])
    logprobs = [*result["echo"]["token_logprobs"], *result["blanks"][0]["token_logprobs"]]
    assert logprobs == pytest.approx([float(r[i]) for r, i in zip(expected, [*ids, *drawn], strict=False)], abs=1e-4)


def test_a_mask_and_a_start_token_make_what_stands_before_them_the_context(engine: Engine) -> None:
    context = "the [MASK] of the hill<sop>"
    ids = engine.job_context.spelling.tokenize(context + " old river")
    known = engine.job_context.spelling.tokenize(context)
    assert ids[: len(known)] == known
    (result,) = results(engine.run(echo(ids)))
    target = ids[len(known) :]
    expected = reference(engine, part_a(engine, "the ", ("[MASK]",), " of the hill"), target)
    logprobs = result["echo"]["token_logprobs"]
    assert logprobs[: len(known)] == [None] * len(known)
    assert logprobs[len(known) :] == pytest.approx(
        [float(r[i]) for r, i in zip(expected, target, strict=False)], abs=1e-4
    )
    native = results(engine.run(Score(text=("the ", Mask("[MASK]"), " of the hill"), spans=(("old river",),))))
    assert logprobs[len(known) :] == native[0]["spans"][0]["token_logprobs"]


def test_a_start_token_that_stands_first_is_not_doubled(engine: Engine) -> None:
    ids = ids_of(engine, TEXT)
    (plain,) = results(engine.run(echo(ids)))
    (begun,) = results(engine.run(echo([engine.tokenizer.sop, *ids])))
    assert begun["echo"]["token_logprobs"] == [None, *plain["echo"]["token_logprobs"]]


def test_prompts_packed_together_score_bit_for_bit_as_alone(engine: Engine) -> None:
    prompts = [ids_of(engine, TEXT)[:count] for count in (1, 5, 12, 3)] + [ids_of(engine, "hill " * 30)]
    inputs = tuple((Tokens(tuple(ids)),) for ids in prompts)
    together = results(engine.run(Fill(inputs, max_tokens=(1,), echo=True, logprobs=2)))
    together.sort(key=lambda result: int(result["index"]))
    for ids, result in zip(prompts, together, strict=True):
        (alone,) = results(engine.run(echo(ids, logprobs=2)))
        assert alone["echo"] == result["echo"]
        assert alone["blanks"] == result["blanks"]


def test_a_string_scores_as_its_tokens_with_offsets_into_the_string(engine: Engine) -> None:
    text = "the 床 river, 我们 😀 hill"
    (result,) = results(engine.run(Fill(((text,),), max_tokens=(1,), echo=True, logprobs=1)))
    (by_ids,) = results(engine.run(echo(ids_of(engine, text))))
    assert result["echo"] == by_ids["echo"]
    offsets = result["echo"]["text_offsets"]
    assert offsets == sorted(offsets)
    pieces = [text[a:b] for a, b in zip(offsets, [*offsets[1:], len(text)], strict=True)]
    assert "".join(pieces) == text
    named = [(p, t) for p, t in zip(pieces, result["echo"]["tokens"], strict=True) if not t.startswith("<0x")]
    assert all(piece == token for piece, token in named if piece)


def test_tokens_fill_as_the_text_that_they_are_of(engine: Engine) -> None:
    ids = ids_of(engine, "the river [MASK] the hill")  # as it is served: the mask has swallowed the space before it
    (by_ids,) = results(engine.run(Fill(((Tokens(tuple(ids)),),), max_tokens=(5,))))
    assert [(b["mask"], b["start"], b["end"]) for b in by_ids["blanks"]] == [("[MASK]", 9, 15)]
    plain = ids_of(engine, TEXT)
    (open_ids,) = results(engine.run(Fill(((Tokens(tuple(plain)),),), max_tokens=(5,))))
    (open_text,) = results(engine.run(Fill(((TEXT,),), max_tokens=(5,))))
    assert open_ids == open_text
    around = (engine.tokenizer.cls, *plain, engine.tokenizer.masks["[gMASK]"])
    (framed,) = results(engine.run(Fill(((Tokens(around),),), max_tokens=(5,))))
    assert framed["blanks"][0]["token_logprobs"] == open_text["blanks"][0]["token_logprobs"]


def test_a_span_that_is_begun_goes_on_where_it_stopped(engine: Engine) -> None:
    head = [*ids_of(engine, "the river[gMASK]"), engine.tokenizer.sop]
    (whole,) = results(engine.run(Fill(((Tokens(tuple(head)),),), max_tokens=(8,), min_tokens=(8,))))
    ids = whole["blanks"][0]["token_ids"]
    begun = Fill(((Tokens((*head, *ids[:3])),),), max_tokens=(5,), min_tokens=(5,))
    (rest,) = results(engine.run(begun))
    assert rest["blanks"][0]["token_ids"] == ids[3:]
    assert whole["blanks"][0]["text"].endswith(rest["blanks"][0]["text"])


def test_a_streamed_echo_comes_before_what_is_generated(engine: Engine) -> None:
    fill = echo(ids_of(engine, TEXT), max_tokens=(3,), min_tokens=(3,), stream=True, n=2)
    events = engine.run(fill)
    kinds = [type(e) for e in events if getattr(e, "index", 0) == 0]
    assert kinds.index(Echoed) < kinds.index(BlankDelta)
    for result in results(events):
        (first,) = [e for e in events if isinstance(e, Echoed) and e.index == result["index"]]
        assert wire(first.echo) == result["echo"]
        deltas = [e for e in events if isinstance(e, BlankDelta) and e.index == result["index"]]
        assert [t for d in deltas for t in d.tokens] == result["blanks"][0]["tokens"]
        assert [o for d in deltas for o in d.text_offsets] == result["blanks"][0]["text_offsets"]


def test_a_text_that_is_too_long_is_cut_around_its_blank(engine: Engine) -> None:
    before, after = "far hill " * 150 + "the near river ", " then the boat" + " over there" * 150
    fill = Fill(((before, Mask("[MASK]"), after),), max_tokens=(4,), fit=True)
    (result,) = results(engine.run(fill))
    assert result["fitted"]
    left, right = (s for s in engine_segments(engine, fill) if isinstance(s, str))
    assert before.endswith(left)
    assert after.startswith(right)
    assert len(right) < len(left)
    assert engine.card.max_context - 8 <= len(engine.job_context.lay_out(engine_segments(engine, fill), "text"))
    short = replace(fill, inputs=(("the ", Mask("[MASK]"), " hill"),))
    assert not results(engine.run(short))[0]["fitted"]


def engine_segments(engine: Engine, fill: Fill) -> Any:
    return engine.prepare(fill, "x").samples[0].segments  # type: ignore[attr-defined]


def test_labels_by_id_score_as_the_tokens_that_they_are(engine: Engine) -> None:
    labels = [ids_of(engine, word)[0] for word in ("river", "hill")]
    context = tuple(ids_of(engine, TEXT))
    scored = Score(context=(Tokens(context),), targets=tuple(Tokens((i,)) for i in labels))
    found = [r["logprob"] for r in results(engine.run(scored))]
    expected = reference(engine, part_a(engine, TEXT, ("[gMASK]",)), [])[0]
    assert found == pytest.approx([float(expected[i]) for i in labels], abs=1e-4)


@pytest.mark.parametrize(
    ("fill", "param"),
    [
        (Fill(((Tokens((5, 10**6)),),)), "text"),
        (echo([5, 10**6]), "text"),
        (echo([5] * 400), "text"),
        (echo([5] * 2000), "text"),
        (Fill((("a",),), max_tokens=(0,)), "max_tokens"),
        (Fill(((Tokens((5,) * 200),),) * 60, max_tokens=(1,), n=5, echo=True, logprobs=20), "logprobs"),
    ],
)
def test_tokens_that_cannot_be_are_refused(engine: Engine, fill: Fill, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        engine.run(fill)
    assert caught.value.param == param
    assert engine.idle


@pytest.mark.parametrize("text", ["a [MASK] b [MASK]<sop> c", "a [MASK]<sop>"])
def test_a_scored_prompt_whose_context_is_unclear_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(RequestError, match="start token"):
        engine.run(Fill(((text,),), max_tokens=(1,), echo=True))


@pytest.mark.parametrize("text", ["the [MASK] river [MASK] hill", "the<sop> river", "<sop>[gMASK] hill"])
def test_special_tokens_that_divide_nothing_are_tokens_of_the_text(engine: Engine, text: str) -> None:
    ids = engine.job_context.spelling.tokenize(text)
    (result,) = results(engine.run(Fill(((text,),), max_tokens=(1,), echo=True)))
    skipped = int(ids[0] == engine.tokenizer.sop)
    expected = reference(engine, part_a(engine, ("[gMASK]",)), ids[skipped:])
    wanted = [float(row[i]) for row, i in zip(expected, ids[skipped:], strict=False)]
    assert result["echo"]["token_logprobs"] == [None] * skipped + [pytest.approx(w, abs=1e-4) for w in wanted]


def test_a_prompt_of_pieces_that_ends_inside_a_character_is_finished_by_what_follows(engine: Engine) -> None:
    first, second = engine.tokenizer.encode("é")
    bias = {second: 100.0}
    fill = Fill((("the ", Tokens((first,))),), max_tokens=(1,), sampling=Sampling(logit_bias=bias))
    (result,) = results(engine.run(fill))
    assert (result["text"], result["blanks"][0]["text"]) == ("the é", "é")
