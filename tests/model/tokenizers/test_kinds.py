"""What holds for every kind of tokenizer, and what is particular to each."""

import json
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from model.config import CheckpointError
from model.layout import BlankLayout, MaskedLayout, parse
from model.spelling import Spelling
from model.tokenizer import FILES, Decoder, Tokenizer
from model.tokenizers.word_pieces import Splitter
from tests.model.tokenizers.conftest import READERS, RESIDUES, Original, Read

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "glm", {}),
    "roberta": ("roberta", "glm", {}),
    "glm-bert": ("bert", "glm", {}),
    "bert": ("bert", "bert", {}),
    "chinese": ("chinese", "glm", {}),
    "glm-130b": ("ice", "glm-130b", {"ignore_linebreak": False}),
    "icetk": ("ice", "glm-130b", {}),
    "chatglm": ("chatglm", "chatglm", {"num_image_tokens": 0}),
    "glm-4": ("glm4", "glm-4", {}),
    "glm-4-ranks": ("glm4-ranks", "glm-4", {}),
    "qwen2": ("qwen2", "qwen2", {}),
    "starcoder2": ("starcoder2", "starcoder2", {}),
    "deepseek": ("deepseek", "llama", {}),
    "codellama": ("codellama", "llama", {}),
    "chatglm2": ("chatglm2", "chatglm2", {}),
    "proteinglm": ("residues", "proteinglm", {}),
    "proteinglm-clm": ("residues", "proteinglm-clm", {}),
}
LOSSLESS = ("gpt2", "roberta", "glm-4", "glm-4-ranks", "starcoder2", "deepseek")
HUB = {
    "<|endoftext|>": 50000, "[SEP]": 50001, "[CLS]": 50002, "[MASK]": 50003, "[UNK]": 50004, "[UNUSED1]": 50005,
    "<|startofpiece|>": 50006, "<|endofpiece|>": 50007, "[sMASK]": 50008, "[gMASK]": 50009,
}  # fmt: skip
SPELLED = "[MASK] [gMASK] [sMASK] [CLS] <|startofpiece|> <|endoftext|> <sop> <eop> <s> </s> <pad> <mask> <|user|> <unk>"
CHARACTERS = " \n\t\r\0'\u2581\u2047\ufeff\ufffd\u3000\u00a0\u200b\u2028\u0301\u200dＡ①，。é😀👩𝔘船中国the<n>"
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from(CHARACTERS)).map("".join))


def named(read: Read, name: str) -> Tokenizer:
    kind, family, fields = KINDS[name]
    return read(kind, family, **fields)


every_kind = pytest.mark.parametrize("name", KINDS)


@every_kind
def test_text_that_spells_a_special_token_is_text(read: Read, name: str) -> None:
    tokenizer = named(read, name)
    special = {*tokenizer.special.values(), *tokenizer.ends, *tokenizer.aliases}
    # No residue has a lower-case letter or a bracket.
    unknown = {tokenizer.special["unk"]} if name.startswith("proteinglm") else set()
    assert not set(tokenizer.encode(SPELLED)) & (special - unknown)


@every_kind
def test_text_ids_are_ascending_and_none_is_special(read: Read, name: str) -> None:
    tokenizer = named(read, name)
    ids = list(tokenizer.text_ids())
    assert ids == sorted(set(ids))
    assert 0 <= ids[0] <= ids[-1] < tokenizer.size
    assert not set(ids) & {*tokenizer.special.values(), *tokenizer.ends}


@every_kind
def test_special_tokens_have_no_text_but_a_name(read: Read, name: str) -> None:
    tokenizer = named(read, name)
    ids = [i for role, i in tokenizer.special.items() if role != "unk"]
    assert tokenizer.decode([*ids, tokenizer.size, tokenizer.size + 7, -1]) == ""
    assert all(tokenizer.piece(i) for i in tokenizer.special.values())
    assert [tokenizer.piece(i) for i in tokenizer.masks.values()] == list(tokenizer.masks)


