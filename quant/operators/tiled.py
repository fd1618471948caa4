"""The CPU kernels' product of rows with a weight in tiles (`quant.packing`), for the operators that have one."""

from typing import NamedTuple

import torch
from torch import Tensor

from quant import cpu
from quant.packing import TILE


class Rows(NamedTuple):
    """Quantized inputs: `codes` int8 [rows, inputs], `scales` float32 and `starts` int32 [rows, groups]."""

    codes: Tensor
    scales: Tensor
    starts: Tensor


_kernel = cpu.Kernel(
    "linear",
    *(cpu.INT32, cpu.INT32),  # bits of the weight, whether it has groups
    *(cpu.POINTER, cpu.INT64),  # x and its features
    *(cpu.POINTER, cpu.POINTER, cpu.POINTER),  # `Rows`, which are filled
    *(cpu.INT64, cpu.INT64, cpu.INT64, cpu.INT32),  # rows, inputs, groups, inputs a group
    *(cpu.POINTER, cpu.POINTER, cpu.POINTER, cpu.POINTER, cpu.INT64),  # weight, its scales, bias, out, outputs
)


def quantize_rows(x: Tensor, bits: int, group: int) -> Rows:
    """x float32 [rows, features] → int8 codes with one scale, absmax / 127, per row and `group` inputs.

    Rounds half to even. A group with NaN or infinity has the scale NaN. Zeros fill the last group. `bits` are those of
    the weights: a start is minus their offset times the sum of a group's codes, and the kernels' sums begin there.
    """
    x, rows = x.contiguous(), _empty_rows(x, group)
    _kernel(cpu.number(), bits, False, x, x.shape[1], *rows, *_sizes(rows), None, None, None, None, 0)
    return rows


def tiled_linear(
    x: Tensor, group: int, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, bits: int, outputs: int
) -> Tensor:
    """x float32 [rows, features] → float32 [rows, outputs]. The inputs become int8 codes in groups of `group`.

    `weight_scale` is float16 [tiles, groups, 16], or float32 [tiles × 16] with one scale per output. Raises ValueError
    for a number of inputs or outputs that is not the weight's.
    """
    x, rows = x.contiguous(), _empty_rows(x, group)
    inputs, most = weight.shape[1] * (8 if bits == 4 else 4), len(weight) * TILE
    if rows.codes.shape[1] != inputs or outputs > most:
        raise ValueError(f"{rows.codes.shape[1]} inputs and {outputs} outputs for a weight of {inputs} and {most}")
    bias = None if bias is None else bias.float().contiguous()
    out = x.new_empty((len(x), outputs))
    grouped = weight_scale.dim() == 3
    _kernel(cpu.number(), bits, grouped, x, x.shape[1], *rows, *_sizes(rows), weight, weight_scale, bias, out, outputs)
    return out


def _empty_rows(x: Tensor, group: int) -> Rows:
    rows, groups = x.shape[0], -(-x.shape[1] // group)
    return Rows(
        x.new_empty((rows, groups * group), dtype=torch.int8),
        x.new_empty((rows, groups), dtype=torch.float32),
        x.new_empty((rows, groups), dtype=torch.int32),
    )


def _sizes(rows: Rows) -> tuple[int, int, int, int]:
    """rows, inputs, groups, inputs a group"""
    count, inputs = rows.codes.shape
    groups = rows.scales.shape[1]
    return count, inputs, groups, inputs // groups
