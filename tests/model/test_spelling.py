"""Special tokens by name, and where tokens stand in their text, against the texts themselves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.offsets import offsets
from model.spelling import Spelling
from model.tokenizer import Tokenizer
from model.tokenizers.word_pieces import WordPieces

TinyTokenizer = Callable[..., Tokenizer]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_names_stand_for_tokens_and_everything_else_is_text(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    spelling = Spelling(tokenizer)
    text = "the [MASK] hill<sop> red<eop><|x|>"
    ids, starts = spelling.tokenize(text), spelling.starts(text)
    special = set(tokenizer.special.values())
    found = [(i, at) for i, at in zip(ids, starts, strict=True) if i in special]
    assert found == [(tokenizer.masks["[MASK]"], 4), (tokenizer.sop, 15), (tokenizer.eop, 24)]
    # The mask swallows the space before it.
    assert spelling.detokenize(ids) == "the[MASK] hill<sop> red<eop><|x|>"
    assert spelling.tokenize(spelling.name(tokenizer.sop)) == [tokenizer.sop]
    assert spelling.tokenize("[sop]") == tokenizer.encode("[sop]")


@given(text=TEXTS)
def test_pieces_between_offsets_are_the_whole_text(tiny_tokenizer: TinyTokenizer, text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    starts = offsets(text, ids, tokenizer)
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    for count, start in enumerate(starts):
        assert tokenizer.decode(ids[:count]).rstrip("\ufffd") == text[:start].rstrip("\ufffd")
    spelling = Spelling(tokenizer)
    assert (spelling.detokenize(ids), spelling.starts_of(ids)) == (text, starts)


def test_names_begin_one_behind_the_other(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.sop, *tokenizer.encode("the hill"), tokenizer.eop, tokenizer.eop]
    spelling = Spelling(tokenizer)
    text, starts = spelling.detokenize(ids), spelling.starts_of(ids)
    assert text == "<sop>the hill<eop><eop>"
    assert [starts[0], starts[1], *starts[-2:]] == [0, 5, 13, 18]


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("The  river\tsang.", [0, 3, 10, 15]),
        ("ＴＨＥ river", [0, 3]),
        ("Théé sang", [0, 4]),
        ("hills, sang", [0, 4, 5, 6]),
        ("", []),
    ],
)
def test_a_tokenizer_that_folds_is_walked_through_beside_the_text(tmp_path: Path, text: str, starts: list[int]) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "thee", "river", "sang", "hill", "##s", ",", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = WordPieces.read(tmp_path)
    ids = tokenizer.encode(text)
    found = offsets(text, ids, tokenizer)
    assert all(0 <= start <= len(text) for start in found)
    if tokenizer.special["unk"] not in ids:
        assert found == starts


@given(text=TEXTS)
def test_offsets_of_a_tokenizer_that_loses_much_never_decrease(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "pieces"
    if not folder.exists():
        folder.mkdir()
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nc\n1\n")
    tokenizer = WordPieces.read(folder)
    ids = tokenizer.encode(text)
    found = offsets(text, ids, tokenizer)
    assert len(found) == len(ids)
    assert found == sorted(found)
    assert all(0 <= start <= len(text) for start in found)
