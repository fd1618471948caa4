"""The product with a weight in int8, one scale per output."""

import torch
from torch import Tensor

from quant.operator import operator
from quant.operators.tiled import tiled_linear
from quant.rows import quantize_rows


def _plain(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    codes, scale = quantize_rows(x.float())
    out = torch._int_mm(codes, weight.t()).float() * scale * weight_scale
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

`weight` is int8 [outputs, inputs] with `weight_scale` float32 [outputs], or in the CPU kernels' tiles with
`weight_scale` [tiles × 16] and one activation scale per `group` inputs. `bias` is [outputs].
"""