@every_kind
def test_every_text_id_has_bytes(read: Read, name: str) -> None:
    tokenizer = named(read, name)
    assert all(tokenizer.decode_bytes([i]) for i in tokenizer.text_ids())


@every_kind
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_a_text_has_ids_of_text_only(read: Read, name: str, text: str) -> None:
    tokenizer = named(read, name)
    unknown = {i for i in (0, tokenizer.special.get("unk", 0)) if i not in tokenizer.text_ids()}
    unknown.add(getattr(tokenizer, "offset", 0))
    assert set(tokenizer.encode(text)) <= {*tokenizer.text_ids(), *unknown}


@every_kind
@given(text=texts, drawn=st.lists(st.integers(0, 10**9), max_size=8), cut=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_more_ids_never_change_what_fewer_gave(read: Read, name: str, text: str, drawn: list[int], cut: int) -> None:
    tokenizer = named(read, name)
    every = tokenizer.text_ids()
    ids = [*tokenizer.encode(text), *(every[n % len(every)] for n in drawn), tokenizer.special.get("mask", 0)]
    ids = ids[len(text) // 2 :]
    decoder = Decoder(tokenizer)
    decoder.extend(ids[:cut])
    assert tokenizer.decode(ids).startswith(decoder.text)
    assert tokenizer.decode_bytes(ids[:cut]) + tokenizer.decode_bytes(ids[cut:]) == tokenizer.decode_bytes(ids)
    decoder.extend(ids[cut:])
    assert decoder.whole == tokenizer.decode(ids)


@every_kind
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_what_comes_back_is_a_fixed_point(read: Read, name: str, text: str) -> None:
    """A text loses what it loses the first time."""
    tokenizer = named(read, name)
    once = tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(once)) == once or "⁇" in once or "[UNK]" in once


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_byte_level_bpe_loses_nothing(read: Read, name: str, text: str) -> None:
    tokenizer = named(read, name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


class TestGPT2:
    def test_ids(self, read: Read) -> None:
        tokenizer = read("gpt2")
        assert (tokenizer.eos, tokenizer.sop, tokenizer.eop, tokenizer.cls) == (50256, 50257, 50258, 50259)
        assert tokenizer.masks == {"[MASK]": 50260, "[sMASK]": 50264, "[gMASK]": 50263}
        assert tokenizer.ends == (50258, 50256)
        assert tokenizer.size == 50265
        assert list(tokenizer.text_ids()) == list(range(50256))
        assert tokenizer.encode("Hello world") == [15496, 995]

    def test_ids_of_the_hub_s_added_tokens(self, read: Read) -> None:
        given = {"<|startofpiece|>": 50257, "<|endofpiece|>": 50258, "[CLS]": 50259, "[MASK]": 50260, "[UNUSED]": 50262}
        tokenizer = read("gpt2", added_tokens=given)
        assert tokenizer.masks == {"[MASK]": 50260}
        assert tokenizer.piece(50262) == "[UNUSED]"

    def test_roberta(self, read: Read) -> None:
        tokenizer = read("roberta")
        assert (tokenizer.cls, tokenizer.eos, tokenizer.sop, tokenizer.eop) == (0, 2, 50265, 50266)
        assert tokenizer.masks == {"[MASK]": 50264}
        assert tokenizer.size == 50267

    def test_roberta_s_unused_rows_are_not_drawn(self, read: Read) -> None:
        unused = {0, 1, 2, 3, 50260, 50261, 50262, 50263, 50264}
        assert list(read("roberta").text_ids()) == [i for i in range(50265) if i not in unused]


class TestWordPieces:
    def test_ids(self, read: Read) -> None:
        tokenizer = read("bert")
        assert (tokenizer.eos, tokenizer.cls, tokenizer.sop, tokenizer.eop) == (0, 101, 30522, 30523)
        assert tokenizer.ends == (30523, 0)
        assert tokenizer.masks == {"[MASK]": 103}
        assert tokenizer.size == 30524
        assert tokenizer.encode("Unaffable!") == [14477, 20961, 3468, 999]

    def test_task_masks(self, read: Read) -> None:
        given = {"<|startofpiece|>": 30522, "<|endofpiece|>": 30523, "[gMASK]": 30524, "[sMASK]": 30525}
        assert read("bert", added_tokens=given).masks == {"[MASK]": 103, "[sMASK]": 30525, "[gMASK]": 30524}

    def test_a_plain_bert_has_no_tokens_of_glm(self, read: Read) -> None:
        tokenizer = read("bert", "bert")
        assert tokenizer.special == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
        assert tokenizer.size == 30522
        assert tokenizer.ends == ()
        with pytest.raises(CheckpointError, match="this tokenizer has no sop token; it has pad, unk"):
            _ = tokenizer.sop

    def test_rows_that_bert_keeps_free_are_not_drawn(self, read: Read) -> None:
        tokenizer = read("bert")
        assert not {tokenizer.piece(i) for i in tokenizer.text_ids()} & {" [unused0]", " [unused993]"}

    @pytest.mark.parametrize(
        ("text", "back"),
        [
            ("The cat, he said, isn't here.", "the cat, he said, isn't here."),
            ("Straße  Café\n", "straße cafe"),
            ("unaffable (yes)", "unaffable ( yes )"),
            ("我在船", "我 [UNK] [UNK]"),
            ("b" * 101, "[UNK]"),
        ],
    )
    def test_what_comes_back(self, read: Read, text: str, back: str) -> None:
        tokenizer = read("bert")
        assert tokenizer.decode(tokenizer.encode(text)) == back

    def test_bytes_keep_the_space_before_a_word(self, read: Read) -> None:
        tokenizer = read("bert")
        assert tokenizer.decode_bytes(tokenizer.encode("the cat.")) == b" the cat."

    def test_cased(self, original: Original, read: Read) -> None:
        tokenizer = read("bert", "bert", do_lower_case=False)
        assert tokenizer.decode(tokenizer.encode("The cat")) == "[UNK] cat"

    def test_tokenizer_json(self, original: Original, read: Read) -> None:
        folder = original("bert", do_lower_case=True)
        vocab = {line: i for i, line in enumerate((folder / "vocab.txt").read_text().split("\n")[:-1])}
        (folder / "vocab.txt").unlink()
        rules = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
        data = {"model": {"type": "WordPiece", "vocab": vocab}, "normalizer": rules}
        (folder / "tokenizer.json").write_text(json.dumps(data))
        text = "Ünaffable 中国's"
        assert READERS["bert"](folder).encode(text) == read("bert", "bert").encode(text)

    def test_characters_are_dropped_as_by_the_tokenizers_library(self, read: Read) -> None:
        """tokenizers 0.23: control, format and private characters and no others. Its table of format characters is
        Unicode 8's, so that it keeps the few that are younger; Python's grows with Python, which changes their ids."""
        splitter = Splitter(lower=False, strip_accents=False, ideographs_apart=False)
        theirs = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
        )
        points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 7), 0x1FFFE, 0x1FFFF]
        for c in map(chr, points):
            dropped = list(splitter.words(f"a{c}b")) == ["ab"]
            if dropped != (theirs.normalize_str(f"a{c}b") == "ab"):
                assert unicodedata.category(c) == "Cf", hex(ord(c))

    @pytest.mark.parametrize("c", ["\u0378", "\U0001fae9", "\U00016d43"])
    def test_a_character_that_python_s_tables_lack_stays(self, read: Read, c: str) -> None:
        """Not assigned yet, or in Unicode 16: dropped, it would have other ids in another version of Python."""
        for family in ("bert", "glm"):
            tokenizer = read("bert", family)
            assert tokenizer.encode(f"the {c} cat") == [*tokenizer.encode("the"), 100, *tokenizer.encode("cat")]

    def test_noncharacters_are_dropped_by_glm_s_own_code_only(self, read: Read) -> None:
        assert read("bert").encode("the\ufffe cat") == read("bert").encode("the cat")
        assert read("bert", "bert").encode("the\ufffe cat") == [100, *read("bert", "bert").encode("cat")]


