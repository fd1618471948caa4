"""BERT's pretraining loss (arXiv 1810.04805, appendix A.2): masked words and the next sentence, added.

`/v1/score` gives the same log-probabilities one text at a time; this is what a step of training minimizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import DenseAttention, visible
from model.network import Network

IGNORED = -100  # the label of a token that was not masked


def losses(
    model: Network, token_ids: Tensor, token_types: Tensor, lengths: Tensor, labels: Tensor, next_sentence: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the masked words, and of whether sentence B follows sentence A.

    `token_ids`, `token_types` and `labels` are [batch, num_tokens], padded at their ends past `lengths` [batch];
    `next_sentence` [batch] is 0 where B follows, 1 where it is another document's.
    """
    num_tokens = token_ids.shape[1]
    positions = torch.arange(num_tokens).expand_as(token_ids)
    hidden = model(token_ids, positions, token_types, DenseAttention(visible(num_tokens, lengths)))
    masked = labels != IGNORED
    words = F.cross_entropy(model.logits(hidden[masked]), labels[masked])
    return words, F.cross_entropy(model.next_sentence_logits(hidden[:, 0]), next_sentence)


def pretraining_loss(
    model: Network, token_ids: Tensor, token_types: Tensor, lengths: Tensor, labels: Tensor, next_sentence: Tensor
) -> Tensor:
    """The sum of both, which BERT is trained by."""
    words, sentence = losses(model, token_ids, token_types, lengths, labels, next_sentence)
    return words + sentence
