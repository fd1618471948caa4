"""Worlds small enough for every test: a tokenizer and a checkpoint folder, made once, handed out by factories."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Of the processes that tests start, before torch reads it here too. A server counts its cores by itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file

from model.families import glm
from model.network import Network
from model.tokenizer import Tokenizer, read_tokenizer
from model.tokenizers.sentence_pieces import SentencePieces
from tests.serving import serving

ROLES = ("eos", "cls", "mask", "smask", "gmask", "sop", "eop")
WORDS = "the a red blue tin old cat dog bird fish river hill boat saw found sang under over near and then".split()  # noqa: SIM905
TinyTokenizer = Callable[..., Tokenizer]
TinyCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing by a second thread; where others want the cores, its barriers take minutes."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokenizer.model` and `tokenizer_config.json`, trained as `training.vocabulary` does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    draw = random.Random(7)
    lines = [
        " ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + f", {number} 我们看见红色的船。"
        for number in range(400)
    ]
    with (folder / "tokenizer.model").open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            vocab_size=400,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    special = {role: size + number for number, role in enumerate(ROLES)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"special_tokens": special}))
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizer_folder: Path) -> TinyTokenizer:
    """`tiny_tokenizer(without=("smask", …))`: about 400 pieces and the special tokens, less those named."""
    whole = read_tokenizer(tokenizer_folder)

    def make(without: tuple[str, ...] = ()) -> Tokenizer:
        special = {role: i for role, i in whole.special.items() if role not in without}
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "tokenizer.model"))
        return SentencePieces(pieces, special)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """`tiny_checkpoint(num_layers=3, …)`: a new folder with a random GLM, the same one for the same sizes."""
    size = read_tokenizer(tokenizer_folder).size
    default = {
        "num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": size, "max_sequence_length": 256
    }  # fmt: skip

    def make(**sizes: int) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
        architecture = glm.architecture(**default | sizes)
        (folder / "config.json").write_text(json.dumps(glm.config(architecture)))
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for name, parameter in Network(architecture).named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "layernorm" in name and name.endswith("weight")
            tensors[name] = (noise * 0.1 + (1 if norm else 0)).half()
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def demo_url() -> Iterator[str]:
    """A server of its own with the bundled demo, for clients that speak over a socket."""
    with serving("--quant", "int8") as url:
        yield url