class TestTokenizerJsonAlone:
    """GLM v1 folders with the tokenizers library's own file and nothing else."""

    GPT2 = ("<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]")
    TEXTS = ("Hello  world's\n\tend", "naïve café 中文 👩🏽‍🚀", SPELLED, " ", CHARACTERS)

    def folder(self, path: Path, model: tokenizers.Tokenizer, added: Sequence[str]) -> Path:
        model.add_special_tokens(list(added))
        model.save(str(path / "tokenizer.json"))
        return path

    def same(self, found: Tokenizer, known: Tokenizer) -> None:
        assert (found.special, found.size, found.masks, found.ends) == (
            known.special, known.size, known.masks, known.ends)  # fmt: skip
        assert list(found.text_ids()) == list(known.text_ids())
        assert found.names == known.names
        for text in self.TEXTS:
            assert found.encode(text) == known.encode(text)
            assert found.decode(found.encode(text)) == known.decode(known.encode(text))

    @pytest.mark.parametrize("added", [GPT2, ()], ids=["added_tokens", "none"])
    def test_gpt2(self, original: Original, read: Read, tmp_path: Path, added: Sequence[str]) -> None:
        files = original("gpt2")
        model = tokenizers.Tokenizer(models.BPE.from_file(str(files / "vocab.json"), str(files / "merges.txt")))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.same(READERS["glm"](self.folder(tmp_path, model, ["<|endoftext|>", *added])), read("gpt2"))

    @pytest.mark.parametrize("added", [GPT2[:2], ()], ids=["added_tokens", "none"])
    def test_roberta(self, original: Original, read: Read, tmp_path: Path, added: Sequence[str]) -> None:
        files = original("roberta")
        model = tokenizers.Tokenizer(models.BPE.from_file(str(files / "vocab.json"), str(files / "merges.txt")))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        base = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        self.same(READERS["glm"](self.folder(tmp_path, model, [*base, *added])), read("roberta"))

    @pytest.mark.parametrize("added", [GPT2[:2], ()], ids=["added_tokens", "none"])
    def test_bert(self, original: Original, read: Read, tmp_path: Path, added: Sequence[str]) -> None:
        model = tokenizers.Tokenizer(models.WordPiece.from_file(str(original("bert") / "vocab.txt"), unk_token="[UNK]"))
        model.normalizer = normalizers.BertNormalizer()
        base = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        self.same(READERS["glm"](self.folder(tmp_path, model, [*base, *added])), read("bert"))

    def test_another_kind_is_refused(self, tmp_path: Path) -> None:
        self.folder(tmp_path, tokenizers.Tokenizer(models.Unigram([("a", 0.0)], 0)), [])
        with pytest.raises(CheckpointError, match=r"tokenizer.json: the model's type is 'Unigram'; GLM's are 'BPE'"):
            READERS["glm"](tmp_path)


