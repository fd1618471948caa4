"""Attention of single rows over cache blocks, read in place: a CPU kernel and its plain twin."""

import torch
from torch import Tensor

from quant import cpu
from quant.operator import operator

_kernel = cpu.Kernel("attention", *[cpu.POINTER] * 8, *[cpu.INT64] * 6, returns=cpu.INT32)
_NOTHING = "a row of attention sees nothing, or slots outside its blocks or the cache"


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel computes attention over a cache of this dtype. It is much faster than the plain twin."""
    return device.type == "cpu" and dtype in (torch.float32, torch.int8) and cpu.variant() is not None


def _plain(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    _check(query, keys, values, rows, blocks, key_scales, value_scales)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for number, (begin, context, first, last) in enumerate(rows.tolist()):
        seen = torch.cat([torch.arange(context), torch.arange(first, last + 1)]).to(blocks.device)
        places = begin + seen // block_size
        if begin < 0 or not len(seen) or int(places.max()) >= len(blocks):
            raise IndexError(_NOTHING)
        slots = blocks[places] * block_size + seen % block_size
        if int(slots.min()) < 0 or int(slots.max()) >= len(keys):
            raise IndexError(_NOTHING)
        k, v = keys[slots].float(), values[slots].float()  # [seen, heads, head_dim]
        if key_scales is not None and value_scales is not None:
            k, v = k * key_scales[slots][..., None], v * value_scales[slots][..., None]
        scores = torch.einsum("hd,shd->hs", query[number].float(), k) / query.shape[-1] ** 0.5
        out[number] = torch.einsum("hs,shd->hd", scores.softmax(-1), v)
    return out


def _cpu(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    number = cpu.number()
    if number is None or query.dtype != torch.float32:
        return _plain(query, keys, values, rows, blocks, block_size, key_scales, value_scales)
    query = query.contiguous()
    _check(query, keys, values, rows, blocks, key_scales, value_scales)
    out = torch.empty_like(query)
    slots = (*query.shape, block_size, len(blocks), len(keys))
    if not _kernel(number, query, keys, values, key_scales, value_scales, out, rows, blocks, *slots):
        raise IndexError(_NOTHING)
    return out


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    shape = (len(keys), *query.shape[1:])
    scales = [s for s in (key_scales, value_scales) if s is not None]
    for name, given, dtype, wanted in (
        ("keys and values", (keys, values), torch.int8 if scales else torch.float32, shape),
        ("their scales", scales, torch.float32, shape[:2]),
        ("rows", (rows,), torch.int64, (len(query), 4)),
        ("blocks", (blocks,), torch.int64, (len(blocks),)),
    ):
        if any(t.dtype != dtype or t.shape != wanted or not t.is_contiguous() for t in given) or len(scales) == 1:
            raise ValueError(f"attention takes {name} as contiguous {dtype} {list(wanted)}")


def _fake(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


attention = operator("attention", _plain, _fake, _cpu)
"""Scaled dot-product attention of single rows over cache blocks, float32.

`query` is [rows, heads, head_dim]; keys and values are [slots, heads, head_dim], float32, or int8 with scales float32
[slots, heads] (`quant.operators.quantize_vectors`). `rows` int64 [rows, 4] has for each row the index of its first
block in `blocks`, and the slots that it sees: 0 … context − 1 and first … last. Slot i lies in block i // block_size.
A row's bits do not depend on the rows beside it. Raises ValueError for other shapes and dtypes, IndexError for a row
that sees no slot, or a slot outside its blocks or the cache.
"""
