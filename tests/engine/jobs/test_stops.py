"""Stop strings and minimum lengths, against vLLM's rule (v1/engine/detokenizer.py since its pull request 22014): a stop
string counts where it ends in text that comes behind the first `min_tokens` tokens."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, Done, Event, ResultDone
from engine.jobs.blank_fill import BlankFill
from engine.requests import Fill, Mask, Sampling
from engine.schedule.batch import Scored
from model.layout import Blank
from model.tokenizer import Decoder
from tests.answers import wire
from tests.model.tokenizers.test_decoder import Words

PIECES = [b"a", b"b", b"ab", b"ba", b" b", b"\xc3", b"\xa9", "é".encode(), b"\xff", "\ufffd".encode()]
STOPS = st.lists(st.text("ab \ufffdé", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple)


def stopped(pieces: Sequence[bytes], stops: Sequence[str], min_tokens: int) -> tuple[str, int, str | None]:
    """The text, how many tokens it took, and the stop string that ended it."""
    decoder, text, searched = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
    for number, piece in enumerate(pieces, start=1):
        text += decoder.decode(piece)
        if number > min_tokens:
            ends = [(at, s) for s in stops for at in range(len(text)) if text.startswith(s, at)]
            found = [(at, s) for at, s in ends if at + len(s) > searched]
            if found:
                at, stop = min(found)
                return text[:at], number, stop
        searched = len(text)
    return text + decoder.decode(b"", final=True), len(pieces), None


@given(
    drawn=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12), stops=STOPS, min_tokens=st.integers(0, 13)
)
@example(drawn=[0, 1, 0, 1], stops=("ab",), min_tokens=0)
@example(drawn=[2, 0, 1, 2], stops=("ab",), min_tokens=2)
@example(drawn=[0, 1, 2], stops=("bab",), min_tokens=2)
@settings(max_examples=500, deadline=None)
def test_a_stop_string_ends_behind_the_minimum_and_a_stream_has_what_cannot_be_cut(
    drawn: list[int], stops: tuple[str, ...], min_tokens: int
) -> None:
    tokenizer = Words(PIECES)
    context: Any = type("Context", (), {"tokenizer": tokenizer})
    place = Blank("[MASK]", False, (), 0, 0, 1, (0, 1))
    blank = BlankFill(0, place, len(drawn), min_tokens, Sampling(stop=stops), Decoder(tokenizer))
    sent = ""
    for number, token in enumerate(drawn, start=1):
        blank.accept(Scored(token, 0.0, ()), context)
        fresh = blank.fresh_text()
        sent += fresh
        if blank.finish_reason is not None:
            break
        # What is kept back could be cut: it begins a stop string that ends behind the minimum at the soonest.
        kept = codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(PIECES[i] for i in drawn[:number]))
        kept = kept.removeprefix(sent)
        left = min_tokens - number
        assert not kept or any(s.startswith(kept) and len(s[len(kept) :].encode()) > left for s in stops)
    text, count, stop = stopped([PIECES[i] for i in drawn], stops, min_tokens)
    assert (blank.text, len(blank.tokens), blank.stop_string) == (text, count, stop)
    assert sent == text
    assert blank.finish_reason == ("length" if stop is None else "stop")
    assert blank.offsets == sorted(blank.offsets)
    assert all(at <= len(text) for at in blank.offsets)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    return Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01))


def endless(engine: Engine, **fields: Any) -> Sampling:
    return Sampling(logit_bias=dict.fromkeys(engine.tokenizer.ends, -100.0), **fields)


def blanks(events: list[Event]) -> list[dict[str, Any]]:
    assert isinstance(events[-1], Done), events[-1]
    return [blank for e in events if isinstance(e, ResultDone) for blank in wire(e.result)["blanks"]]


def pieces(engine: Engine, blank: dict[str, Any], spaced: bool) -> list[bytes]:
    first, *others = (engine.tokenizer.decode_bytes([i]) for i in blank["token_ids"])
    return [first.removeprefix(b" ") if spaced else first, *others]


def test_each_blank_has_its_own_minimum(engine: Engine) -> None:
    text = ("red", Mask("[MASK]"), " fish ", Mask("[MASK]"), "!")
    free = Fill((text,), max_tokens=(12,), sampling=endless(engine, temperature=1.5, seed=4), strategy="parallel")
    plain = blanks(engine.run(free))
    for blank, minima in product(plain, ((0, 6), (6, 0), (12, 3))):
        stop = blank["text"][3]
        fill = replace(free, min_tokens=minima, sampling=replace(free.sampling, stop=(stop,)), stream=True)
        events = engine.run(fill)
        for found, whole, minimum in zip(blanks(events), plain, minima, strict=True):
            expected = stopped(pieces(engine, whole, spaced=whole["index"] == 1), [stop], minimum)
            assert (found["text"], len(found["token_ids"]), found["stop_string"]) == expected
            deltas = [e for e in events if isinstance(e, BlankDelta) and e.blank == found["index"]]
            assert "".join(d.text for d in deltas) == expected[0]


def test_text_of_the_minimum_is_streamed_at_once(engine: Engine) -> None:
    fill = Fill((("the river ",),), max_tokens=(8,), sampling=endless(engine), stream=True)
    events = engine.run(fill)
    (plain,) = blanks(events)
    for min_tokens, stop in ((8, plain["text"][:4]), (7, plain["text"][:2]), (5, "x" * 50)):
        limited = replace(fill, min_tokens=(min_tokens,), sampling=replace(fill.sampling, stop=(stop,)))
        texts = [[e.text for e in run if isinstance(e, BlankDelta)] for run in (events, engine.run(limited))]
        assert texts[0][: min_tokens - 1] == texts[1][: min_tokens - 1]


@pytest.mark.parametrize("min_tokens", [0, 3, 5])
def test_beams_know_the_minimum_too(engine: Engine, min_tokens: int) -> None:
    fill = Fill((("the [MASK]",),), max_tokens=(7,), num_beams=3, n=3, sampling=endless(engine))
    stops = tuple({blank["text"][1:2] or "e" for blank in blanks(engine.run(fill))})
    found = blanks(engine.run(replace(fill, min_tokens=(min_tokens,), sampling=replace(fill.sampling, stop=stops))))
    for blank in found:
        expected = stopped(pieces(engine, blank, spaced=True), stops, min_tokens)
        assert (blank["text"], len(blank["token_ids"]), blank["stop_string"]) == expected
        assert len(blank["token_ids"]) > min_tokens
