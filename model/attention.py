"""Attention with one integer of visibility per sequence: its context length.

Rows of part A see all of part A. A row of part B sees all of part A, and of part B itself and the rows before it (GLM,
arXiv 2103.10360, figure 2). `Attend` is the seam between a network and its keys and values: `DenseAttention` is the
readable reference, which training uses; `PagedAttention` reads cache blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.cache_tensor import CacheTensor, num_bytes
from quant.operators.attention import attention, has_kernel


class Attend(Protocol):
    """Attention of one layer, with its keys and values.

    Takes queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]; returns mixed values [..., heads,
    head_dim]. Query heads h·g … h·g + g − 1 share key and value head h.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        """With a `reach` a row sees of all that it may see only the tokens at most so many places away."""

    def share(self, marked: Tensor) -> Tensor:
        """Of the tokens that each row sees, the share that is `marked` [...]: float32 [...]."""


def visible(num_tokens: int, context_len: Tensor) -> Tensor:
    """The mask [batch, 1, num_tokens, num_tokens]: True if a row sees a key.

    `context_len` [batch] is the number of tokens of part A at the start of each sequence.
    """
    index = torch.arange(num_tokens, device=context_len.device)
    causal = index[None, :] <= index[:, None]
    context = index[None, None, :] < context_len[:, None, None]
    return (causal | context)[:, None]


class DenseAttention:
    """Attention over whole sequences [batch, num_tokens, heads, head_dim], without a cache."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = self.mask
        if reach is not None:
            index = torch.arange(mask.shape[-1], device=mask.device)
            mask = mask & near(index[: mask.shape[-2]], len(index), reach)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(
            1, 2
        )

    def share(self, marked: Tensor) -> Tensor:
        """marked [batch, num_tokens] → float32 [batch, num_tokens]."""
        seen = self.mask.expand(len(marked), 1, *self.mask.shape[-2:])[:, 0]
        return (seen & marked[:, None]).sum(-1) / seen.sum(-1)


def near(slots: Tensor, num_slots: int, reach: int) -> Tensor:
    """[..., rows, num_slots], True where a slot is at most `reach` places away from a row's own, of `slots` [...,
    rows]."""
    return (slots[..., None] - torch.arange(num_slots, device=slots.device)).abs() <= reach


class KVCache:
    """Keys and values of all layers in blocks: two tensors [layers, blocks × block_size, kv_heads, head_dim].

    `dtype` is the dtype of the stored numbers; int8 stores codes with one scale per token and head.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        shape = (num_layers, num_blocks * block_size, num_kv_heads, head_dim)
        self.keys = CacheTensor.zeros(shape, dtype, device)
        self.values = CacheTensor.zeros(shape, dtype, device)

    @property
    def kind(self) -> str:
        """The name of the stored dtype."""
        return str(self.keys.numbers.dtype).removeprefix("torch.")

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, given as pairs (from, to)."""
        offsets = torch.arange(self.block_size, device=self.keys.numbers.device)
        sources, targets = (
            (torch.tensor(numbers, device=offsets.device)[:, None] * self.block_size + offsets).flatten()
            for numbers in zip(*blocks, strict=True)
        )
        self.keys.copy(sources, targets)
        self.values.copy(sources, targets)

    @staticmethod
    def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one token in all layers, keys, values and scales."""
        return 2 * num_bytes((num_layers, num_kv_heads, head_dim), dtype)


@dataclass(slots=True)
class Span:
    """The rows of one sequence in a step: `num_rows` new tokens from slot `start` on.

    `blocks` are the sequence's cache blocks in order; slot i lies in blocks[i // block_size]. Part A fills slots 0 …
    context_len − 1. Part B begins at the next block border, so that sequences can share all blocks of part A. In a
    `causal` model part A is a prompt: its rows see only the rows before them.
    """

    num_rows: int
    start: int
    context_len: int
    blocks: tuple[int, ...]
    causal: bool = False


