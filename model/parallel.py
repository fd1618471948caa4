"""Tensor parallelism (arXiv 1909.08053): the layers' parts on each rank, and the collectives between ranks.

A matrix with divided outputs needs no other rank. A matrix with divided inputs gives partial sums, which all ranks add
up: twice per transformer block. The vocabulary is divided too.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.sharding import ShardSpec
from quant.linear import Embedding, Linear
from quant.scheme import HeadScheme, Scheme
from quant.usage import UsageError

# Up to so many numbers each rank sends its partial sum to all, in one round of messages instead of two.
SMALL = 2**16


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks of one network. All ranks call the collectives in the same order.

    A sum adds the ranks' parts from rank 0 on, whatever the shape, so that a row's bits do not depend on the rows
    beside it. A library's own all-reduce sums in an order that depends on a number's place in its buffer.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def share(self, count: int, name: str) -> int:
        """This rank's part of a count. Raises UsageError, with the count's name, if the ranks do not divide it."""
        if count % self.size:
            raise UsageError(f"{name} {count} is not divisible by {self.size} ranks")
        return count // self.size

    def share_or_copy(self, count: int, name: str) -> int:
        """Like `share`, but if the ranks outnumber the count, each rank has one, and several ranks the same one.

        Raises UsageError if neither number divides the other.
        """
        return 1 if self.size % count == 0 else self.share(count, name)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x [...], on every rank, added from rank 0 on. It may overwrite x."""
        if self.size == 1 or not x.numel():
            return x
        if self.size == 2:  # a sum of two has one order only
            x = x.contiguous()
            dist.all_reduce(x, group=self.group)
            return x
        flat = x.flatten()
        if flat.numel() <= SMALL:
            return _added(self.all_gather(flat)).view(x.shape)
        # Every rank adds up a stretch of its own, and sends it to all.
        padded = F.pad(flat, (0, -len(flat) % self.size))
        parts = torch.empty_like(padded)
        dist.all_to_all_single(parts, padded, group=self.group)
        return self.all_gather(_added(parts.view(self.size, -1))).flatten()[: len(flat)].view(x.shape)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """The elementwise maximum of all ranks' x [...], on every rank."""
        return self.all_gather(x).amax(0) if self.size > 1 else x

    def all_gather(self, x: Tensor) -> Tensor:
        """All ranks' x [...], stacked by rank to [size, ...], on every rank."""
        out = x.new_empty((self.size, *x.shape))
        if self.size == 1:
            out[0] = x
        elif x.numel():
            dist.all_gather_single(out.view(-1), x.contiguous().view(-1), group=self.group)
        return out

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """On rank 0 a list of all ranks' x [...]; None on the others."""
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x.contiguous(), parts, group=self.group, group_dst=0)
        return parts


ALONE = Ranks()


def _added(parts: Tensor) -> Tensor:
    """[ranks, …] → the sum, from the first on."""
    out = parts[0].clone()
    for part in parts[1:]:
        out += part
    return out


class RowLinear(Linear):
    """A linear layer with divided inputs: each rank has its columns of the weight, and the whole bias."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        dtype: torch.dtype,
        bias: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """`in_features` are this rank's."""
        super().__init__(in_features, out_features, scheme, dtype, bias)
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features], this rank's inputs → [..., out_features], the same on every rank."""
        if self.ranks.size == 1:
            return super().forward(x)
        out = self.ranks.all_reduce(self.product(x))
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids 0 … size − 1, divided among ranks. Each rank has consecutive ids; the first ranks may have one more."""

    size: int
    ranks: Ranks = ALONE

    @property
    def span(self) -> tuple[int, int]:
        """This rank's first id and number of ids."""
        return ShardSpec(0, ragged=True).part(self.size, self.ranks.rank, self.ranks.size).spans[0]

    def own(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [...] → indices [...] among this rank's ids, and whether [...] the rank has the id. Other ids have any
        index."""
        first, count = self.span
        inside = (ids >= first) & (ids < first + count)
        return (ids - first).clamp(0, count - 1), inside

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Logits [rows, count] of this rank's ids → their log-probabilities [rows, count] among all ids."""
        if self.ranks.size == 1:
            return torch.log_softmax(logits, dim=-1)
        own = torch.log_softmax(logits, dim=-1)
        # The logarithm of the sum over this rank's ids, taken at the greatest logit, where it is most precise. It is a
        # double, so that the rounded result does not depend on a row's place in a vector instruction.
        mass = (logits.amax(-1) - own.amax(-1)).double()
        masses = self.ranks.all_gather(mass)  # [ranks, rows]
        highest = masses.amax(0)
        whole = highest + _added((masses - highest).exp()).log()
        return own + (mass - whole).float()[:, None]

    def picked(self, logprobs: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities [rows, count] of this rank's ids → those of `ids` [n] at `rows` [n], on every rank."""
        place, inside = self.own(ids)
        found = logprobs[rows, place]
        return self.ranks.all_reduce(found.where(inside, 0.0)) if self.ranks.size > 1 else found

    def num_above(self, logprobs: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """This rank's log-probabilities [rows, count] → how many of all ranks' at `rows` [n] are greater than `values`
        [n]."""
        return self.ranks.all_reduce((logprobs[rows] > values[:, None]).sum(-1))

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The greatest log-probabilities among all ranks' ids, and these ids, each [rows, count]."""
        if self.ranks.size == 1:
            values, ids = logprobs.topk(count)
            return values, ids
        first, length = self.span
        width = -(-self.size // self.ranks.size)
        padded = F.pad(logprobs, (0, width - length), value=-torch.inf)
        values, ids = padded.topk(min(count, width))
        gathered = self.ranks.all_gather(values).transpose(0, 1).flatten(1)  # [rows, ranks × count]
        places = self.ranks.all_gather(ids + first).transpose(0, 1).flatten(1)
        values, order = gathered.topk(count)
        return values, places.gather(1, order)

    def whole(self, logprobs: Tensor) -> Tensor:
        """This rank's [rows, count] → on rank 0 those of all ids [rows, size]; on the others their own."""
        if self.ranks.size == 1 or not len(logprobs):
            return logprobs
        cut, size = ShardSpec(0, ragged=True), self.ranks.size
        lengths = [cut.part(self.size, rank, size).length for rank in range(size)]
        parts = self.ranks.gather(F.pad(logprobs, (0, lengths[0] - logprobs.shape[1])))
        if parts is None:
            return logprobs
        return torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], dim=1)


class VocabularyEmbedding(Embedding):
    """The embedding table that is also the head, divided by ids."""

    def __init__(self, num_rows: int, width: int, scheme: HeadScheme, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        """`num_rows` are those of all ranks."""
        vocabulary = Vocabulary(num_rows, ranks)
        super().__init__(vocabulary.span[1], width, scheme, dtype)
        self.vocabulary = vocabulary

    def forward(self, index: Tensor) -> Tensor:
        """ids [...] → embeddings [..., width], the same on every rank."""
        if self.vocabulary.ranks.size == 1:
            return super().forward(index)
        place, inside = self.vocabulary.own(index)
        return self.vocabulary.ranks.all_reduce(super().forward(place) * inside[..., None])