class TestChinese:
    def test_ids(self, read: Read) -> None:
        for tokenizer in (read("chinese"), read("chinese", added_tokens=HUB)):
            assert (tokenizer.eos, tokenizer.cls, tokenizer.sop, tokenizer.eop) == (50000, 50002, 50006, 50007)
            assert tokenizer.masks == {"[MASK]": 50003, "[sMASK]": 50008, "[gMASK]": 50009}
            assert tokenizer.ends == (50007, 50000)
            assert tokenizer.aliases == {}
            assert tokenizer.size == 50010
            assert list(tokenizer.text_ids()) == list(range(3, 50000))

    def test_trap_8_gmask_and_the_end_of_a_span_share_a_row_on_the_hub(self, read: Read) -> None:
        """glm-10b-chinese: 50009 is a copy of 50007, as probable, and must not be drawn."""
        tokenizer = read("chinese", added_tokens=HUB, config={"bad_words_id": [50009]})
        assert tokenizer.masks["[gMASK]"] == 50009
        assert tokenizer.aliases == {50009: 50007}
        assert tokenizer.ends == (50007, 50000)
        assert not {50009, *tokenizer.ends} & set(tokenizer.text_ids())

    def test_trap_8_gmask_is_the_end_of_a_span_in_the_original(self, read: Read) -> None:
        tokenizer = read("chinese", glm_infill={"gmask_is_eop": True})
        assert tokenizer.masks == {"[MASK]": 50003, "[sMASK]": 50008, "[gMASK]": 50007}
        assert tokenizer.eop == 50007
        assert tokenizer.piece(50007) == "<|endofpiece|>"
        assert tokenizer.aliases == {}

    @pytest.mark.parametrize(
        ("text", "back"),
        [
            ("  我们看见\n\n红色的船。 ", "我们看见 红色的船。"),
            ("Ａ１，①", "A1,1"),
            ("船\U0001fae0", "船 ⁇ "),
            ("a<n>b", "a<n>b"),
        ],
    )
    def test_what_comes_back(self, read: Read, text: str, back: str) -> None:
        tokenizer = read("chinese")
        assert tokenizer.decode(tokenizer.encode(text)) == back


