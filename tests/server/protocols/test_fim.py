"""Filling in the middle over HTTP, against transformers with the prompt of the model's card, on a random Qwen2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from model.tokenizers.byte_level import byte_alphabet
from tests.model.tokenizers import fim_files
from tests.serving import serving

BEFORE, AFTER = "def f(x):\n    return ", "\n\nprint(f(1))\n"
PROMPT = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|im_end|>")
COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("coder", numbered=False)
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=272, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(fim_files.qwen2(list(byte_alphabet()), []), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def middle(folder: Path) -> str:
    """By transformers' generate, without special tokens that are no end."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ENDS]
    banned = [i for i in range(256, 272) if i not in ends]
    model = Qwen2ForCausalLM.from_pretrained(folder)
    found: Any = model.generate(  # type: ignore[operator]
        ids, max_new_tokens=COUNT, do_sample=False, suppress_tokens=banned, eos_token_id=ends, pad_token_id=0
    )
    return str(tokenizer.decode([i for i in found[0, ids.shape[1] :].tolist() if i < 256]))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(str(folder), "--quant", "none", "--kv-cache-gb", "0.01", "--tp", "2") as url:
        yield url


def ask(url: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_route_fills_as_transformers_does(url: str, middle: str) -> None:
    """The native one, OpenAI's suffix, llama.cpp's sides, and a client's own prompt with the model's marks."""
    native = ask(url, "/v1/infill", text=f"{BEFORE}[MASK]{AFTER}", max_tokens=COUNT)
    assert native["results"][0]["blanks"][0]["text"] == middle
    asked = {"model": "coder", "max_tokens": COUNT, "temperature": 0}
    prompts: list[dict[str, str]] = [{"prompt": BEFORE, "suffix": AFTER}, {"prompt": PROMPT}]
    for prompt in prompts:
        assert ask(url, "/v1/completions", **asked, **prompt)["choices"][0]["text"] == middle
    sides = {"input_prefix": BEFORE, "input_suffix": AFTER}
    assert ask(url, "/infill", **sides, n_predict=COUNT, temperature=0)["content"] == middle
