"""Schemes: how a linear layer's weight is stored, and how rows are multiplied with it.

Every scheme keeps one promise for layers of 16 features and more: an output row depends on its own input row only,
bit for bit, however many rows share the call. A request then gets the same numbers alone and in a batch of 64.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# A BLAS picks another summation order below this many rows (a matrix-vector product at 1); from here on it
# was measured to give each row the same bits at every height.
_MIN_ROWS = 16


class Scheme(Protocol):
    """Storage and matrix product of one kind of quantized weight."""

    name: str

    def tensors(self, out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of what the scheme stores for a weight [out_features, in_features]."""

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The stored tensors of a float weight. Raises ValueError for NaN or infinity."""

    def matmul(self, x: Tensor, tensors: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        """x [..., in_features] → [..., out_features] in x's dtype."""


class Float:
    """The weight as it is."""

    name = "none"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def tensors(self, out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"weight": ((out_features, in_features), self.dtype)}

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight.to(self.dtype)}

    def matmul(self, x: Tensor, tensors: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        return linear(x, tensors["weight"], bias)


class Int8:
    """INT8 weights, one scale per output row; INT8 activations, one scale per input row.

    Both are symmetric: scale = max|row| / 127. The integer product is exact, so its bits do not depend on the
    kernel's order of summation.
    """

    name = "int8"

    def tensors(self, out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        if in_features < 2:
            raise ValueError("int8 needs at least 2 input features")  # torch._int_mm is wrong for 1
        return {
            "weight": ((out_features, in_features), torch.int8),
            "weight_scale": ((out_features,), torch.float32),
        }

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        codes, scale = quantize_rows(weight.float())
        if not bool(torch.isfinite(scale).all()):
            raise ValueError("the weight holds NaN or infinity")
        return {"weight": codes, "weight_scale": scale.squeeze(-1)}

    def matmul(self, x: Tensor, tensors: dict[str, Tensor], bias: Tensor | None) -> Tensor:
        weight = tensors["weight"]
        codes, scale = quantize_rows(x.reshape(-1, x.shape[-1]).float())
        product = torch._int_mm(codes, weight.t()).float()
        out = product * scale * tensors["weight_scale"]
        if bias is not None:
            out = out + bias
        return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


SCHEMES: dict[str, type[Float] | type[Int8]] = {"none": Float, "int8": Int8}


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, n] float32 → int8 codes [rows, n] and scales [rows, 1], symmetric absmax; a zero row has scale 1."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (x / scale).round().to(torch.int8), scale


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., n] · weightᵀ [n, m] + bias, row by row independent of the number of rows."""
    rows = x.numel() // x.shape[-1]
    if rows >= _MIN_ROWS:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, -1), (0, 0, 0, _MIN_ROWS - rows))
    return F.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], -1)
