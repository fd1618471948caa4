"""BERT's pretraining loss against transformers' (tests/golden/make_bert_transformers.py)."""

from pathlib import Path

import pytest
import torch

from model.network import Network
from tests.model.test_references import config_of, golden, read
from training.masked_lm import losses, pretraining_loss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder: Path = tmp_path_factory.mktemp("bert")
    return read(folder, config_of("bert"), golden("bert", "weights"))


def test_the_loss_is_the_sum_of_both_tasks(model: Network) -> None:
    b = golden("bert", "loss")
    batch = b["token_ids"], b["token_types"], b["attention_mask"].sum(1), b["labels"], b["next_sentence_labels"]
    words, sentence = losses(model, *batch)
    torch.testing.assert_close(words, b["mlm"], rtol=0, atol=1e-4)
    torch.testing.assert_close(sentence, b["nsp"], rtol=0, atol=1e-4)
    torch.testing.assert_close(pretraining_loss(model, *batch), b["loss"], rtol=0, atol=1e-4)


def test_padding_changes_nothing(model: Network) -> None:
    b = golden("bert", "loss")
    padded = [torch.nn.functional.pad(b[name], (0, 3), value=v) for name, v in (("token_ids", 7), ("token_types", 0))]
    labels = torch.nn.functional.pad(b["labels"], (0, 3), value=-100)
    lengths = b["attention_mask"].sum(1)
    loss = pretraining_loss(model, *padded, lengths, labels, b["next_sentence_labels"])  # type: ignore[call-arg]
    torch.testing.assert_close(loss, b["loss"], rtol=0, atol=1e-4)
