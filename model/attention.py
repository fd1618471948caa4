"""Attention whose visibility is one integer a sequence: its context length.

Rows of part A see all of part A. A row of part B sees all of part A, and of part B whatever is not later than
itself (GLM, arXiv 2103.10360, figure 2). `Attend` is the seam between a network and where its keys are kept:
`DenseAttention` is the readable reference and what training uses; `PagedAttention` reads cache blocks.
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
    """Takes a layer's queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim]; gives the mixed values
    as the queries are. Query heads h·g … h·g + g − 1 share key and value head h."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def visible(num_tokens: int, context_len: Tensor) -> Tensor:
    """The mask [batch, 1, num_tokens, num_tokens], True where a row may see a key.

    `context_len` [batch] counts the tokens of part A at the start of each sequence.
    """
    index = torch.arange(num_tokens, device=context_len.device)
    causal = index[None, :] <= index[:, None]
    context = index[None, None, :] < context_len[:, None, None]
    return (causal | context)[:, None]


class DenseAttention:
    """Whole sequences at once, [batch, num_tokens, heads, head_dim], without a cache."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)


class KVCache:
    """Keys and values of all layers in blocks: two of [layers, blocks × block_size, kv_heads, head_dim].

    `dtype` is what they are kept as; int8 keeps codes with one scale a token and head.
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
        """The name of the dtype that keys and values are kept as."""
        return str(self.keys.numbers.dtype).removeprefix("torch.")

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Copies blocks whole: (from, to)."""
        offsets = torch.arange(self.block_size, device=self.keys.numbers.device)
        sources, targets = (
            (torch.tensor(numbers, device=offsets.device)[:, None] * self.block_size + offsets).flatten()
            for numbers in zip(*blocks, strict=True)
        )
        self.keys.copy(sources, targets)
        self.values.copy(sources, targets)

    @staticmethod
    def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Of all layers, scales included."""
        return 2 * num_bytes((num_layers, num_kv_heads, head_dim), dtype)


@dataclass(slots=True)
class Span:
    """Rows of one sequence in a step: `num_rows` new tokens at slots `start`…

    `blocks` are the sequence's cache blocks in order; slot i lies in blocks[i // block_size]. Part A fills slots
    0 … context_len − 1, part B begins at the next block border, so that sequences share part A's blocks whole. In a
    `causal` model part A is a prompt, whose rows see only those before them.
    """

    num_rows: int
    start: int
    context_len: int
    blocks: tuple[int, ...]
    causal: bool = False


class PagedAttention:
    """Packed rows [rows, heads, head_dim] of many sequences over a block cache; stores keys and values first.

    A row's keys are read back from the cache, so that it is all the same whether they came in this step or before.
    Rows of part B go to the CPU kernels where there are any, which read the cache in place. All others are gathered:
    sequences of one shape (rows, blocks) go through one product, which treats each apart. Rows are filled up to a
    multiple of 16 with copies of the last one, since for other heights torch's kernel sums in an order that depends on
    where a matrix lies in memory. Either way a sequence's bits do not depend on its neighbours.
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
        single: list[tuple[int, int, int, int]] = []  # as the operator takes them
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
        for (num_rows, _), members in groupby(sorted(shapes), key=lambda s: s[:2]):
            numbers = [number for _, _, number in members]
            index = torch.arange(-(-num_rows // self.ROWS) * self.ROWS).clamp(max=num_rows - 1)
            rows = torch.stack([starts[n] + index for n in numbers])
            keys = torch.stack([(torch.tensor(spans[n].blocks)[:, None] * size + offsets).flatten() for n in numbers])
            mask = torch.stack([_slot_mask(spans[n], keys.shape[1], size)[index] for n in numbers])
            # Slots that nobody sees may hold another sequence's NaN, which a weight of 0 would not hide.
            keys = torch.where(mask.any(1), keys, keys[:, :1])
            self.groups.append((num_rows, rows.to(device), keys.to(device), mask[:, None].to(device)))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.write(self.write_slots, k)
        values.write(self.write_slots, v)
        if not self.groups:
            return self._in_place(q, keys, values)
        out = torch.empty_like(q)
        if len(self.single_rows):
            out[self.single_rows] = self._in_place(q[self.single_rows], keys, values)
        for num_rows, rows, slots, mask in self.groups:
            mixed = F.scaled_dot_product_attention(
                q[rows].transpose(1, 2),  # [sequences, heads, rows, head_dim]
                keys.read(slots, q.dtype).transpose(1, 2),
                values.read(slots, q.dtype).transpose(1, 2),
                attn_mask=mask,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            out[rows[:, :num_rows]] = mixed.transpose(1, 2)[:, :num_rows]
        return out

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