class TestIce:
    def test_roles(self, read: Read) -> None:
        tokenizer = read("ice", "glm-130b", ignore_linebreak=False)
        first = tokenizer.special["mask"]
        roles = ("mask", "gmask", "smask", "eod", "sop", "eop", "enc", "dblock")
        assert [tokenizer.special[role] for role in roles] == list(range(first, first + 8))
        assert (tokenizer.special["unk"], tokenizer.eos, tokenizer.special["pad"]) == (20000, 20002, 20003)
        assert tokenizer.ends == (first + 5, 20002)
        assert tokenizer.encode("\n")[-1] == 20004
        assert tokenizer.encode("\t")[-1] == first + 8
        assert tokenizer.encode(" " * 80)[-1] == first + 87
        assert tokenizer.size == first + 8 + 80 + 256
        with pytest.raises(CheckpointError, match="no cls token"):
            _ = tokenizer.cls

    @pytest.mark.parametrize("text", ["a\nb", "\ta", "  a", "a" + " " * 161 + "b", "x\n    y\n\tz", "船\U0001fae0\n"])
    def test_white_space_and_unknown_characters_come_back(self, read: Read, text: str) -> None:
        tokenizer = read("chatglm", "chatglm", num_image_tokens=0)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_ignore_linebreak_makes_all_white_space_one_space(self, read: Read) -> None:
        tokenizer = read("ice", "glm-130b")
        assert tokenizer.encode("the\n\n\tcat   sat") == tokenizer.encode("the cat sat")
        assert tokenizer.decode(tokenizer.encode("the<n>cat")) == "the\ncat"

    def test_a_new_file_and_an_old_one_are_the_same(self, read: Read) -> None:
        new, old = read("chatglm", "chatglm"), read("ice", "chatglm")
        assert (new.special, new.size, list(new.text_ids())) == (old.special, old.size, list(old.text_ids()))


