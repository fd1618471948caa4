"""The tokenizers of models that fill in the middle, against transformers' and sentencepiece's own."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import CodeLlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from model.config import CheckpointError
from model.layout import FimLayout, LayoutError
from model.spelling import Spelling
from model.tokenizer import Tokenizer
from tests.model.tokenizers import fim_files
from tests.model.tokenizers.conftest import GOLDEN, READERS, Original, Read

FAMILY = {"qwen2": "qwen2", "starcoder2": "starcoder2", "deepseek": "llama"}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    golden = json.loads(gzip.decompress((GOLDEN / "tokenizers.json.gz").read_bytes()))
    return [*golden["lines"], *golden["hard"], "õ ÷ Á, über – déjà vu", "e\u0301"]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def prompt(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    (blank,) = FimLayout().lay_out([before, ("[MASK]",), after], tokenizer).blanks
    return [*blank.context, blank.start]


@pytest.mark.parametrize("name", FAMILY)
def test_ids_are_transformers(original: Original, read: Read, lines: list[str], name: str) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(original(name) / "tokenizer.json"))
    ours = read(name, FAMILY[name])
    special = ours.names.values()
    plain = [line for line in lines if not any(token in line for token in special)]
    assert len(plain) > len(lines) - 10
    assert [ours.encode(line) for line in plain] == [ids_of(theirs, line) for line in plain]


def test_qwen2_s_scheme_is_that_of_transformers_own_class(read: Read, original: Original, lines: list[str]) -> None:
    data = json.loads((original("qwen2") / "tokenizer.json").read_text())["model"]
    merges: Any = [tuple(pair) for pair in data["merges"]]
    theirs = Qwen2Tokenizer(vocab=data["vocab"], merges=merges)
    ours = read("qwen2", "qwen2")
    plain = [line for line in lines if "<|endoftext|>" not in line]
    assert [ours.encode(line) for line in plain] == [ids_of(theirs, line) for line in plain]


PROMPTS = {
    "qwen2": "<|fim_prefix|>{}<|fim_suffix|>{}<|fim_middle|>",
    "starcoder2": "<fim_prefix>{}<fim_suffix>{}<fim_middle>",
    "deepseek": "<｜fim▁begin｜>{}<｜fim▁hole｜>{}<｜fim▁end｜>",
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize(
    ("before", "after"), [("def f(x):\n    return ", "\n\nprint(f(1))"), ("", "b"), ("a", ""), ("é ", " 船")]
)
def test_a_prompt_is_that_of_the_model_s_card(
    original: Original, read: Read, name: str, before: str, after: str
) -> None:
    """With what transformers puts before it, DeepSeek-Coder's start token."""
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(original(name) / "tokenizer.json"))
    assert prompt(read(name, FAMILY[name]), before, after) == theirs(PROMPTS[name].format(before, after))["input_ids"]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("qwen2", ["<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|im_end|>"]),
        ("starcoder2", ["<|endoftext|>", "<file_sep>"]),
        ("deepseek", ["<｜end▁of▁sentence｜>", "<|EOT|>"]),
        ("codellama", ["▁<EOT>", "</s>"]),
    ],
)
def test_what_ends_a_fill(read: Read, name: str, ends: list[str]) -> None:
    tokenizer = read(name, FAMILY.get(name, "llama"))
    assert [tokenizer.names[i] for i in tokenizer.ends] == ends


def test_a_text_s_letters_may_be_added_tokens(read: Read) -> None:
    """DeepSeek-Coder: text, although added to the pieces; their bytes are the letter's."""
    tokenizer = read("deepseek", "llama")
    ids = tokenizer.encode("õ")
    assert [tokenizer.entry(i) for i in ids] == ["õ"]
    assert tokenizer.decode(ids) == "õ"
    assert set(ids) <= set(tokenizer.text_ids())


