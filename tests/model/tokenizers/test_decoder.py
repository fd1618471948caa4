"""The decoder, against Python's own reading of the joined bytes."""

import re
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.tokenizer import Decoder, Tokenizer
from tests.conftest import TinyTokenizer
from tests.model.tokenizers.conftest import Read
from tests.model.tokenizers.test_kinds import KINDS, named

# Bytes at the borders of what UTF-8 allows (RFC 3629, section 4), among others.
BYTES = st.one_of(
    st.binary(max_size=6),
    st.lists(st.sampled_from(list(b"a \x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xff"))).map(
        bytes
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(str.encode),
    st.sampled_from("\ufffdé船😀 '").map(str.encode),
)


# What can begin a character (The Unicode Standard, table 3-7).
UNFINISHED = re.compile(
    rb"(?:[\xc2-\xf4]|\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f]"
    rb"|(?:\xf0[\x90-\xbf]|[\xf1-\xf3][\x80-\xbf]|\xf4[\x80-\x8f])[\x80-\xbf]?|)\Z"
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


class Words(Tokenizer):
    """Token n adds some bytes that a test chooses."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        super().__init__({"eos": len(pieces)}, {}, len(pieces))

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def text_ids(self) -> range:
        return range(len(self.pieces))

    def _bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def owners(data: bytes) -> list[int]:
    """For each byte the character that it is in, of the text with one U+FFFD for each range that Python refuses."""
    found: list[int] = []
    while len(found) < len(data):
        count = found[-1] + 1 if found else 0
        try:
            good, bad = data[len(found) :].decode(), 0
        except UnicodeDecodeError as error:
            good, bad = data[len(found) :][: error.start].decode(), error.end - error.start
        found += [count + n for n, char in enumerate(good) for _ in char.encode()]
        found += [count + len(good)] * bad
    return found


@given(pieces=st.lists(BYTES, max_size=12))
@example(pieces=[b"\xc3"] * 6)
@example(pieces=[b"\xf0\x9f", b"\x98", b"\x80"])
@example(pieces=[b"\xe2\x82", b"A"])
@example(pieces=[b"\xef\xbf", b"\xbd", b"\xef\xbf\xbd", b"\xbd"])
@example(pieces=[b"\xed", b"\xa0", b"\x80"])
@settings(max_examples=400, deadline=None)
def test_broken_bytes_are_python_s_replacements_as_soon_as_they_are_certain(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    decoder = Decoder(Words(pieces))
    text, characters = data.decode("utf-8", "replace"), owners(data)
    assert characters[-1:] == [len(text) - 1][: len(text)]
    begins = accumulate(map(len, pieces), initial=0)
    for number, (piece, begin) in enumerate(zip(pieces, begins, strict=False)):
        start = decoder.add(number)
        so_far = data[: begin + len(piece)]
        unfinished = UNFINISHED.search(so_far).group()  # type: ignore[union-attr]
        assert (decoder.pending, decoder.text) == (
            unfinished,
            so_far.removesuffix(unfinished).decode("utf-8", "replace"),
        )
        if piece:
            assert start == characters[begin]
    assert decoder.whole == text


@pytest.fixture(params=[*KINDS, "demo"])
def tokenizer(request: pytest.FixtureRequest, read: Read, tiny_tokenizer: TinyTokenizer) -> Tokenizer:
    return tiny_tokenizer() if request.param == "demo" else named(read, request.param)


@given(drawn=st.lists(st.integers(0, 10**9), max_size=10), text=TEXTS, spaced=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_offsets_index_the_text_and_bytes_join_to_it(
    tokenizer: Tokenizer, drawn: list[int], text: str, spaced: bool
) -> None:
    every = tokenizer.text_ids()
    # Where a vocabulary has single bytes, half of what is drawn is one.
    halves = [i for i in every[:400] if len(tokenizer.decode_bytes([i])) == 1] or every
    ids = [(every if n % 2 else halves)[n // 2 % len(every if n % 2 else halves)] for n in drawn]
    ids += tokenizer.encode(text)
    decoder = Decoder(tokenizer, spaced)
    joined, starts, pieces = b"", [], []
    for i in ids:
        pieces.append(decoder.spell(i))
        before = decoder.text
        starts.append(decoder.add(i))
        assert decoder.text.startswith(before)
        joined += pieces[-1]
    assert joined.decode("utf-8", "replace") == decoder.whole
    assert starts == sorted(starts)
    for start, piece in zip(starts, pieces, strict=True):
        try:
            token = piece.decode()
        except UnicodeDecodeError:
            continue
        assert decoder.whole[start : start + len(token)] == token
    if not spaced:
        assert decoder.whole == tokenizer.decode(ids)


def test_text_that_is_read_in_two_parts_is_the_same(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the 'old' 船😀é boat")
    for cut in range(len(ids) + 1):
        whole, parts = Decoder(tokenizer), Decoder(tokenizer)
        whole.extend(ids)
        parts.extend(ids[:cut])
        fork, before = parts.copy(), parts.text
        parts.forget()
        parts.extend(ids[cut:])
        assert before + parts.whole == whole.whole
        assert (fork.text, fork.length) == (before, len(before))
