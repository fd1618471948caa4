"""A tensor of the KV cache: vectors as floats, or as int8 codes with one scale per vector."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from quant.memory import huge_page_zeros
from quant.operators.quantize_vectors import quantize_vectors
from quant.usage import UsageError

KINDS = ("auto", "int8")  # of a cache: as the model computes, or int8


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """Vectors [..., size]: `numbers` holds floats, or int8 codes with `scales` float32 [...]."""

    numbers: Tensor
    scales: Tensor | None = None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> "CacheTensor":
        """Zeros of shape [..., size]. The dtype int8 makes codes and scales. On a CPU the tensor lies in huge pages."""

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return (
                huge_page_zeros(shape, dtype)
                if device.type == "cpu"
                else torch.zeros(shape, dtype=dtype, device=device)
            )

        return cls(empty(shape, dtype), empty(shape[:-1], torch.float32) if dtype == torch.int8 else None)

    def __getitem__(self, index: int) -> "CacheTensor":
        """Those of one layer: a view."""
        return CacheTensor(self.numbers[index], None if self.scales is None else self.scales[index])

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Stores x [slots, ..., size] in these slots."""
        if self.scales is None:
            self.numbers[slots] = x.to(self.numbers.dtype)
        else:
            self.numbers[slots], self.scales[slots] = quantize_vectors(x)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copies the slots `sources` [n] to `targets` [n] in all layers of vectors [layers, slots, ..., size]."""
        for numbers in (self.numbers, self.scales):
            if numbers is not None:
                numbers[:, targets] = numbers[:, sources]

    def read(self, slots: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors in `slots` (of any shape), as [*slots, ..., size] in a floating dtype."""
        numbers = self.numbers[slots]
        return (numbers if self.scales is None else numbers * self.scales[slots][..., None]).to(dtype)


def kept_dtype(kind: str, computed: torch.dtype) -> torch.dtype:
    """The dtype that a cache of this kind stores if the model computes in `computed`. Raises UsageError for an unknown
    kind."""
    if kind not in KINDS:
        raise UsageError(f"kv_cache_type: one of {', '.join(KINDS)}, not {kind!r}")
    return torch.int8 if kind == "int8" else computed


def num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of vectors of shape [..., size], scales included."""
    return prod(shape) * dtype.itemsize + (prod(shape[:-1]) * 4 if dtype == torch.int8 else 0)