class TestCodeLlama:
    @pytest.fixture
    def pieces(self, original: Original) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=str(original("codellama") / "tokenizer.model"))

    @pytest.fixture
    def as_json(self, original: Original, tmp_path: Path) -> Tokenizer:
        """As transformers 5 saves it."""
        CodeLlamaTokenizer.from_pretrained(original("codellama", config={"model_type": "llama"})).save_pretrained(
            tmp_path
        )
        assert not (tmp_path / "tokenizer.model").exists()
        return READERS["llama"](tmp_path)

    @pytest.fixture
    def original_json(self, as_json: Tokenizer, tmp_path: Path) -> Tokenizer:
        """As transformers 4 saved it, and as it was published: a normalizer prepends the space."""
        data = json.loads((tmp_path / "tokenizer.json").read_text())
        data["pre_tokenizer"] = None
        mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, mark]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        return READERS["llama"](tmp_path)

    @pytest.fixture(params=["model", "as_json", "original_json"])
    def tokenizer(self, request: pytest.FixtureRequest, read: Read) -> Tokenizer:
        found: Tokenizer = (
            read("codellama", "llama") if request.param == "model" else request.getfixturevalue(request.param)
        )
        return found

    def test_ids_are_sentencepiece_s(
        self, tokenizer: Tokenizer, pieces: sentencepiece.SentencePieceProcessor, lines: list[str]
    ) -> None:
        for line in lines:
            ids = pieces.encode(line)
            assert tokenizer.encode(tokenizer.opened(line)) == ids, line
            assert Spelling(tokenizer).tokenize(line) == ids or any(token in line for token in ("<unk>", "<s>", "</s>"))
            if "▁" not in line:
                assert tokenizer.decode(ids) == tokenizer.opened(line)

    def test_ids_are_transformers(self, tokenizer: Tokenizer, original: Original, lines: list[str]) -> None:
        """transformers 5 has no space before a text that begins with one; sentencepiece has."""
        theirs = CodeLlamaTokenizer.from_pretrained(original("codellama", config={"model_type": "llama"}))
        special = tokenizer.names.values()
        plain = [line for line in lines if line[:1] not in " ▁" and not any(token in line for token in special)]
        assert len(plain) > len(lines) - 300
        assert [tokenizer.encode(tokenizer.opened(x)) for x in plain] == [ids_of(theirs, x) for x in plain]

    @pytest.mark.parametrize(
        ("before", "after"),
        [("def f(x):\n    return ", "\n\nprint(f(1))"), (" a", "b c"), ("", "b"), ("a", ""), ("é", " 船")],
    )
    def test_a_prompt_is_the_original_s(
        self, tokenizer: Tokenizer, pieces: sentencepiece.SentencePieceProcessor, before: str, after: str
    ) -> None:
        """Code Llama, llama/generation.py: the prefix is encoded as any text, the suffix without a space before it."""
        pre, suf, mid = (pieces.piece_to_id(piece) for piece in fim_files.CODELLAMA_SPECIAL[:3])
        behind = pieces.encode("☺" + after)[len(pieces.encode("☺")) :]
        wanted = [pieces.bos_id(), pre, *pieces.encode(before), suf, *behind, mid]
        assert prompt(tokenizer, before, after) == wanted

    def test_a_middle_keeps_its_space(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(" x")
        assert tokenizer.decode(ids) == " x"

    def test_a_client_s_text_is_shown_without_the_space_before_it(self, tokenizer: Tokenizer) -> None:
        spelling, text = Spelling(tokenizer), "def f(x): pass"
        ids = spelling.tokenize(text)
        assert spelling.detokenize(ids) == text
        assert spelling.starts(text) == spelling.starts_of(ids)
        assert spelling.starts(text)[0] == 0

    def test_a_whole_text_is_scored_behind_its_space(self, tokenizer: Tokenizer) -> None:
        (blank,) = FimLayout().lay_out([("[gMASK]",)], tokenizer).blanks
        assert (blank.context, blank.start, blank.spaced) == ((), tokenizer.special["bos"], True)

    def test_a_sentinel_in_a_text_is_text(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("a <PRE> b <MID>")
        assert not set(ids) & set(tokenizer.names)
        assert tokenizer.decode(ids) == "a <PRE> b <MID>"


Edit = Callable[[dict[str, Any]], None]


class TestOtherFiles:
    def edited(self, folder: Path, name: str, edit: Edit) -> Tokenizer:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))
        return READERS[FAMILY[name]](folder)

    def test_a_tokenizer_without_sentinels_continues_texts(self, original: Original) -> None:
        """A Qwen2 that is no coder: [MASK] is refused with the reason."""

        def edit(data: dict[str, Any]) -> None:
            data["added_tokens"] = [t for t in data["added_tokens"] if "fim" not in t["content"]]

        tokenizer = self.edited(original("qwen2"), "qwen2", edit)
        layout = FimLayout()
        assert layout.masks(tokenizer) == ("[gMASK]",)
        with pytest.raises(
            LayoutError, match=r"cannot fill \[MASK\]: its tokenizer has no fim_prefix, fim_suffix, fim"
        ):
            layout.lay_out(["a", ("[MASK]",), "b"], tokenizer)
        (blank,) = layout.lay_out(["a", ("[gMASK]",)], tokenizer).blanks
        assert [*blank.context, blank.start] == tokenizer.encode("a")

    def test_a_text_of_nothing_begins_behind_the_end_of_another(self, read: Read) -> None:
        tokenizer = read("qwen2", "qwen2")
        (blank,) = FimLayout().lay_out([("[gMASK]",)], tokenizer).blanks
        assert (blank.context, blank.start, blank.spaced) == ((), tokenizer.eos, False)

    @pytest.mark.parametrize(("adds", "first"), [(True, "<|im_start|>"), (False, None), (None, None)])
    def test_the_config_says_what_a_text_begins_with(self, original: Original, adds: Any, first: Any) -> None:
        folder = original("qwen2", add_bos_token=adds, bos_token={"content": "<|im_start|>"})
        tokenizer = READERS["qwen2"](folder)
        assert tokenizer.names.get(tokenizer.special.get("bos", -1)) == first

    def test_an_end_by_another_name(self, original: Original) -> None:
        def edit(data: dict[str, Any]) -> None:
            data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<|endoftext|>"]

        folder = original("qwen2", eos_token="<|im_end|>")
        tokenizer = self.edited(folder, "qwen2", edit)
        assert tokenizer.names[tokenizer.eos] == "<|im_end|>"

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda d: d.update(added_tokens=[]), "no special token for eos"),
            (lambda d: d.update(pre_tokenizer=None), "not byte-pair encoding of bytes"),
            (lambda d: d["model"].update(vocab={"a": -1}), "must map tokens to ids"),
            (lambda d: d.update(added_tokens=[{"content": 3, "id": "x"}]), "added_tokens must be tokens"),
        ],
    )
    def test_damaged_files_are_refused(self, original: Original, edit: Edit, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            self.edited(original("qwen2"), "qwen2", edit)

    def test_pieces_of_another_kind_are_refused(self, original: Original, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes((original("chinese") / "cog-pretrain.model").read_bytes())
        with pytest.raises(CheckpointError, match="not Llama's kind of pieces"):
            READERS["llama"](tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
            READERS["qwen2"](tmp_path)
