"""Low-rank products (LoRA, arXiv 2106.09685) added to some rows of a layer's outputs."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from quant import cpu
from quant.operator import operator

_kernel = cpu.Kernel("low_rank", *[cpu.POINTER] * 7, *[cpu.INT64] * 6, returns=cpu.INT32)
_ROWS = 16  # products of one height only: between heights a library changes its order of summation


def _plain(
    out: Tensor,
    x: Tensor,
    entries: Tensor,
    counts: list[int],
    down: list[Tensor],
    up: list[Tensor],
    first: list[int],
) -> None:
    pieces = zip(torch.split(entries[:, 0], counts), down, up, first, strict=True)
    for of_piece, down_, up_, start in pieces:
        for rows in torch.split(of_piece, _ROWS):
            filled = F.pad(x[rows], (0, 0, 0, _ROWS - len(rows)))
            change = filled @ down_.t() @ up_
            out[rows, start : start + up_.shape[1]] += change[: len(rows)]


def _cpu(
    out: Tensor,
    x: Tensor,
    entries: Tensor,
    counts: list[int],
    down: list[Tensor],
    up: list[Tensor],
    first: list[int],
) -> None:
    number = cpu.number()
    if number is None or not x.dtype == out.dtype == torch.float32:
        return _plain(out, x, entries, counts, down, up, first)
    x, inputs = x.contiguous(), x.shape[1]
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in (out, *down, *up)):
        raise ValueError("low-rank products take contiguous float32 tensors")
    if len(out) != len(x) or any(d.shape != (len(u), inputs) for d, u in zip(down, up, strict=True)):
        raise ValueError(f"low-rank products of {list(x.shape)} inputs do not fit")
    if entries.dtype != torch.int64 or entries.shape != (len(entries), 2) or not entries.is_contiguous():
        raise ValueError("entries are contiguous int64 [entries, 2]")
    pieces = torch.tensor([(*u.shape[:1], start, u.shape[1]) for u, start in zip(up, first, strict=True)])
    stride = max((len(u) for u in up), default=0)
    hidden = x.new_empty((len(entries), stride))
    addresses = [(ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors)) for tensors in (down, up)]
    sizes = (*x.shape, out.shape[1], len(entries), len(up), stride)
    if not _kernel(number, x, out, entries, *addresses, pieces, hidden, *sizes):
        raise IndexError("a low-rank product of rows, pieces or outputs that are not there")


def _fake(
    out: Tensor,
    x: Tensor,
    entries: Tensor,
    counts: list[int],
    down: list[Tensor],
    up: list[Tensor],
    first: list[int],
) -> None:
    pass


add_low_rank = operator("add_low_rank", _plain, _fake, _cpu, mutates=("out",))
"""Adds low-rank products to some rows: out[row, first:] += x[row] · downᵀ · up.

`out` is [rows, outputs], `x` [rows, inputs]. `entries` int64 [entries, 2] has pairs (row, piece), sorted by piece;
`counts` has the number of entries of each piece. Two entries of one row have different outputs. A piece has `down`
[rank, inputs], `up` [rank, width] and its first output. A row's bits do not depend on the rows beside it. Raises
ValueError for other shapes, IndexError for a row, piece or output out of range.
"""
