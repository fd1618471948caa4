"""Regular expressions over each kind of tokenizer, against Python's `re`: what may come, and what is a whole match."""

import random
import re
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest

from engine.regex.automaton import Automaton
from engine.regex.compiler import compile_regex
from engine.regex.constraint import Constraint, Pattern
from engine.regex.pieces import Pieces
from engine.requests import RequestError
from model.layout import Blank, span_ids
from model.tokenizer import Decoder, Tokenizer
from tests.model.tokenizers.conftest import Read
from tests.model.tokenizers.test_kinds import KINDS, named

# Each with texts that match it, of kinds that some tokenizers spell in bytes or lose something of.
PATTERNS = {
    r"a|ab|abc+": ["a", "ab", "abcc"],
    r"[a-z]+( [a-z]+){0,3}": ["the", "the old boat", "unbelievable things"],
    r"(red|blue) ?(boat)?": ["red", "red ", "blue boat", "redboat"],
    r" *x": ["x", " x", "   x"],
    r"\d{4}-\d\d": ["1999-12"],
    r"(it|that)'s? ?\w+": ["it's fine", "that's", "it'well"],
    r"[^a-z]{1,4}": ["船", "é", "我们", "👩", "\n"],
    r"(?i)yes|no": ["YES", "no", "yEs"],
}
PLACES = [Blank("[MASK]", spaced, (), 0, 0, 1, (0, 1)) for spaced in (False, True)]
BEHIND_TEXT = Blank("[gMASK]", False, (), 0, 0, 0, (1, 0), continues=True)


@pytest.fixture(scope="module")
def automata() -> dict[str, Automaton]:
    return {pattern: compile_regex(pattern) for pattern in PATTERNS}


@pytest.fixture(scope="module")
def pieces() -> Callable[[Tokenizer], Pieces]:
    known: dict[int, Pieces] = {}
    return lambda tokenizer: known.setdefault(id(tokenizer), Pieces(tokenizer, tokenizer.size + 3))


@pytest.mark.parametrize("name", KINDS)
def test_what_may_come_matches_and_what_matches_may_come(
    read: Read, automata: dict[str, Automaton], pieces: Callable[[Tokenizer], Pieces], name: str
) -> None:
    tokenizer = named(read, name)
    ends = tokenizer.ends
    draw = random.Random(name)
    for regex, texts in PATTERNS.items():
        pattern = Pattern(automata[regex], pieces(tokenizer), tokenizer.space_lost_behind)
        for place in PLACES:
            for _ in range(3):
                assert_walk_matches(pattern, regex, place, tokenizer, draw)
            for text in texts:
                ids = span_ids(text, place, tokenizer)
                if text_in(place, ids, tokenizer) != text or not set(ids) <= set(pattern.pieces.spelled):
                    continue
                constraint = Constraint(pattern, place, ends)
                for token in ids:
                    assert constraint.allowed()[token], (regex, text, ids)
                    constraint.accept(token)
                assert pattern.may_end(constraint._at)
                assert constraint.allowed()[list(ends)].all()


@pytest.mark.parametrize("regex", PATTERNS)
def test_a_first_token_behind_a_text_keeps_its_space(
    read: Read, automata: dict[str, Automaton], pieces: Callable[[Tokenizer], Pieces], regex: str
) -> None:
    tokenizer = named(read, "chatglm2")
    pattern = Pattern(automata[regex], pieces(tokenizer))
    for _ in range(3):
        assert_walk_matches(pattern, regex, BEHIND_TEXT, tokenizer, random.Random(regex))
    for text in PATTERNS[regex]:
        constraint = Constraint(pattern, BEHIND_TEXT, tokenizer.ends)
        for token in span_ids(text, BEHIND_TEXT, tokenizer):
            assert constraint.allowed()[token], text
            constraint.accept(token)
        assert pattern.may_end(constraint._at)


def text_in(place: Blank, ids: list[int], tokenizer: Tokenizer) -> str:
    decoder = Decoder(tokenizer, place.spaced, place.continues)
    decoder.extend(ids)
    return decoder.whole


def assert_walk_matches(pattern: Pattern, regex: str, place: Blank, tokenizer: Tokenizer, draw: random.Random) -> None:
    """Tokens drawn from what may come give a text that matches wherever it may end, and only there."""
    at, ids = pattern.begin(place), list[int]()
    for _ in range(12):
        text = text_in(place, ids, tokenizer)
        if any(unicodedata.category(c) == "Cn" for c in text):
            return  # a digit or letter of a newer Unicode than Python's, spelled in bytes
        whole = "\ufffd" not in text  # half a character is no text yet
        if any(unicodedata.category(c) in ("Mn", "Mc", "Me", "Cn") for c in text):
            return  # for Python's re no letter, and none or not yet one in its tables; for ours they are in \w and \d
        assert pattern.may_end(at) == (whole and bool(re.fullmatch(regex, text))), (regex, text, ids)
        allowed = np.flatnonzero(pattern.allowed(at))
        if not len(allowed):
            return
        ids.append(int(draw.choice(allowed)))
        at = pattern.behind(at, ids[-1])


def test_a_text_that_no_token_begins_is_refused(read: Read) -> None:
    tokenizer = named(read, "bert")
    pattern = Pattern(compile_regex("Hello"), Pieces(tokenizer, tokenizer.size), tokenizer.space_lost_behind)
    with pytest.raises(RequestError, match="no token of this model begins"):
        Constraint(pattern, PLACES[0], ())
    one = Pattern(compile_regex("the|hello there"), Pieces(tokenizer, tokenizer.size), tokenizer.space_lost_behind)
    allowed = Constraint(one, PLACES[0], (), one_token=True).allowed().nonzero()[0].tolist()
    assert {tokenizer.decode([token]) for token in allowed} == {"the"}
