"""BERT's pretraining loss (arXiv 1810.04805, appendix A.2) through the network, against transformers'
(tests/golden/make_bert_transformers.py)."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import DenseAttention, visible
from model.network import Network
from tests.model.test_references import config_of, golden, read

IGNORED = -100  # the label of a token that was not masked


@dataclass(frozen=True, slots=True)
class Batch:
    """`token_ids`, `token_types` and `labels` are [batch, num_tokens], padded at their ends past `lengths` [batch];
    `next_sentence` [batch] is 0 where sentence B follows, 1 where it is another document's."""

    token_ids: Tensor
    token_types: Tensor
    lengths: Tensor
    labels: Tensor
    next_sentence: Tensor


def losses(model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the masked words, and of whether sentence B follows sentence A."""
    num_tokens = batch.token_ids.shape[1]
    positions = torch.arange(num_tokens).expand_as(batch.token_ids)
    attention = DenseAttention(visible(num_tokens, batch.lengths))
    hidden = model(batch.token_ids, positions, batch.token_types, attention)
    masked = batch.labels != IGNORED
    words = F.cross_entropy(model.logits(hidden[masked]), batch.labels[masked])
    return words, F.cross_entropy(model.next_sentence_logits(hidden[:, 0]), batch.next_sentence)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder: Path = tmp_path_factory.mktemp("bert")
    return read(folder, config_of("bert"), golden("bert", "weights"))


@pytest.fixture(scope="module")
def batch() -> Batch:
    b = golden("bert", "loss")
    return Batch(
        b["token_ids"], b["token_types"], b["attention_mask"].sum(1), b["labels"], b["next_sentence_labels"]
    )  # fmt: skip


def test_the_losses_of_both_tasks(model: Network, batch: Batch) -> None:
    expected = golden("bert", "loss")
    words, sentence = losses(model, batch)
    torch.testing.assert_close(words, expected["mlm"], rtol=0, atol=1e-4)
    torch.testing.assert_close(sentence, expected["nsp"], rtol=0, atol=1e-4)
    torch.testing.assert_close(words + sentence, expected["loss"], rtol=0, atol=1e-4)


def test_padding_changes_nothing(model: Network, batch: Batch) -> None:
    padded = replace(
        batch,
        token_ids=F.pad(batch.token_ids, (0, 3), value=7),
        token_types=F.pad(batch.token_types, (0, 3)),
        labels=F.pad(batch.labels, (0, 3), value=IGNORED),
    )
    torch.testing.assert_close(sum(losses(model, padded)), golden("bert", "loss")["loss"], rtol=0, atol=1e-4)
