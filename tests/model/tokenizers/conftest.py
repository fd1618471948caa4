"""Folders as the families publish them, with the vocabularies of `tests/golden/vocab`."""

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from model.families import FAMILIES
from model.tokenizer import Tokenizer
from model.tokenizers.byte_level import byte_alphabet
from tests.model.tokenizers import fim_files

GOLDEN = Path(__file__).parents[2] / "golden"
CODE = ("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>")
GLM4_SPECIAL = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip
# ProteinGLM's published tokenizer.model, 112 bytes.
RESIDUES = "\n".join(
    [
        "<pad>",
        *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
        "<mask>",
        "<gmask>",
        "<smask>",
        "<eod>",
        "<sop>",
        "<eop>",
        "<eos>",
        "<unk>",
    ]
).encode()
Original = Callable[..., Path]
Read = Callable[..., Tokenizer]
READERS = {family.name: family.tokenizer for family in FAMILIES}


def published(name: str) -> bytes:
    return gzip.decompress((GOLDEN / "vocab" / f"{name}.gz").read_bytes())


def gpt2_pieces() -> list[str]:
    """GPT-2's pieces in the order of their ids: the bytes and what the merges make of them."""
    merges = published("gpt2-merges.txt").decode().split("\n")[1:]
    return [*byte_alphabet(), *("".join(line.split()) for line in merges if line)]


def tokenizer_json() -> str:
    """GLM-4's `tokenizer.json` with GPT-2's pieces and CodeGeeX4's tokens."""
    merges: Any = [tuple(line.split()) for line in published("gpt2-merges.txt").decode().split("\n")[1:] if line]
    model = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(gpt2_pieces())}, merges))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model.add_special_tokens([*GLM4_SPECIAL, *CODE])
    return model.to_str()


def ranks() -> bytes:
    """GLM-4's `tokenizer.model` with GPT-2's pieces."""
    alphabet = byte_alphabet()
    raw = (bytes(alphabet[c] for c in piece) for piece in gpt2_pieces())
    return b"\n".join(base64.b64encode(piece) + f" {rank}".encode() for rank, piece in enumerate(raw))


@pytest.fixture(scope="session")
def files() -> dict[str, dict[str, bytes]]:
    """The vocabulary files of each kind."""
    merges = published("gpt2-merges.txt")
    pairs: Any = [tuple(line.split()) for line in merges.decode().split("\n")[1:] if line]
    lines = json.loads(gzip.decompress((GOLDEN / "tokenizers.json.gz").read_bytes()))["lines"]
    gpt2 = json.dumps({piece: i for i, piece in enumerate([*gpt2_pieces(), "<|endoftext|>"])}).encode()
    return {
        "gpt2": {"vocab.json": gpt2, "merges.txt": merges},
        "roberta": {"vocab.json": published("roberta-vocab.json"), "merges.txt": merges},
        "bert": {"vocab.txt": published("bert-base-uncased-vocab.txt")},
        "chinese": {"cog-pretrain.model": published("cog-pretrain.model")},
        "ice": {"ice_text.model": published("ice_text.model")},
        "chatglm": {"ice_text.model": published("ice_text_chatglm.model")},
        "glm4": {"tokenizer.json": tokenizer_json().encode()},
        "glm4-ranks": {"tokenizer.model": ranks()},
        "qwen2": {"tokenizer.json": fim_files.qwen2(gpt2_pieces(), pairs).encode()},
        "starcoder2": {"tokenizer.json": fim_files.starcoder2(gpt2_pieces(), pairs).encode()},
        "deepseek": {"tokenizer.json": fim_files.deepseek(gpt2_pieces(), pairs).encode()},
        "codellama": {"tokenizer.model": fim_files.codellama(lines)},
        "residues": {"tokenizer.model": RESIDUES},
        "chatglm2": {"tokenizer.model": published("chatglm2.model")},
    }


@pytest.fixture(scope="session")
def original(files: dict[str, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Original:
    """`original("gpt2", added_tokens={…}, config={…}, num_image_tokens=0)`: a new folder with a kind's vocabulary.

    The named arguments are `added_tokens.json` and `config.json`, others fields of `tokenizer_config.json`.
    """

    def make(
        kind: str, added_tokens: dict[str, int] | None = None, config: dict[str, Any] | None = None, **fields: Any
    ) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        for name, content in files[kind].items():
            (folder / name).write_bytes(content)
        for name, value in (("added_tokens", added_tokens), ("config", config), ("tokenizer_config", fields)):
            if value:
                (folder / f"{name}.json").write_text(json.dumps(value))
        return folder

    return make


@pytest.fixture(scope="session")
def read(original: Original) -> Read:
    """`read("gpt2", "glm", …)`: the tokenizer of a folder that `original` makes."""
    known: dict[str, Tokenizer] = {}

    def make(kind: str, family: str = "glm", **given: Any) -> Tokenizer:
        key = json.dumps([kind, family, given])
        if key not in known:
            known[key] = READERS[family](original(kind, **given))
        return known[key]

    return make
