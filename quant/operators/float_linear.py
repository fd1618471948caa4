"""The product with a weight in floats."""

import torch
from torch import Tensor

from quant import cpu
from quant.operator import operator
from quant.rows import linear

# The dtypes of weights that the CPU kernels read, by their numbers in cpu_float_kernels.cpp.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_kernel = cpu.Kernel(
    "float_linear",
    cpu.INT32,  # the weight's dtype
    *(cpu.POINTER, cpu.INT64, cpu.INT64),  # x, rows, inputs
    *(cpu.POINTER, cpu.POINTER, cpu.POINTER, cpu.INT64),  # weight, bias or None, out, outputs
)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight.to(x.dtype), bias)


def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    number = cpu.number()
    if number is None or x.dtype != torch.float32 or weight.dtype not in DTYPES:
        return _plain(x, weight, bias)
    if x.shape[1] != weight.shape[1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(f"rows {list(x.shape)} for a weight {list(weight.shape)}")
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    out = x.new_empty((len(x), len(weight)))
    _kernel(number, DTYPES.index(weight.dtype), x, *x.shape, weight, bias, out, len(weight))
    return out


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


float_linear = operator("float_linear", _plain, _fake, _cpu)
"""x [rows, inputs] → [rows, outputs] in x's dtype, for a weight [outputs, inputs] and a bias [outputs].

The CPU kernels multiply float32 rows by float16, bfloat16 and float32 weights, and add up in float32: an output is the
same as that of the weight in float32, up to the order of its sum. A row's bits do not depend on the rows beside it.
Raises ValueError for a number of inputs that is not the weight's.
"""
