"""The product with a weight in int8, one scale for a whole row or for a group of inputs."""

import torch
from torch import Tensor

from quant.groups import meant
from quant.operator import operator
from quant.operators.tiled import tiled_linear
from quant.rows import linear, quantize_rows

_OUTPUTS = 1024  # whose weights in groups become floats at once


def _plain(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    if weight_scale.dim() == 2:
        return _plain_grouped(x, weight, weight_scale, bias)
    codes, scale = quantize_rows(x.float())
    out = torch._int_mm(codes, weight.t()).float() * scale * weight_scale
    return (out if bias is None else out + bias).to(x.dtype)


def _plain_grouped(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    rows, out = x.float(), x.new_empty((len(x), len(weight)), dtype=torch.float32)
    for first in range(0, len(weight), _OUTPUTS):
        some = slice(first, first + _OUTPUTS)
        out[:, some] = linear(rows, meant(weight[some], weight_scale[some]))
    return (out if bias is None else out + bias).to(x.dtype)


def _cpu(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    if weight.dim() != 4:
        return _plain(x, weight, weight_scale, bias, group, outputs)
    return tiled_linear(x.float(), group, weight, weight_scale, bias, 8, outputs).to(x.dtype)


def _cuda(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    from quant import gpu  # Triton takes seconds to import

    return gpu.int8_linear(x, weight, weight_scale, bias)


def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


int8_linear = operator("int8_linear", _plain, _fake, _cpu, _cuda)
"""x [rows, inputs] → [rows, outputs] in x's dtype.

`weight` is int8 [outputs, inputs] with `weight_scale` float32 [outputs] or float16 [outputs, groups], or in the CPU
kernels' tiles with `weight_scale` float32 [tiles × 16] or float16 [tiles, groups, 16], and one activation scale per
`group` inputs. `bias` is [outputs].
"""
