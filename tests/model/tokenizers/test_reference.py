"""The same ids as the originals' tokenizers, on 2,000 lines of English, Chinese, code, emoji and white space.

What decode(encode(text)) loses, by kind:

- GPT-2, RoBERTa, GLM-4 and the demo's own: nothing.
- BERT: case, accents, white space, spaces around punctuation and Chinese characters, control characters, words with
  a character that is not in the vocabulary.
- Chinese: compatibility characters are folded, newlines, tabs and runs of spaces are one space, white space at the
  ends is gone, unknown characters are ⁇.
- icetk: compatibility characters are folded; with `ignore_linebreak` white space and unknown characters as in Chinese.
"""

import gzip
import hashlib
import json
import re
from typing import Any

import pytest

from model.spelling import Spelling
from model.tokenizer import Tokenizer
from tests.model.tokenizers.conftest import GOLDEN, Read

# Of the golden file: the kind of the vocabulary, the family, and the fields that choose the tokenizer.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "glm", {}),
    "roberta": ("roberta", "glm", {}),
    "bert": ("bert", "glm", {}),
    "large-chinese": ("chinese", "glm", {}),
    "10b-chinese": ("chinese", "glm", {"glm_infill": {"gmask_is_eop": True}}),
    "glm-130b": ("ice", "glm-130b", {"ignore_linebreak": False}),
    "icetk": ("ice", "glm-130b", {}),
    "glm-4": ("glm4-ranks", "glm-4", {}),
}
ROLES = {"ENC": "cls"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((GOLDEN / "tokenizers.json.gz").read_bytes()))
    return data


def hashed(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:8]


def mismatches(golden: dict[str, Any], name: str, tokenizer: Tokenizer, shift: int = 0) -> list[str]:
    """Lines whose ids, `shift` higher, are not the original's."""
    wanted = golden["kinds"][name]["hashes"].split()
    found = ([i + shift for i in tokenizer.encode(line)] for line in golden["lines"])
    rows = zip(golden["lines"], wanted, found, strict=True)
    return [line for line, want, ids in rows if hashed(ids) != want]


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_two_thousand_lines(golden: dict[str, Any], read: Read, name: str) -> None:
    kind, family, fields = KINDS[name]
    assert len(golden["lines"]) == 2000
    assert mismatches(golden, name, read(kind, family, **fields)) == []


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_hard_lines(golden: dict[str, Any], read: Read, name: str) -> None:
    kind, family, fields = KINDS[name]
    tokenizer = read(kind, family, **fields)
    for text, ids in zip(golden["hard"], golden["kinds"][name]["hard"], strict=True):
        assert tokenizer.encode(text) == ids, text


@pytest.mark.parametrize("name", [n for n in KINDS if n != "bert"])
def test_text_of_hard_lines(golden: dict[str, Any], read: Read, name: str) -> None:
    kind, family, fields = KINDS[name]
    tokenizer, kinds = read(kind, family, **fields), golden["kinds"][name]
    for ids, text in zip(kinds["hard"], kinds["decoded"], strict=True):
        assert tokenizer.decode(ids) == text


def test_text_of_hard_lines_by_bert(golden: dict[str, Any], read: Read) -> None:
    """The original sets [UNK] off by a second space, and joins an apostrophe only to what stands on both its sides."""
    tokenizer, kinds = read("bert"), golden["kinds"]["bert"]
    for ids, text in zip(kinds["hard"], kinds["decoded"], strict=True):
        assert tokenizer.decode(ids).replace("'", " ").split() == text.replace("'", " ").split()