class PagedAttention:
    """Attention of packed rows [rows, heads, head_dim] of many sequences over a block cache, which it fills first.

    It reads a row's keys back from the cache, so that keys of this step and of earlier steps count alike. Rows of part
    B go to the CPU kernels, if there are any, which read the cache in place. All other rows are gathered: sequences of
    one shape (rows, blocks) share one product, which treats each of them apart. Copies of the last row fill the rows up
    to a multiple of 16, since at other heights torch's kernel sums in an order that depends on where a matrix lies in
    memory. Both ways, a sequence's bits do not depend on the other sequences.
    """

    ROWS = 16

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        size = cache.block_size
        device, dtype = cache.keys.numbers.device, cache.keys.numbers.dtype
        in_place = has_kernel(device, dtype)
        offsets = torch.arange(size)
        write_slots: list[int] = []
        shapes: list[tuple[int, int, int]] = []
        single: list[tuple[int, int, int, int]] = []  # rows of `quant.operators.attention`
        blocks: list[int] = []
        single_rows: list[int] = []
        starts = [0]
        for number, span in enumerate(spans):
            first = part_b_start(span.context_len, size)
            slots = range(span.start, span.start + span.num_rows)
            write_slots += [span.blocks[slot // size] * size + slot % size for slot in slots]
            if in_place and span.start >= first:
                single += [(len(blocks), span.context_len, first, slot) for slot in slots]
                blocks += span.blocks
                single_rows += range(starts[-1], starts[-1] + span.num_rows)
            else:
                shapes.append((span.num_rows, len(span.blocks), number))
            starts.append(starts[-1] + span.num_rows)
        self.write_slots = torch.tensor(write_slots, device=device)
        self.single_rows = torch.tensor(single_rows, device=device)
        self.single = torch.tensor(single), torch.tensor(blocks)
        self.groups: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._slots: list[Tensor] = []  # of each group's rows, [sequences, rows]
        self._near: dict[int, list[Tensor]] = {}
        self._spans = spans
        for (num_rows, _), members in groupby(sorted(shapes), key=lambda s: s[:2]):
            numbers = [number for _, _, number in members]
            index = torch.arange(-(-num_rows // self.ROWS) * self.ROWS).clamp(max=num_rows - 1)
            rows = torch.stack([starts[n] + index for n in numbers])
            keys = torch.stack([(torch.tensor(spans[n].blocks)[:, None] * size + offsets).flatten() for n in numbers])
            mask = torch.stack([_slot_mask(spans[n], keys.shape[1], size)[index] for n in numbers])
            # Slots out of sight may hold another sequence's NaN, which a weight of 0 would not hide.
            keys = torch.where(mask.any(1), keys, keys[:, :1])
            self.groups.append((num_rows, rows.to(device), keys.to(device), mask[:, None].to(device)))
            self._slots.append(torch.stack([spans[n].start + index for n in numbers]).to(device))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        masks = [mask for *_, mask in self.groups] if reach is None else self._masks(reach)
        keys.write(self.write_slots, k)
        values.write(self.write_slots, v)
        if not self.groups:
            return self._in_place(q, keys, values)
        out = torch.empty_like(q)
        if len(self.single_rows):
            out[self.single_rows] = self._in_place(q[self.single_rows], keys, values)
        for (num_rows, rows, slots, _), mask in zip(self.groups, masks, strict=True):
            mixed = F.scaled_dot_product_attention(
                q[rows].transpose(1, 2),  # [sequences, heads, rows, head_dim]
                keys.read(slots, q.dtype).transpose(1, 2),
                values.read(slots, q.dtype).transpose(1, 2),
                attn_mask=mask,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            out[rows[:, :num_rows]] = mixed.transpose(1, 2)[:, :num_rows]
        return out

    def share(self, marked: Tensor) -> Tensor:
        """marked [rows] → float32 [rows]. Rows must be whole texts, whose tokens all see each other."""
        shares, first = [], 0
        for span in self._spans:
            own = marked[first : first + span.num_rows]
            shares.append((own.sum() / span.num_rows).expand(span.num_rows))
            first += span.num_rows
        return torch.cat(shares)

    def _masks(self, reach: int) -> list[Tensor]:
        """The groups' masks within a reach. Rows must be of part A, whose slots are places in the text."""
        if any(span.start >= part_b_start(span.context_len, self.cache.block_size) for span in self._spans):
            raise ValueError("rows of part B have no reach")
        if reach not in self._near:
            self._near[reach] = [
                mask & near(own, mask.shape[-1], reach)[:, None]
                for (*_, mask), own in zip(self.groups, self._slots, strict=True)
            ]
        return self._near[reach]

    def _in_place(self, q: Tensor, keys: CacheTensor, values: CacheTensor) -> Tensor:
        """Rows of part B by the CPU kernel, which knows as many heads of queries as of keys: where queries share a
        key, a row becomes as many rows as queries share one."""
        rows, blocks = self.single
        sharing = q.shape[1] // keys.numbers.shape[1]
        if sharing > 1:
            rows = rows.repeat_interleave(sharing, dim=0)
            q = q.view(len(q), -1, sharing, q.shape[2]).transpose(1, 2).flatten(0, 1)
        size = self.cache.block_size
        out = attention(q.float(), keys.numbers, values.numbers, rows, blocks, size, keys.scales, values.scales).to(
            q.dtype
        )
        return out.view(-1, sharing, *out.shape[1:]).transpose(1, 2).flatten(1, 2) if sharing > 1 else out


def part_b_start(context_len: int, block_size: int) -> int:
    """The slot of part B's first token: the first block border at or after part A's end."""
    return -(-context_len // block_size) * block_size


def _slot_mask(span: Span, num_slots: int, block_size: int) -> Tensor:
    """[rows, num_slots], True where a row of the span may see a slot."""
    slot = torch.arange(num_slots)
    row = torch.arange(span.start, span.start + span.num_rows)[:, None]
    first = part_b_start(span.context_len, block_size)
    context = slot < span.context_len
    if span.causal:
        context = context & (slot <= row)
    return context | ((slot >= first) & (slot <= row))