class TestGLM4:
    def test_roles(self, read: Read) -> None:
        for tokenizer in (read("glm4", "glm-4"), read("glm4-ranks", "glm-4")):
            first = tokenizer.eos
            roles = ("eos", "mask", "gmask", "smask", "sop", "eop", "system", "user", "assistant", "observation")
            assert [tokenizer.special[role] for role in roles] == list(range(first, first + 10))
            assert tokenizer.ends == (first, first + 7, first + 9)
            assert list(tokenizer.text_ids()) == list(range(first))
            assert not tokenizer.mask_strips

    def test_a_code_model_s_tokens(self, read: Read) -> None:
        assert {"code_prefix", "code_middle", "code_suffix"} <= read("glm4", "glm-4").special.keys()
        assert "code_prefix" not in read("glm4-ranks", "glm-4").special

    def test_special_ids_of_tokenizer_config_json(self, read: Read) -> None:
        names = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>", "<|code_prefix|>")
        given = {str(60000 + n): {"content": name} for n, name in enumerate(names)}
        tokenizer = read("glm4-ranks", "glm-4", added_tokens_decoder=given)
        assert tokenizer.ends == (60000, 60003, 60004)
        assert tokenizer.special["code_prefix"] == 60005


class TestChatGLM2:
    def test_roles(self, read: Read) -> None:
        tokenizer = read("chatglm2", "chatglm2")
        first = tokenizer.masks["[MASK]"]
        roles = ("mask", "gmask", "smask", "sop", "eop", "system", "user", "assistant", "observation")
        assert [tokenizer.special[role] for role in roles] == list(range(first, first + 9))
        assert tokenizer.ends == (2, first + 6, first + 8)
        assert list(tokenizer.text_ids()) == list(range(3, first))
        assert not tokenizer.mask_strips

    @pytest.mark.parametrize(
        "text", ["a\nb", "\ta", "  a", " ", "x\n    y\n\tz", "船\U0001fae0\n", "a" + " " * 99 + "b"]
    )
    def test_white_space_and_unknown_characters_come_back(self, read: Read, text: str) -> None:
        tokenizer = read("chatglm2", "chatglm2")
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize("text", ["the sea", "    return", "\n\tx", "，船", " ", ""])
    def test_a_text_goes_on_without_a_space_of_the_vocabulary_s(self, read: Read, text: str) -> None:
        tokenizer = read("chatglm2", "chatglm2")
        decoder = Decoder(tokenizer, continues=True)
        decoder.extend(tokenizer.encode_on(text))
        assert decoder.whole == text
        assert tokenizer.encode_on("the") != tokenizer.encode("the") == tokenizer.encode_on(" the")

    def test_a_vocabulary_without_a_space_before_texts(self, tmp_path: Path, original: Original) -> None:
        folder = original("chatglm2")
        proto = (folder / "tokenizer.model").read_bytes()
        (folder / "tokenizer.model").write_bytes(proto + b"\x1a\x02\x18\x00")  # add_dummy_prefix false
        tokenizer = READERS["chatglm2"](folder)
        assert tokenizer.encode("the") == tokenizer.encode_on("the")
        assert tokenizer.decode(tokenizer.encode(" the")) == " the"


class TestResidues:
    def test_ids(self, read: Read) -> None:
        assert len(RESIDUES) == 112
        masked, causal = read("residues", "proteinglm"), read("residues", "proteinglm-clm")
        roles = ("mask", "gmask", "smask", "eod", "sop", "eop", "eos", "unk")
        for tokenizer in (masked, causal):
            assert [tokenizer.special[role] for role in roles] == list(range(28, 36))
            assert tokenizer.encode("LAG-") == [1, 2, 3, 27]
            assert list(tokenizer.text_ids()) == list(range(1, 28))
            assert tokenizer.size == 36
        assert masked.ends == ()
        assert causal.ends == (34, 33)

    @pytest.mark.parametrize(
        "text", ["MKV LL", "M\nK", " MK ", "mkv", "MKvaVJJ", "M k k V", "M船K", "MK-.XBUZO", "", "J" * 9]
    )
    def test_as_transformers_reads_such_a_vocabulary(self, read: Read, tmp_path: Path, text: str) -> None:
        """Its EsmTokenizer has a token a line too, and splits a text at the tokens of its file."""
        (tmp_path / "vocab.txt").write_bytes(RESIDUES)
        theirs = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"), cls_token="<pad>", eos_token="<eos>")
        assert read("residues", "proteinglm").encode(text) == theirs.encode(text, add_special_tokens=False)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:e7dc\nsize 1018370\n"


