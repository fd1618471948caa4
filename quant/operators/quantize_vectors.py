"""Vectors of a cache in int8, with one scale per vector."""

import torch
from torch import Tensor

from quant import cpu
from quant.operator import operator
from quant.operators import tiled

_MULTIPLE = 16  # of numbers, that the CPU kernels take


def _plain(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(most, 127) / most  # as the kernels do it, to the bit
    codes = torch.where(torch.isfinite(most) & torch.isfinite(inverse), x * inverse, 0).round().to(torch.int8)
    return codes, torch.where(torch.isfinite(most), most / 127, torch.nan)[..., 0]


def _cpu(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-1] % _MULTIPLE or cpu.number() is None:
        return _plain(x)
    codes, scales, _ = tiled.quantize_rows(x.float().reshape(-1, x.shape[-1]), 8, x.shape[-1])
    return codes.view(x.shape), scales.view(x.shape[:-1])


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


quantize_vectors = operator("quantize_vectors", _plain, _fake, _cpu)
"""x [..., size] → int8 codes [..., size] and float32 scales [...], max|x| / 127.

The error of a number is at most half a scale. A vector with NaN or infinity has the scale NaN, so that all results
computed from it are NaN. Vectors smaller than about 2⁻¹²⁰ become zero.
"""
