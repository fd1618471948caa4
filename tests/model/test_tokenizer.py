"""The demo's own tokenizer: every text comes back whole, and no text is read as a special token."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.config import CheckpointError
from model.tokenizer import read_tokenizer
from tests.conftest import TinyTokenizer

CHARACTERS = " \n\t\r\0\u2581\u2047\ufeff\ufffd\u3000\u00a0\u200b\u2028\u0301\u200dＡ①，。é😀👩𝔘船the"
AWKWARD = [*CHARACTERS, "  ", "   the", " ,"]
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from(AWKWARD)).map("".join))


@given(text=texts)
@example(text="")
@example(text="\0")
@example(text="   the  red\n\n\tcat  ")
@example(text="Ａ①，。 ＴＨＥ")
@example(text="👩🏽‍🚀 sang\u2581\u2581the")
@example(text="<unk> <0x41> [MASK] [eop] <s>")
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_whole(tiny_tokenizer: TinyTokenizer, text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())


@given(text=texts, cut=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_bytes_of_pieces_join_into_the_bytes_of_the_text(tiny_tokenizer: TinyTokenizer, text: str, cut: int) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == text.encode()


def test_a_cut_character_is_a_replacement_character(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("😀")
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"
    assert tokenizer.piece(ids[0]) == "<0xF0>"


def test_special_and_unknown_ids_have_no_text(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.cls, *tokenizer.encode("cat"), tokenizer.eop, tokenizer.size + 5, -1]
    assert tokenizer.decode(ids) == "cat"


def test_special_tokens_have_names_and_pieces_their_text(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    names = [tokenizer.piece(tokenizer.special[role]) for role in ("cls", "eop", "mask", "smask", "gmask")]
    assert names == ["[cls]", "<eop>", "[MASK]", "[sMASK]", "[gMASK]"]
    assert "".join(tokenizer.piece(i) for i in tokenizer.encode("the red")) == "the red"


def test_masks_are_those_of_the_configuration(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer(without=("smask", "gmask"))
    assert tokenizer.masks == {"[MASK]": tokenizer.special["mask"]}


def test_the_end_of_a_span_comes_before_the_end_of_a_text(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.ends == (tokenizer.eop, tokenizer.eos)


def test_text_ids_are_those_before_the_special_tokens(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    assert list(tokenizer.text_ids()) == list(range(tokenizer.num_pieces))


def test_a_mask_swallows_one_space(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    assert [tokenizer.before_mask(text) for text in ("the", "the ", "the  ", "the\n")] == [
        "the",
        "the",
        "the ",
        "the\n",
    ]


def test_size_counts_pieces_and_special_tokens(tiny_tokenizer: TinyTokenizer) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.size == tokenizer.num_pieces + 7


def test_a_missing_role_is_refused(tiny_tokenizer: TinyTokenizer) -> None:
    with pytest.raises(CheckpointError, match="lacks sop, eop"):
        tiny_tokenizer(without=("sop", "eop"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.model", None),
        ("tokenizer.model", b"not a model"),
        ("tokenizer.model", b""),
        ("tokenizer_config.json", None),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{}"),
        ("tokenizer_config.json", b'{"special_tokens": 5}'),
        ("tokenizer_config.json", b'{"special_tokens": null}'),
        ("tokenizer_config.json", json.dumps({"special_tokens": dict.fromkeys(
            ("eos", "cls", "mask", "sop", "eop"), "x")}).encode()),
    ],
)  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line(
    tokenizer_folder: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_tokenizer(folder)
    assert "\n" not in str(error.value)
