"""Layouts worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.layout import Blank, BlankLayout, Layout, LayoutError, Segment, parse, span_ids
from model.tokenizer import Decoder, Tokenizer
from tests.conftest import TinyTokenizer

LAYOUT = BlankLayout()
MASK, SMASK, GMASK = ("[MASK]",), ("[sMASK]",), ("[gMASK]",)


@pytest.fixture
def tokenizer(tiny_tokenizer: TinyTokenizer) -> Tokenizer:
    return tiny_tokenizer()


def shown(part: Layout, tokenizer: Tokenizer) -> str:
    """Part A as a text in which special tokens are named."""
    return "".join(tokenizer.piece(i) for i in part.token_ids)


@pytest.mark.parametrize(
    ("segments", "expected", "spaced"),
    [
        (["the cat"], "[cls]the cat[eos]", []),
        ([], "[cls][eos]", []),
        (["the ", MASK, " sang"], "[cls]the[MASK] sang[eos]", [True]),
        (["the", MASK, "sang"], "[cls]the[MASK]sang[eos]", [False]),
        ([MASK, " cat"], "[cls][MASK] cat[eos]", [False]),
        (["the cat ", MASK], "[cls]the cat[MASK][eos]", [True]),
        ([MASK], "[cls][MASK][eos]", [False]),
        (["the ", MASK, MASK, " cat"], "[cls]the[MASK][MASK] cat[eos]", [True, False]),
        (["the ", MASK, " ", SMASK], "[cls]the[MASK][sMASK][eos]", [True, True]),
        (["the  ", MASK], "[cls]the [MASK][eos]", [True]),
        (["the\n", MASK], "[cls]the\n[MASK][eos]", [False]),
        ([" ", MASK], "[cls][MASK][eos]", [True]),
        (["", MASK, "", MASK, ""], "[cls][MASK][MASK][eos]", [False, False]),
        (["the cat ", GMASK], "[cls]the cat[gMASK]", [True]),
        ([GMASK], "[cls][gMASK]", [False]),
        (["the ", MASK, " cat ", GMASK], "[cls]the[MASK] cat[gMASK]", [True, True]),
        (["the ", GMASK, " cat"], "[cls]the[gMASK] cat[eos]", [True]),
        (["the ", GMASK, " cat ", MASK], "[cls]the[gMASK] cat[MASK][eos]", [True, True]),
    ],
)
def test_part_a(segments: list[Segment], expected: str, spaced: list[bool], tokenizer: Tokenizer) -> None:
    part = LAYOUT.lay_out(segments, tokenizer)
    assert shown(part, tokenizer) == expected
    assert [blank.spaced for blank in part.blanks] == spaced
    assert [part.token_ids[b.position] for b in part.blanks] == [tokenizer.masks[b.mask] for b in part.blanks]
    masks = [segment[0] for segment in segments if isinstance(segment, tuple)]
    assert [blank.mask for blank in part.blanks] == masks


def test_positions_count_tokens_with_the_start_token_at_0(tokenizer: Tokenizer) -> None:
    part = LAYOUT.lay_out(["the ", MASK, " sang ", GMASK], tokenizer)
    the, sang = tokenizer.encode("the"), tokenizer.encode(" sang")
    assert part.token_ids == (
        tokenizer.cls, *the, tokenizer.masks["[MASK]"], *sang, tokenizer.masks["[gMASK]"]
    )  # fmt: skip
    assert part.blanks == (
        Blank("[MASK]", True, part.token_ids, tokenizer.sop, 1 + len(the), 1, (0, 1)),
        Blank("[gMASK]", True, part.token_ids, tokenizer.sop, 2 + len(the) + len(sang), 1, (0, 1)),
    )
    assert len(part) == 3 + len(the) + len(sang)


def test_a_mask_that_the_tokenizer_lacks_is_refused(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer(without=("smask", "gmask"))
    with pytest.raises(LayoutError, match=r"^this checkpoint has no \[gMASK\] token; it has \[MASK\]$"):
        LAYOUT.lay_out(["the ", GMASK], tokenizer)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("no mask", ["no mask"]),
        ("a [MASK] b", ["a ", ("[MASK]", 2, 8), " b"]),
        ("[sMASK][gMASK]", ["", ("[sMASK]", 0, 7), "", ("[gMASK]", 7, 14), ""]),
        ("[mask] [ MASK] [xMASK] [MASK", ["[mask] [ MASK] [xMASK] [MASK"]),
        ("[[MASK]]", ["[", ("[MASK]", 1, 7), "]"]),
        ("😀[MASK]", ["😀", ("[MASK]", 1, 7), ""]),
    ],
)
def test_parse_splits_at_masks(text: str, parts: list[str | tuple[str, int, int]]) -> None:
    assert parse(text) == parts


@given(text=st.text(st.characters(exclude_categories=["Cs"])), spaced=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_span_s_text_comes_back_from_its_tokens(tiny_tokenizer: TinyTokenizer, text: str, spaced: bool) -> None:
    tokenizer, blank = tiny_tokenizer(), Blank("[MASK]", spaced, (), 0, 3, 1, (0, 1))
    decoder = Decoder(tokenizer, spaced)
    decoder.extend(span_ids(text, blank, tokenizer))
    assert decoder.whole == text


@given(before=st.sampled_from(["", "the", "the ", " "]), span=st.sampled_from(["cat", " cat", "", "船"]))
def test_tokens_around_a_blank_spell_the_text_with_the_span_in_it(
    tiny_tokenizer: TinyTokenizer, before: str, span: str
) -> None:
    tokenizer = tiny_tokenizer()
    part = LAYOUT.lay_out([before, MASK, " sang"], tokenizer)
    (blank,) = part.blanks
    ids = list(part.token_ids)
    ids[blank.position : blank.position + 1] = span_ids(span, blank, tokenizer)
    assert tokenizer.decode(ids) == before + span + " sang"


def test_a_fill_without_the_swallowed_space_is_kept_whole(tokenizer: Tokenizer) -> None:
    decoder = Decoder(tokenizer, spaced=True)
    decoder.extend(tokenizer.encode("cat"))
    assert decoder.whole == "cat"
