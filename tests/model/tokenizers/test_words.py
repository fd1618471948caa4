"""Words of a text, and the tokens of each, in every vocabulary.

What a word is says Python's str.split. Where tokens stand in a text says the tokenizers library, for the vocabularies
that it can read.
"""

from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import models, normalizers, pre_tokenizers

from model.checkpoint import DEMO
from model.tokenizer import Tokenizer, read_tokenizer
from model.words import Words
from tests.model.tokenizers.conftest import Original, Read
from tests.model.tokenizers.test_kinds import KINDS, named, texts

TEXTS = (
    "In the beginning was the Word.",
    "  two  spaces,\tand a tab\n\nand lines. \n",
    "Naïve café: 我们看见红色的船。 ＡＢＣ①，",
    "it isn't (unaffable) -- 3.14 😀👩🏽‍🚀 end",
    "船\U0001fae0 unk \u0301a\ufffd [UNK] ⁇ unk cat",
    "def f(x):\n    return x\n\n\n# end.\n\nNext",
    "x",
)


@pytest.fixture(params=[*KINDS, "demo"])
def tokenizer(request: pytest.FixtureRequest, read: Read) -> Tokenizer:
    return read_tokenizer(DEMO) if request.param == "demo" else named(read, request.param)


def check(text: str, tokenizer: Tokenizer) -> Words:
    ids = tokenizer.encode(text)
    words = Words.of(text, ids, tokenizer)
    assert [text[start:end] for start, end in words.spans] == text.split()
    assert len(words.owners) == (len(ids) if words.spans else 0)
    assert all(before <= after for before, after in pairwise(words.owners))
    assert set(words.owners) <= set(range(len(words.spans)))
    return words


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_white_space_has_no_words(text: str, tokenizer: Tokenizer) -> None:
    assert check(text, tokenizer) == Words((), ())


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_python_s_split(text: str, tokenizer: Tokenizer) -> None:
    check(text, tokenizer)


@given(text=texts)
@settings(max_examples=40, deadline=None)
def test_every_token_is_of_one_word_in_their_order(text: str, read: Read) -> None:
    for name in KINDS:
        check(text, named(read, name))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_a_word_spell_it(text: str, tokenizer: Tokenizer) -> None:
    """Alone a word has the same text as its tokens have here, whatever a vocabulary loses."""
    ids, words = tokenizer.encode(text), check(text, tokenizer)
    for number, (start, end) in enumerate(words.spans):
        own = [i for i, owner in zip(ids, words.owners, strict=True) if owner == number]
        alone = tokenizer.decode(tokenizer.encode(text[start:end]))
        assert tokenizer.decode(own).strip() == alone.strip(), (text[start:end], own)


def test_a_span_behind_a_space_that_its_mask_swallowed(read: Read) -> None:
    tokenizer = named(read, "gpt2")
    ids = tokenizer.encode(" blue boat")
    assert Words.of("blue boat", ids, tokenizer, spaced=True) == Words(((0, 4), (5, 9)), (0, 1))


def owners_by(library: tokenizers.Tokenizer, text: str, spans: tuple[tuple[int, int], ...]) -> list[int]:
    """By the library's offsets: the word of a token's first character that is no white space, else the last one."""
    found = []
    for start, _ in library.encode(text, add_special_tokens=False).offsets:
        at = next((n for n in range(start, len(text)) if not text[n].isspace()), len(text) - 1)
        found.append(next((n for n, (first, end) in enumerate(spans) if first <= at < end), len(spans) - 1))
    return found


@pytest.mark.parametrize("text", [text for text in TEXTS if "船\U0001fae0" not in text])
def test_tokens_stand_where_the_library_says(text: str, original: Original, read: Read) -> None:
    gpt2, bert = original("gpt2"), original("bert")
    bpe = tokenizers.Tokenizer(models.BPE.from_file(str(gpt2 / "vocab.json"), str(gpt2 / "merges.txt")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = tokenizers.Tokenizer(models.WordPiece.from_file(str(bert / "vocab.txt"), unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    for name, library in (("gpt2", bpe), ("bert", pieces)):
        words = check(text, named(read, name))
        assert list(words.owners) == owners_by(library, text, words.spans), name
