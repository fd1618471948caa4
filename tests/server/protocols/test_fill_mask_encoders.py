"""Fill-mask of RoBERTa, XLM-R, ModernBERT and ESM-2 against transformers' own pipeline, on random models."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers

from tests.model.tokenizers.conftest import GOLDEN
from tests.model.tokenizers.test_masked_kinds import lstripped, modern, residues, roberta_json, unigrams
from tests.serving import serving

SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "initializer_range": 0.3,
}  # fmt: skip
TEXTS = ["The {} is blue.", "{}, of the Sea's playing!", "the sea is{} .\n He played", "the sea {} the  river"]
PROTEINS = ["MKT{}YIAKQR", "{}LAGVSERTIDPKQNFYMHWCXB", "MK {} LA"]


@dataclass(frozen=True, slots=True)
class Served:
    """A server's address and the pipeline of the same folder."""

    url: str
    pipeline: Any
    texts: list[str]


def made(name: str, folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer; writes the tokenizer's files."""
    if name == "roberta":
        roberta_json(folder)
        tokenizer: Any = transformers.RobertaTokenizer.from_pretrained(folder)
        config: Any = transformers.RobertaConfig(**SIZES, vocab_size=50265, max_position_embeddings=66)
        return transformers.RobertaForMaskedLM(config), tokenizer
    if name == "xlm-roberta":
        unigrams(json.loads(gzip.decompress((GOLDEN / "tokenizers.json.gz").read_bytes())), folder)
        tokenizer = transformers.XLMRobertaTokenizer.from_pretrained(folder, mask_token=lstripped("<mask>"))
        config = transformers.XLMRobertaConfig(**SIZES, vocab_size=1504, max_position_embeddings=66)
        return transformers.XLMRobertaForMaskedLM(config), tokenizer
    if name == "esm2":
        residues(folder)
        config = transformers.EsmConfig(
            **SIZES, vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary",
            token_dropout=True,
        )  # fmt: skip
        return transformers.EsmForMaskedLM(config), transformers.EsmTokenizer(str(folder / "vocab.txt"))
    modern(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "pad")}
    config = transformers.ModernBertConfig(
        **SIZES, **ids, vocab_size=len(tokenizer), max_position_embeddings=64, local_attention=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.ModernBertForMaskedLM(config), tokenizer


@pytest.fixture(scope="module", params=["roberta", "xlm-roberta", "esm2", "modernbert"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    model, tokenizer = made(request.param, folder)
    model.eval().save_pretrained(folder)
    texts = PROTEINS if request.param == "esm2" else TEXTS
    with serving(str(folder), "--quant", "none", "--kv-cache-gb", "0.01") as url:
        yield Served(url, transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer), texts)


def ask(url: str, inputs: str | list[str], **parameters: Any) -> Any:
    answer = httpx.post(url, json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_mask_has_the_candidates_of_the_pipeline(served: Served) -> None:
    """However it is spelled."""
    own = served.pipeline.tokenizer.mask_token
    for text in served.texts:
        expected = served.pipeline(text.format(own))
        for mask in {own, "[MASK]"}:
            found = ask(served.url, text.format(mask))
            assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
            for name in ("token", "token_str", "sequence"):
                assert [e[name] for e in found] == [e[name] for e in expected], (name, text)


def test_targets_are_the_only_candidates(served: Served) -> None:
    text = served.texts[0].format(served.pipeline.tokenizer.mask_token)
    targets = ["A", "K"] if served.texts is PROTEINS else ["sea", " river", "she"]
    expected = served.pipeline(text, targets=targets)
    found = ask(served.url, text, targets=targets)
    assert [e["token"] for e in found] == [e["token"] for e in expected]
    assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_the_model_says_how_its_mask_is_spelled(served: Served) -> None:
    (card,) = httpx.get(f"{served.url}/v1/models").json()["data"]
    assert card["capabilities"]["masks"] == ["[MASK]"]
    assert card["capabilities"]["mask_token"] == served.pipeline.tokenizer.mask_token
    answer = httpx.post(served.url, json={"inputs": "A"})
    assert answer.status_code == 400
    assert served.pipeline.tokenizer.mask_token in answer.json()["error"]


def test_elsewhere_only_our_mask_is_one(served: Served) -> None:
    own = served.pipeline.tokenizer.mask_token
    if own == "[MASK]":
        return
    whole = httpx.post(f"{served.url}/v1/infill", json={"text": served.texts[0].format("[MASK]")}).json()
    assert len(whole["results"][0]["blanks"]) == 1
    answer = httpx.post(f"{served.url}/v1/infill", json={"text": served.texts[0].format(own)})
    assert answer.status_code == 200
    assert own in answer.json()["results"][0]["text"]