@pytest.mark.parametrize(
    ("family", "held", "named"),
    [
        (
            "glm-4",
            "chatglm2",
            r"is a sentencepiece model; this model's has in each line a piece in base64 and its rank",
        ),
        ("chatglm2", "glm4-ranks", r"is a vocabulary of GLM-4's kind .*; this model's is a sentencepiece model"),
        ("glm-4", LFS, "a Git LFS pointer, not the file"),
        ("chatglm2", LFS, "a Git LFS pointer, not the file"),
        ("chatglm2", b"", "is empty; this model's is a sentencepiece model"),
        ("chatglm2", "residues", r"is a vocabulary of ProteinGLM's kind .*; this model's is a sentencepiece model"),
        ("proteinglm", "chatglm2", "is a sentencepiece model; this model's has in each line a token"),
        ("proteinglm-clm", "glm4-ranks", "is a vocabulary of GLM-4's kind .*; this model's has in each line a token"),
        ("proteinglm", b"L\nA\n", "is of no known kind; this model's has in each line a token"),
        ("proteinglm", b"<pad>\nL\n<mask>\n<eos>\n", "no special token for unk"),
        ("proteinglm", b"<pad>\nL\nL\n<mask>\n<eos>\n<unk>", "has an empty line or a token twice"),
        ("proteinglm", b"<pad>\n<mask>\n<eos>\n<unk>", "has no residues"),
        ("proteinglm", None, "lacks its tokenizer, the file tokenizer.model"),
        ("chatglm2", b"\0\1\2", "is of no known kind; this model's is a sentencepiece model"),
        ("glm-4", None, "lacks its tokenizer, the file tokenizer.json or tokenizer.model"),
        ("chatglm2", None, "lacks its tokenizer, the file tokenizer.model"),
    ],
)
def test_a_tokenizer_of_another_kind_is_called_what_it_is(
    files: dict[str, dict[str, bytes]], tmp_path: Path, family: str, held: str | bytes | None, named: str
) -> None:
    if held is not None:
        content = held if isinstance(held, bytes) else files[held]["tokenizer.model"]
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=named) as error:
        READERS[family](tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "family", "file", "content", "named"),
    [
        ("gpt2", "glm", "vocab.json", b"[]", "vocab.json"),
        ("gpt2", "glm", "vocab.json", b'{"a": 0}', "merges.txt"),
        ("gpt2", "glm", "merges.txt", None, "merges.txt"),
        ("gpt2", "glm", "merges.txt", b"#version\na b c\n", "merges.txt"),
        ("gpt2", "glm", "added_tokens.json", b'{"[CLS]": 7}', "added_tokens.json"),
        ("gpt2", "glm", "added_tokens.json", b'{"[CLS]": "7"}', "added_tokens.json"),
        ("bert", "glm", "vocab.txt", b"a\nb\n", "lacks \\[PAD\\]"),
        ("bert", "bert", "vocab.txt", None, "tokenizer.json"),
        ("bert", "glm", "added_tokens.json", b'{"[CLS]": 7}', "sop, eop"),
        ("chinese", "glm", "cog-pretrain.model", b"not a model", "cog-pretrain.model"),
        ("chinese", "glm", "added_tokens.json", b'{"[gMASK]": 7}', "eos, cls"),
        ("chinese", "glm", "config.json", b"\xff", "config.json"),
        ("ice", "chatglm", "ice_text.model", None, "ice_text.model"),
        ("ice", "chatglm", "ice_text.model", b"", "ice_text.model"),
        ("ice", "chatglm", "tokenizer_config.json", b'{"num_image_tokens": "x"}', "num_image_tokens"),
        ("ice", "glm-130b", "tokenizer_config.json", b"{", "tokenizer_config.json"),
        ("glm4", "glm-4", "tokenizer.json", b"{}", "model.vocab"),
        ("glm4", "glm-4", "tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "added_tokens"),
        ("glm4", "glm-4", "tokenizer.json", b'{"model": {"vocab": {"a": 0}}, "added_tokens": []}', "tokenizer.json"),
        ("glm4-ranks", "glm-4", "tokenizer.model", None, "tokenizer.model"),
        ("glm4-ranks", "glm-4", "tokenizer.model", b"YQ== x", "base64"),
        ("glm4-ranks", "glm-4", "tokenizer.model", b"YQ== 0", "single bytes"),
        ("glm4-ranks", "glm-4", "tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "added_tokens_decoder"),
    ],
)  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line(
    original: Original, kind: str, family: str, file: str, content: bytes | None, named: str
) -> None:
    folder = original(kind)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=named) as error:
        READERS[family](folder)
    assert "\n" not in str(error.value)