@pytest.mark.parametrize("name", ["gpt2", "roberta", "bert", "large-chinese", "10b-chinese"])
def test_masks_swallow_the_white_space_to_their_left(golden: dict[str, Any], read: Read, name: str) -> None:
    """The originals' lstrip: a mask takes all white space before it, none behind it. BERT has no use for it."""
    kind, family, fields = KINDS[name]
    tokenizer = read(kind, family, **fields)
    assert tokenizer.mask_strips == (name != "bert")
    for text, wanted in zip(golden["masked"], golden["kinds"][name]["masked"], strict=True):
        *before, last = re.split(r"\[MASK\]", text)
        ids: list[int] = []
        for part in before:
            ids += [*tokenizer.encode(tokenizer.before_mask(part)), tokenizer.masks["[MASK]"]]
        assert ids + tokenizer.encode(last) == wanted, text
        assert Spelling(tokenizer).tokenize_masks(text) == wanted, text


@pytest.mark.parametrize("name", ["gpt2", "roberta", "bert", "large-chinese", "10b-chinese"])
def test_special_ids(golden: dict[str, Any], read: Read, name: str) -> None:
    kind, family, fields = KINDS[name]
    wanted = {ROLES.get(k, k.lower()): i for k, i in golden["kinds"][name]["special"].items()}
    if name == "roberta":
        wanted["sep"] = 2  # SwissArmyTransformer has <pad> here, GLM's own code </s>
    found = read(kind, family, **fields).special
    assert {role: found[role] for role in wanted} == wanted


def test_trap_10_chatglm_s_ids_moved_by_20000(golden: dict[str, Any], read: Read) -> None:
    """On 2023-04-06 the image codes went: `num_image_tokens` is 0 since, and was not there before."""
    new = read("chatglm", "chatglm", num_image_tokens=0)
    old = read("ice", "chatglm")
    assert mismatches(golden, "glm-130b", new, shift=20000) == []
    assert mismatches(golden, "glm-130b", old) == []
    assert {role: i + 20000 for role, i in new.special.items()} == dict(old.special)
    assert [i + 20000 for i in new.text_ids()] == list(old.text_ids())
    assert old.size == new.size + 20000
    assert old.piece(19999) == "<image_19999>"
    assert old.decode([19999]) == ""


def test_text_without_the_dummy_prefix(golden: dict[str, Any], read: Read) -> None:
    tokenizer: Any = read("ice", "glm-130b", ignore_linebreak=False)
    for text, ids in zip(golden["hard"], golden["kinds"]["glm-130b-prefix"]["hard"], strict=True):
        assert tokenizer.encode(text, dummy_prefix=False) == ids


class TestChatGLM2:
    """The published tokenizers' own code, over a stand-in of their sentencepiece model."""

    @pytest.fixture
    def expected(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(gzip.decompress((GOLDEN / "tokenizer_chatglm2.json.gz").read_bytes()))
        return data

    def test_ids_of_two_thousand_lines(self, golden: dict[str, Any], expected: dict[str, Any], read: Read) -> None:
        both = {"lines": golden["lines"], "kinds": {"chatglm2": expected}}
        assert mismatches(both, "chatglm2", read("chatglm2", "chatglm2")) == []

    def test_hard_lines(self, golden: dict[str, Any], expected: dict[str, Any], read: Read) -> None:
        tokenizer = read("chatglm2", "chatglm2")
        columns = golden["hard"], expected["hard"], expected["decoded"], expected["onward"]
        for text, ids, back, onward in zip(*columns, strict=True):
            assert tokenizer.encode(text) == ids, text
            assert tokenizer.encode_on(text) == onward, text
            assert tokenizer.decode(ids) == back, text

    @pytest.mark.parametrize("model", ["chatglm2", "chatglm3"])
    def test_special_ids(self, expected: dict[str, Any], read: Read, model: str) -> None:
        """ChatGLM2 has those that it shares with ChatGLM3, which has the roles' besides."""
        tokenizer = read("chatglm2", "chatglm2")
        names = {name: i for i, name in tokenizer.names.items()}
        assert {name: names[name] for name in expected["special"][model]} == expected["special"][model]
        assert tokenizer.eos == expected["eos"]


def test_both_forms_of_glm_4_are_one(golden: dict[str, Any], read: Read) -> None:
    assert mismatches(golden, "glm-4", read("glm4", "glm-4")) == []
