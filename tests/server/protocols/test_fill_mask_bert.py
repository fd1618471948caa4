"""Fill-mask of BERT against transformers' own pipeline, on a random model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, pipeline

from tests.serving import serving

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a sea is blue red , . ' s ! ? - play ##ing ##ed paris france capital of was and in he she it river 看 见".split()  # noqa: E501, SIM905
ONE = [
    "The [MASK] is blue.",
    "[MASK], of the Sea's playing!",
    "Is it the capital of [MASK]? He played it - she was red.",
    "zzz the [MASK] of 看见 qqq",
    "the sea is[MASK]",
]
ELEMENT = {"score", "token", "token_str", "sequence"}
Answer = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, initializer_range=0.3, architectures=["BertForMaskedLM"],
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(str(folder), "--quant", "none", "--kv-cache-gb", "0.01") as url:
        yield url


@pytest.fixture(scope="module")
def fill_mask(folder: Path) -> Any:
    model = BertForMaskedLM.from_pretrained(folder)
    return pipeline("fill-mask", model=model, tokenizer=BertTokenizer(str(folder / "vocab.txt")))


def ask(url: str, inputs: str | list[str], **parameters: Any) -> Any:
    answer = httpx.post(url, json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_same(found: Answer, expected: Answer) -> None:
    assert all(set(element) == ELEMENT for element in found)
    assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    for name in ELEMENT - {"score"}:
        assert [e[name] for e in found] == [e[name] for e in expected], name


@pytest.mark.parametrize("text", ONE)
@pytest.mark.parametrize("top_k", [None, 1, len(WORDS)])
def test_a_mask_has_the_candidates_of_the_pipeline(url: str, fill_mask: Any, text: str, top_k: int | None) -> None:
    given = {} if top_k is None else {"top_k": top_k}
    assert_same(ask(url, text, **given), fill_mask(text, **given))


def test_a_model_may_be_named_in_the_path(url: str, folder: Path, fill_mask: Any) -> None:
    assert_same(ask(f"{url}/models/{folder.name}", ONE[0]), fill_mask(ONE[0]))


@pytest.mark.parametrize(
    "targets", ["sea", ["river", "sea", "sea", "she"], ["playing", "Sea", "zzz", "[UNK]", "[PAD]"], ["a", ""]]
)
def test_targets_are_the_only_candidates(url: str, fill_mask: Any, targets: str | list[str]) -> None:
    # transformers refuses an empty string, which stands for no token.
    theirs = targets if isinstance(targets, str) else [target for target in targets if target]
    assert_same(ask(url, ONE[2], targets=targets), fill_mask(ONE[2], targets=theirs))


def test_of_several_masks_each_has_a_list_that_can_be_read(url: str, fill_mask: Any) -> None:
    """The pipeline's `sequence` has [CLS] and [SEP] in it and leaves the other mask open; here it is the text with the
    best candidate there."""
    text = "The [MASK] is the capital of [MASK]."
    found, expected = ask(url, text, top_k=3), fill_mask(text, top_k=3)
    for row, other in zip(found, expected, strict=True):
        assert [(e["token"], e["token_str"]) for e in row] == [(e["token"], e["token_str"]) for e in other]
        assert [e["score"] for e in row] == pytest.approx([e["score"] for e in other], abs=1e-5)
    best = [row[0]["token"] for row in found]
    tokenizer = fill_mask.tokenizer
    ids = tokenizer(text)["input_ids"]
    first, second = (at for at, token in enumerate(ids) if token == tokenizer.mask_token_id)
    for place, other, at in ((first, second, 0), (second, first, 1)):
        for element in found[at]:
            whole = list(ids)
            whole[place], whole[other] = element["token"], best[1 - at]
            assert element["sequence"] == tokenizer.decode(whole, skip_special_tokens=True)


def test_a_list_of_texts_has_a_list_of_lists(url: str, fill_mask: Any) -> None:
    texts = [ONE[0], "The [MASK] is [MASK].", ONE[1]]
    found = ask(url, texts)
    assert len(found) == 3
    for number in (0, 2):
        assert_same(found[number], fill_mask(texts[number]))
    assert [len(row) for row in found[1]] == [5, 5]
    assert ask(url, texts[:1]) == [found[0]]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"inputs": "no mask"}, "no mask"),
        ({"inputs": "[gMASK]"}, "[gMASK]"),
        ({"inputs": "[MASK]", "parameters": {"targets": [""]}}, "targets"),
        ({"inputs": "[MASK]", "parameters": {"top_k": 5000}}, "top_k"),
        ({"inputs": "[MASK] sea " * 40}, "64"),
    ],
)
def test_an_error_is_one_text(url: str, body: dict[str, Any], word: str) -> None:
    answer = httpx.post(url, json=body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert word in answer.json()["error"]
