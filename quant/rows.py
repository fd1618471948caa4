"""Products and rounding of rows. A row's bits do not depend on the rows beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.scheme import ReduceMax, identity
from quant.usage import UsageError

# A BLAS picks another summation order below this many rows (a matrix-vector product at 1); from here on it
# was measured to give each row the same bits at every height.
MIN_ROWS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., n] · weightᵀ [m, n] + bias [m] → [..., m]. A row's bits do not depend on the number of rows."""
    rows = x.numel() // x.shape[-1]
    if rows >= MIN_ROWS:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, MIN_ROWS - rows))
    return F.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], len(weight))


def quantize_rows(x: Tensor, reduce_max: ReduceMax = identity) -> tuple[Tensor, Tensor]:
    """x [rows, n] float32 → int8 codes [rows, n] and scales [rows, 1], symmetric absmax. A row of zeros has scale 1."""
    scale = reduce_max(x.abs().amax(-1, keepdim=True)) / 127
    scale = torch.where(scale == 0, 1.0, scale.clamp(min=torch.finfo(torch.float32).tiny))
    return (x / scale).round().to(torch.int8), scale


def finite(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [...] in `dtype`. Raises UsageError for NaN and infinity, also if `dtype` is too narrow for a
    number."""
    weight = weight.to(dtype)
    if not bool(torch.isfinite(weight).all()):
        raise UsageError("the weight holds NaN or infinity")
    return weight


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple
