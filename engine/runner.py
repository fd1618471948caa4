"""The runner: the only part of the engine that touches tensors of the network and its cache."""

import torch
from torch import Tensor

from engine.batch import Batch, Scored
from model.attention import KVCache, PagedAttention
from model.glm import GLM

# Rows of the vocabulary-wide log-softmax held at once: 128 × 150528 float32 are 77 MB.
_LOGIT_ROWS = 128


class Runner:
    """A network and its cache."""

    def __init__(self, model: GLM, num_blocks: int, block_size: int) -> None:
        self.model = model
        c = model.config
        self.device = model.transformer.final_layernorm.weight.device
        self.cache = KVCache(
            c.num_layers,
            num_blocks,
            block_size,
            c.num_attention_heads,
            c.head_dim,
            model.dtype,
            self.device,
        )

    @torch.inference_mode()
    def run(self, batch: Batch, num_top: int) -> tuple[list[Tensor | list[Scored | None]], int]:
        """One iteration: for each `Rows` that wants something, in order, the log-probabilities [vocab_size] after
        its last row, or its targets scored with the `num_top` best tokens of each row. Also the number of rows
        whose log-probabilities are not finite; those come back as NaN."""
        attend = PagedAttention(self.cache, [r.span for r in batch.rows])
        ids, positions, blocks = (
            torch.tensor([v for r in batch.rows for v in getattr(r, name)], device=self.device)
            for name in ("token_ids", "positions", "block_positions")
        )
        hidden = self.model(ids, positions, blocks, attend)
        wanted: list[int] = []
        targets: list[int] = []
        first = 0
        for rows in batch.rows:
            if rows.targets == ():
                wanted.append(first + len(rows.token_ids) - 1)
                targets.append(-1)
            elif rows.targets is not None:
                for offset, target in enumerate(rows.targets):
                    if target >= 0:
                        wanted.append(first + offset)
                        targets.append(target)
            first += len(rows.token_ids)
        scored = self._scored(hidden[wanted], targets, num_top)
        results: list[Tensor | list[Scored | None]] = []
        bad = 0
        for rows in batch.rows:
            if rows.targets == ():
                row = next(scored)
                assert isinstance(row, Tensor)
                bad += not bool(torch.isfinite(row.amin()))  # log-probabilities have no upper end; NaN is the least
                results.append(row)
            elif rows.targets is not None:
                line: list[Scored | None] = []
                for target in rows.targets:
                    item = next(scored) if target >= 0 else None
                    assert not isinstance(item, Tensor)
                    bad += item is not None and item.logprob != item.logprob
                    line.append(item)
                results.append(line)
        return results, bad

    def _scored(self, hidden: Tensor, targets: list[int], num_top: int):  # type: ignore[no-untyped-def]
        """Yields, row by row, log-probabilities (target −1) or a Scored, a few rows' logits at a time."""
        for start in range(0, len(targets), _LOGIT_ROWS):
            logprobs = torch.log_softmax(self.model.logits(hidden[start : start + _LOGIT_ROWS]), dim=-1)
            chunk = targets[start : start + _LOGIT_ROWS]
            index = torch.tensor(chunk, device=logprobs.device).clamp(min=0)
            picked = logprobs.gather(1, index[:, None]).flatten().tolist()
            values, tops = logprobs.topk(num_top) if num_top else (None, None)
            for row, target in enumerate(chunk):
                if target < 0:
                    yield logprobs[row].clone()
                else:
                    top: tuple[tuple[int, float], ...] = ()
                    if values is not None and tops is not None:
                        top = tuple(zip(tops[row].tolist(), values[row].tolist(), strict=True))
                    yield Scored(target, picked[row], top)
