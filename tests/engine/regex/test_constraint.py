"""Fills that match regular expressions, against Python's `re`; tests/model/tokenizers has every kind of tokenizer."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import BlankDelta, Event
from engine.regex.automaton import Automaton
from engine.regex.compiler import compile_regex
from engine.regex.constraint import CACHE_BYTES, MASKS, Patterns
from engine.regex.pieces import Pieces
from engine.requests import Fill, RequestError, Sampling
from model.tokenizer import Tokenizer
from tests.engine.test_engine import results, segments

PATTERNS = ("a|ab|abc+", r"(red|blue) ?(boat)?", r"\d{4}-\d\d", "[^a-z]{1,4}", "(?i)yes|no")


def test_all_tokens_at_once_are_as_one_by_one(tiny_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = tiny_tokenizer()
    pieces = Pieces(tokenizer, tokenizer.size + 3)
    for automaton in map(compile_regex, PATTERNS):
        for state in range(automaton.num_states):
            found = pieces.read(automaton, state)
            for token in range(pieces.size):
                data = pieces.spelled.get(token)
                assert found[token] == (-1 if data is None else automaton.after(state, data))


@given(st.text("ab' ", max_size=8))
@settings(deadline=None)
def test_an_automaton_of_texts_that_lose_a_space(text: str) -> None:
    automaton = LOSING
    state = automaton.after(automaton.start, text.encode())
    assert automaton.accepting[state] == bool(re.fullmatch("a('b| ')*", text.replace("' ", "'")))


LOSING = compile_regex("a('b| ')*").losing_space(ord("'"))


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\1\0\0\0" + bytes(513), b"\1\0\0\0\0\0\0\0\1" + b"\1\0" * 256])
def test_an_automaton_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="an automaton"):
        Automaton.read(data)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.01, block_size=4))


TWO = "the river [MASK] under a [MASK] and sang"


@pytest.mark.parametrize("strategy", ["append", "reencode", "parallel"])
@pytest.mark.parametrize("order", ["left_to_right", "right_to_left", "confident"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_blanks_match_their_patterns(engine: Engine, strategy: str, order: str, temperature: float) -> None:
    sampling = Sampling(temperature, seed=4)
    regex = (r"[a-z]{2,5}( [a-z]{3}){1,2}", r"\d\d|船+x")
    fill = Fill((segments(TWO),), (24,), sampling=sampling, n=2, regex=regex, strategy=strategy, order=order)  # type: ignore[arg-type]
    for result in results(engine.run(fill)):
        for blank, pattern in zip(result["blanks"], regex, strict=True):
            if blank["finish_reason"] != "length":
                assert re.fullmatch(pattern, blank["text"])
                assert blank["finish_reason"] == ("stop" if blank["end_token"] else "regex")
        assert result["blanks"][1]["finish_reason"] in ("regex", "length")
    engine.scheduler.check()


def test_log_probabilities_and_alternatives_are_the_model_s_own(engine: Engine) -> None:
    free = results(engine.run(Fill((segments("a [MASK]"),), (1,), logprobs=5)))[0]["blanks"][0]
    bound = results(engine.run(Fill((segments("a [MASK]"),), (1,), logprobs=5, regex=("[0-9]{3}",))))[0]["blanks"][0]
    first = free["top_logprobs"][0] if free["token_ids"] else free["end_top_logprobs"]
    assert bound["top_logprobs"][0] == first
    assert bound["token_logprobs"][0] < first[0]["logprob"]


def test_a_pattern_that_all_texts_match_changes_nothing(engine: Engine) -> None:
    # Bytes that are no characters by themselves, and tokens of no bytes, could come without the pattern only.
    halves = [i for i in engine.tokenizer.text_ids() if engine.tokenizer.piece(i)[:3] in ("", "<0x")]
    sampling = Sampling(1.0, seed=9, logit_bias=dict.fromkeys(halves, -1e9))
    free = Fill((segments(TWO),), (12,), sampling=sampling, logprobs=2)
    assert results(engine.run(replace(free, regex=("(?s).*",)))) == results(engine.run(free))


def test_an_end_waits_for_min_tokens_but_not_for_ever(engine: Engine) -> None:
    fill = Fill((segments("a [MASK]"),), (20,), (6,), regex=("(red )*",))
    blank = results(engine.run(fill))[0]["blanks"][0]
    assert len(blank["token_ids"]) >= 6
    short = Fill((segments("a [MASK]"),), (20,), (6,), regex=("x",))
    assert results(engine.run(short))[0]["blanks"][0]["text"] == "x"
    empty = results(engine.run(Fill((segments("a [MASK]"),), (20,), regex=("",))))[0]["blanks"][0]
    assert (empty["text"], empty["finish_reason"]) == ("", "stop")


def test_max_tokens_cut_a_match_off(engine: Engine) -> None:
    blank = results(engine.run(Fill((segments("a [MASK]"),), (3,), regex=("[0-9]{9}",))))[0]["blanks"][0]
    assert (blank["finish_reason"], len(blank["token_ids"])) == ("length", 3)
    exact = results(engine.run(Fill((segments("a[MASK]"),), (3,), regex=("[0-9]{3}",))))[0]["blanks"][0]
    assert (exact["finish_reason"], len(exact["token_ids"])) == ("regex", 3)


def test_a_stop_string_ends_a_match_before_its_time(engine: Engine) -> None:
    fill = Fill((segments("a [MASK]"),), (30,), regex=("red boat",), sampling=Sampling(stop=("d b",)))
    blank = results(engine.run(fill))[0]["blanks"][0]
    assert (blank["text"], blank["stop_string"], blank["finish_reason"]) == ("re", "d b", "stop")


def test_streams_say_the_same(engine: Engine) -> None:
    fill = Fill((segments(TWO),), (12,), regex=("(red|blue) 船", r"\d+"), stream=True, sampling=Sampling(1.0, seed=2))
    events = engine.run(fill)
    for blank in results(events)[0]["blanks"]:
        deltas = [e for e in events if isinstance(e, BlankDelta) and e.blank == blank["index"]]
        assert "".join(e.text for e in deltas) == blank["text"]


def test_neighbours_and_preemption_do_not_change_a_fill(engine: Engine, folder: Path) -> None:
    jobs = [
        Fill((segments(TWO),), (24,), regex=(r"[a-z ]{30,}\.",), sampling=Sampling(1.0, seed=seed), logprobs=2)
        for seed in range(8)
    ]
    alone = results(engine.run(jobs[0]))
    small = Engine(EngineConfig(str(folder), quant="int8", kv_cache_gb=0.0002, block_size=4))
    for number, job in enumerate(jobs):
        small.add(small.prepare(job, str(number)), job)
    events: list[Event] = []
    while not small.idle:
        events += small.step()
        small.scheduler.check()
    assert small.scheduler.preemptions
    assert results([e for e in events if e.id == "0"]) == alone


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"regex": ("a", "b", "c")}, "3 patterns for 2 blanks"),
        ({"regex": ("a",), "choices": (("a",), None)}, "not both"),
        ({"regex": ("a",), "num_beams": 2}, "num_beams"),
        ({"regex": ("(",)}, "not closed"),
        ({"regex": ("a)|(?:b",)}, "closes nothing"),
        ({"regex": ("(?=a)b",)}, "look-ahead"),
        ({"regex": (r"\bfoo",)}, "word boundary"),
        ({"regex": (r"[^\s\S]",)}, "matches no text"),
        ({"regex": (r"\w{1,30}",)}, "the limit is 8000"),
    ],
)
def test_what_is_refused(engine: Engine, fields: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        engine.run(Fill((segments(TWO),), **fields))  # type: ignore[arg-type]
    assert caught.value.param == "regex"


def test_bans_that_leave_nothing_are_told(engine: Engine) -> None:
    bias = Sampling(rules={"no_repeat_ngram_size": 1})
    (failed,) = engine.run(Fill((segments("a[MASK]"),), (9,), regex=("0{9}",), sampling=bias))
    assert (failed.outcome, failed.param) == ("invalid", "regex")  # type: ignore[union-attr]
    assert engine.idle


def test_patterns_are_kept_within_bounds(tiny_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = tiny_tokenizer()
    patterns = Patterns(tokenizer, 8 * CACHE_BYTES // (2 * MASKS))  # so large a vocabulary that two fit just not
    first = patterns.get(["a"])["a"]
    assert patterns.knows(["a"])
    assert patterns.get(["a"]) == {"a": first}
    patterns.get(["b"])
    assert (patterns.knows(["a"]), patterns.knows(["b"]), patterns.knows(["a", "b"])) == (False, True, False)
    for at in [(n, n) for n in range(2)] * MASKS:
        first.allowed(at)
    assert len(first._masks) <= MASKS
    with pytest.raises(RequestError, match="16 MiB"):
        Patterns(tokenizer, tokenizer.size).get(rf"(a|b)*a(a|b){{11}}{n}c{{0,3000}}" for n in range(5))
