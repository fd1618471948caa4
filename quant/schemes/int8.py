"""INT8 weights, with one scale per output."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from quant import cpu
from quant.operators.int8_linear import int8_linear
from quant.packing import TILE, code_bytes, tiled_scale, tiles, untile
from quant.rows import finite, quantize_rows, round_up
from quant.scheme import (
    SPREAD,
    HeadScheme,
    IntegerScheme,
    Narrowing,
    ReduceMax,
    Stored,
    Tensors,
    identity,
    num_bytes,
)
from quant.scheme_facts import SchemeFacts
from quant.tensor_cores import copies_before_ampere
from quant.usage import UsageError

FACTS = SchemeFacts(
    description="a byte a weight, one scale per output",
    bits=8,
    head=True,
    calibrates=True,
    default_head="int8",
    published_bits=8,
)


class Int8(HeadScheme, IntegerScheme):
    """INT8 weights with one scale per output, symmetric: scale = max|row| / 127.

    On a CPU the kernels take int8 activations with one scale per row and 16 inputs, so that an outlier makes only its
    group less precise. Without the kernels torch's own product takes one scale per row.
    """

    name = "int8"
    facts = FACTS
    scale_dtype = torch.float32
    GROUP = 16  # inputs that share an activation scale

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls()

    @classmethod
    def kernels(cls) -> str:
        return cpu.describe()

    @property
    def code_range(self) -> tuple[int, int]:
        return -127, 127

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features < 2:
            raise UsageError("int8 needs at least 2 input features")  # torch._int_mm is wrong for 1
        return {
            "weight": ((out_features, in_features), torch.int8),
            "weight_scale": ((out_features,), self.scale_dtype),
        }

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        return self.stored(*quantize_rows(finite(weight), reduce_max))

    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        return quantize_rows(weight, reduce_max)[1]

    def stored(self, codes: Tensor, scales: Tensor) -> Tensors:
        return {"weight": codes, "weight_scale": scales.squeeze(1)}

    def codes(self, weight: Tensor) -> Tensor:
        return weight

    def grouped_by(self, spans: list[int]) -> IntegerScheme | None:
        return None

    def dequantize(self, stored: Tensors) -> Tensor:
        return stored["weight"].float() * stored["weight_scale"][:, None]

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        codes = torch.randint(-119, 120, (out_features, in_features), dtype=torch.int8, generator=generator)
        return {"weight": codes, "weight_scale": torch.full((out_features,), SPREAD / 64)}

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        if name == "weight_scale":
            return None if dim == 1 else (0, start, length)
        return dim, start, length

    def pack(self, stored: Tensors) -> Tensors:
        weight, scale = stored["weight"], stored["weight_scale"].float()
        if weight.is_cuda or cpu.variant() is None:
            return {"weight": weight, "weight_scale": scale}
        inputs = round_up(weight.shape[1], self.GROUP)
        return {"weight": tiles(weight, 8, inputs), "weight_scale": tiled_scale(scale[:, None]).flatten()}

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        if device != "cpu" or cpu.variant() is None:
            return num_bytes(self.tensors(out_features, in_features))
        return round_up(out_features, TILE) * (round_up(in_features, self.GROUP) + 4)

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = int8_linear(flat, packed["weight"], packed["weight_scale"], bias, self.GROUP, out_features)
        return out.reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        weight, scale = packed["weight"], packed["weight_scale"]
        codes = untile(weight, 8, index)[..., :in_features] if weight.dim() == 4 else weight[index]
        return codes.float() * scale[index, None]

    def activation_bits(self, device: str) -> int:
        return 8 if device == "cpu" else super().activation_bits(device)

    def activation_bytes(self, in_features: int, device: str) -> int:
        return code_bytes(in_features, self.GROUP) if device == "cpu" else 0

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        return copies_before_ampere(capability, rows)


SCHEME = Int8
