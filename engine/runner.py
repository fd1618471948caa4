"""The runner: the only part of the engine that uses tensors of the network and its cache."""

import math
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.schedule.batch import Batch, PrefixCopy, Result, Row, Scored
from model.adapters.target import AdapterTarget
from model.attention import KVCache, PagedAttention
from model.network import Network
from quant.cache_tensor import kept_dtype

# Rows of the vocabulary-wide log-softmax held at once, fewer after memory has run out: 128 × 150528 float32 are 77 MB.
LOGIT_ROWS = 128
LEAST_LOGIT_ROWS = 16
_NEVER = -1e9  # a finite logit with probability 0
_ALL, _ALL_AND_MASS = -1, -2  # instead of a target


class Runner:
    """A network and its KV cache."""

    def __init__(
        self,
        model: Network,
        num_blocks: int,
        block_size: int,
        aliases: Collection[int] = (),
        kv_cache_type: str = "auto",
        target: AdapterTarget | None = None,
    ) -> None:
        """`aliases` are tokens that share another token's row, which a distribution would count twice.

        `target` is the base for adapters.
        """
        self.model = model
        self.adapters = Adapters(target or AdapterTarget(model))
        self.logit_chunk = LOGIT_ROWS
        first, count = model.vocabulary.span
        self.aliases = [i - first for i in aliases if first <= i < first + count]
        self._plain = next((i for i in range(count) if i not in self.aliases), 0)
        a = model.architecture
        self.device = model.device
        kept = kept_dtype(kv_cache_type, model.dtype)
        self.cache = KVCache(a.num_layers, num_blocks, block_size, model.kv_heads, a.head_dim, kept, self.device)

    @torch.inference_mode()
    def run(self, batch: Batch, num_top: int) -> tuple[list[Result], int]:
        """Runs one iteration. Returns a result for each `Rows` with an output, in order, by its kind:

        - token: log-probabilities [vocab_size], or [logit_rows, vocab_size] for several rows;
        - logits: the same, each row with one number more, the difference between its logits and its log-probabilities;
        - scores: its scored targets, with the `num_top` best tokens of each row;
        - ranked: the same, with the targets' ranks;
        - pair: log-probabilities [2].

        Also returns the number of rows with log-probabilities that are not finite; their results are NaN. All ranks run
        the same batches. Only rank 0's results are complete: the others have their part of the vocabulary.
        """
        if batch.copies:
            self.cache.copy(batch.copies)
        for prefix in batch.prefixes:
            self._write(prefix)
        adapters = [r.adapter for r in batch.rows for _ in r.token_ids]
        self.adapters.held.select(adapters)
        attend = PagedAttention(self.cache, [r.span for r in batch.rows])
        ids, positions, blocks = (
            torch.tensor([v for r in batch.rows for v in getattr(r, name)], device=self.device)
            for name in ("token_ids", "positions", "block_positions")
        )
        hidden = self.model(ids, positions, blocks, attend)
        wanted = list(_wanted(batch))
        indices = [index for index, _ in wanted]
        chosen = [adapters[index] for index in indices]
        ranked = any(r.output == "ranked" for r in batch.rows)
        scored = self._scored(hidden[indices], [targets for _, targets in wanted], chosen, num_top, ranked)
        results: list[Result] = []
        bad = first = 0
        for rows in batch.rows:
            if rows.output == "pair":
                results.append(_row(torch.log_softmax(self.model.next_sentence_logits(hidden[first]), dim=-1)))
            elif rows.output in ("token", "logits"):
                found = [next(scored) for _ in rows.logit_rows]
                arrays = [_row(row) for row in found if isinstance(row, Tensor)]
                bad += sum(math.isnan(row[0]) for row in arrays)
                results.append(arrays[0] if len(arrays) == 1 else np.stack(arrays))
            elif rows.output in ("scores", "ranked"):
                line: list[Scored | None] = []
                for target in rows.targets:
                    item = next(scored) if target >= 0 else None
                    assert not isinstance(item, Tensor)
                    bad += item is not None and item.logprob != item.logprob
                    line.append(item)
                results.append(line)
            first += len(rows.token_ids)
        return results, bad

    def _write(self, copy: PrefixCopy) -> None:
        """Writes a part of a prefix into the cache."""
        prefix, size = self.adapters.held.prefix(copy.adapter), self.cache.block_size
        last = min(copy.first + len(copy.blocks) * size, len(prefix))
        slots = [block * size + i for block in copy.blocks for i in range(size)][: last - copy.first]
        index = torch.tensor(slots, device=self.device)
        for layer in range(len(prefix.keys)):
            self.cache.keys[layer].write(index, prefix.keys[layer, copy.first : last])
            self.cache.values[layer].write(index, prefix.values[layer, copy.first : last])

    def _scored(
        self, hidden: Tensor, targets: list[tuple[int, ...]], adapters: list[int], num_top: int, ranked: bool
    ) -> Iterator[Tensor | Scored]:
        """Row by row log-probabilities (target −1; −2: with their mass) or a Scored for each target, a few rows' logits
        at a time."""
        vocabulary = self.model.vocabulary
        for start in range(0, len(targets), self.logit_chunk):
            self.adapters.held.select(adapters[start : start + self.logit_chunk])
            logits = self.model.logits(hidden[start : start + self.logit_chunk])
            if self.aliases:
                logits[:, self.aliases] = _NEVER
            logprobs = vocabulary.log_softmax(logits)
            chunk = targets[start : start + self.logit_chunk]
            pairs = [(row, target) for row, own in enumerate(chunk) for target in own]
            rows, index = torch.tensor(pairs, device=logprobs.device).T
            whole = iter(vocabulary.whole(logprobs[rows[index < 0]]))
            # One column says it of all: a logit is the log-probability and the logarithm of the sum.
            plain = slice(self._plain, self._plain + 1)
            mass = logits[:, plain] - logprobs[:, plain] if (_ALL_AND_MASS,) in chunk else None
            own = vocabulary.picked(logprobs, rows, index.clamp(min=0))
            picked = own.tolist()
            above = vocabulary.num_above(logprobs, rows, own).tolist() if ranked else None
            values, tops = (found.tolist() for found in vocabulary.top(logprobs, num_top)) if num_top else ([], [])
            best = [tuple(zip(*row, strict=True)) for row in zip(tops, values, strict=True)] or [()] * len(chunk)
            for place, (row, target) in enumerate(pairs):
                if target >= 0:
                    yield Scored(target, picked[place], best[row], None if above is None else above[place] + 1)
                    continue
                found = next(whole)
                yield found if mass is None or target == _ALL else torch.cat([found, mass[row].to(found)])


def _row(logprobs: Tensor) -> Row:
    """A row as jobs take it, all NaN where it is not finite."""
    row: Row = logprobs.float().cpu().numpy()
    # Log-probabilities have no upper end; NaN is the least.
    return row if math.isfinite(row.min()) else np.full_like(row, np.nan)


def _wanted(batch: Batch) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The packed rows that need logits, each with its targets; −1 or −2 alone for all log-probabilities."""
    first = 0
    for rows in batch.rows:
        count = len(rows.token_ids)
        if rows.output in ("token", "logits"):
            wanted = _ALL if rows.output == "token" else _ALL_AND_MASS
            yield from ((first + (row if row >= 0 else count + row), (wanted,)) for row in rows.logit_rows)
        elif rows.output in ("scores", "ranked"):
            one_each = ((offset, rows.targets[offset : offset + 1]) for offset in range(count - 1))
            for offset, targets in (*one_each, (count - 1, rows.targets[count - 1 :])):
                if known := tuple(target for target in targets if target >= 0):
                    yield first + offset, known
        first += count
