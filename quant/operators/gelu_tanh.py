"""The tanh approximation of GELU (arXiv 1606.08415)."""

import torch
from torch import Tensor

from quant import cpu
from quant.operator import operator

_kernel = cpu.Kernel("gelu", cpu.POINTER, cpu.POINTER, cpu.INT64)


def _plain(x: Tensor) -> Tensor:
    # Made of torch's operations that give an element the same bits wherever it lies.
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


def _cpu(x: Tensor) -> Tensor:
    number = cpu.number()
    if number is None or x.dtype != torch.float32:
        return _plain(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    _kernel(number, x, out, x.numel())
    return out


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


gelu_tanh = operator("gelu_tanh", _plain, _fake, _cpu)
"""x [...] → [...] in x's dtype, each element by the same instructions wherever it lies."""