def test_every_file_that_a_tokenizer_reads_is_named(files: dict[str, dict[str, bytes]]) -> None:
    assert {name for kind in files.values() for name in kind} <= set(FILES)


def test_no_tokenizer_loads_torch() -> None:
    code = "import sys, model.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@every_kind
def test_entries_are_the_vocabulary_s_own_words(original: Original, name: str) -> None:
    """What transformers' `convert_ids_to_tokens` gives for GPT-2, RoBERTa and BERT, else the library's own reading of
    the file."""
    kind, family, fields = KINDS[name]
    folder = original(kind, **fields)
    tokenizer = READERS[family](folder)
    ids = list(tokenizer.text_ids())
    ids = [*ids[:300], *ids[-300:]]
    found = [tokenizer.entry(i) for i in ids]
    if kind in ("gpt2", "roberta", "bert"):
        classes = {"gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer", "bert": "BertTokenizer"}
        theirs = getattr(transformers, classes[kind]).from_pretrained(folder)
        assert found == theirs.convert_ids_to_tokens(ids)
    elif kind == "glm4":
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert found == [theirs.id_to_token(i) for i in ids]
    elif kind in ("chinese", "chatglm2"):
        name = {"chinese": "cog-pretrain.model", "chatglm2": "tokenizer.model"}[kind]
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        assert found == pieces.id_to_piece(ids)
    assert all(found)
    special = list(tokenizer.names)
    assert [tokenizer.entry(i) for i in special] == [tokenizer.names[i] for i in special]


@every_kind
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.one_of(texts, st.sampled_from(["[MASK]", " [MASK]", "a  [gMASK]", "[sMASK] "])), max_size=6))
def test_a_text_is_tokenized_as_it_is_laid_out(read: Read, name: str, parts: list[str]) -> None:
    """The ids that a client is told are those that fills and scores are made of."""
    tokenizer = named(read, name)
    text = "".join(parts)
    known = [p if isinstance(p, str) else (p[0],) for p in parse(text)]
    if any(isinstance(p, tuple) and p[0] not in tokenizer.masks for p in known):
        return
    laid = MaskedLayout() if name == "bert" else BlankLayout(first=(), end="never")
    ids = Spelling(tokenizer).tokenize_masks(text)
    if "sop" in tokenizer.special:
        assert list(laid.lay_out(known, tokenizer).token_ids) == ids
    elif name == "bert":
        assert list(laid.lay_out(known, tokenizer).token_ids)[1:-1] == ids


@every_kind
def test_bytes_of_tokens_are_those_of_the_text(read: Read, name: str) -> None:
    tokenizer = named(read, name)
    spelling, text = Spelling(tokenizer), "the river, 船 and é"
    mark = tokenizer.names[tokenizer.special["mask" if "mask" in tokenizer.special else "fim_middle"]]
    ids = spelling.tokenize(f"{text}{mark}")
    data = b"".join(map(spelling.token_bytes, ids))
    assert data == tokenizer.decode_bytes(ids[:-1]) + mark.encode()
    if name in LOSSLESS:
        assert data.decode() == f"{text}{mark}"
