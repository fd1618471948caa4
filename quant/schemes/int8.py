"""INT8 weights, with one scale for a whole row or for a group of inputs."""

from collections.abc import Mapping
from math import gcd
from typing import Self

import torch
from torch import Tensor

from quant import cpu
from quant.groups import check_group_size, check_groups, cut_inputs, half_scales, meant
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
    description="a byte a weight, one scale for a whole row or for a group of inputs",
    bits=8,
    head=True,
    group_sizes=(0, 32),
    calibrates=True,
    default_head="int8",
    published_bits=8,
)


class Int8(HeadScheme, IntegerScheme):
    """INT8 weights, symmetric: codes −127 … 127, scale = max|row| / 127 in float32.

    With `group_size` 32 a scale is float16 and belongs to a group of inputs, as in the Q8_0 of GGUF files (llama.cpp,
    ggml-quants.c). A file of others may hold the code −128, which counts like any other.

    On a CPU the kernels take int8 activations with one scale per row and 16 inputs, or per row and group, so that an
    outlier makes only its group less precise. Without the kernels torch's own product takes one scale per row, or
    floats where the weight has groups.
    """

    name = "int8"
    facts = FACTS
    ROW_GROUP = 16  # inputs that share an activation scale where the weight has one scale a row

    def __init__(self, group_size: int = FACTS.group_size) -> None:
        self.group_size = check_group_size(group_size, FACTS.group_sizes)

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls(group_size)

    @classmethod
    def kernels(cls) -> str:
        return cpu.describe()

    @property
    def code_range(self) -> tuple[int, int]:
        return -127, 127

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float16 if self.group_size else torch.float32

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features < 2:
            raise UsageError("int8 needs at least 2 input features")  # torch._int_mm is wrong for 1
        check_groups(self.group_size, in_features)
        groups = (out_features, in_features // self.group_size) if self.group_size else (out_features,)
        return {"weight": ((out_features, in_features), torch.int8), "weight_scale": (groups, self.scale_dtype)}

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        weight = finite(weight)
        if not self.group_size:
            return self.stored(*quantize_rows(weight, reduce_max))
        self.tensors(*weight.shape)
        scales = self.scales(weight)
        codes = (self._grouped(weight) / scales.float()[..., None]).round().clamp(*self.code_range)
        return self.stored(codes.to(torch.int8).flatten(1), scales)

    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        if self.group_size:
            return half_scales(self._grouped(weight), self.code_range)
        return quantize_rows(weight, reduce_max)[1]

    def stored(self, codes: Tensor, scales: Tensor) -> Tensors:
        return {"weight": codes, "weight_scale": scales if self.group_size else scales.squeeze(1)}

    def codes(self, weight: Tensor) -> Tensor:
        return weight

    def grouped_by(self, spans: list[int]) -> IntegerScheme | None:
        sizes = [size for size in FACTS.group_sizes if size and gcd(*spans) % size == 0]
        return Int8(max(sizes)) if sizes else None

    def dequantize(self, stored: Tensors) -> Tensor:
        return meant(stored["weight"], stored["weight_scale"].reshape(len(stored["weight"]), -1))

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        shape, dtype = self.tensors(out_features, in_features)["weight_scale"]
        codes = torch.randint(-119, 120, (out_features, in_features), dtype=torch.int8, generator=generator)
        return {"weight": codes, "weight_scale": torch.full(shape, SPREAD / 64, dtype=dtype)}

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        if dim == 0:
            return 0, start, length
        size = 1 if name == "weight" else self.group_size
        return cut_inputs(start, length, self.group_size or 1, size) if size else None

    def pack(self, stored: Tensors) -> Tensors:
        weight, scale = stored["weight"], stored["weight_scale"].to(self.scale_dtype)
        if weight.is_cuda or cpu.variant() is None:
            return {"weight": weight, "weight_scale": scale}
        tiled = tiles(weight, 8, round_up(weight.shape[1], self._activation_group))
        if self.group_size:
            return {"weight": tiled, "weight_scale": tiled_scale(scale)}
        return {"weight": tiled, "weight_scale": tiled_scale(scale[:, None]).flatten()}

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        if device != "cpu" or cpu.variant() is None:
            return num_bytes(self.tensors(out_features, in_features))
        inputs = round_up(in_features, self._activation_group)
        return round_up(out_features, TILE) * (inputs + (2 * inputs // self.group_size if self.group_size else 4))

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = int8_linear(flat, packed["weight"], packed["weight_scale"], bias, self._activation_group, out_features)
        return out.reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        weight, scale = packed["weight"], packed["weight_scale"]
        codes = untile(weight, 8, index)[..., :in_features] if weight.dim() == 4 else weight[index]
        if not self.group_size:
            return meant(codes, scale[index, None])
        return meant(codes, scale[index // TILE, :, index % TILE] if scale.dim() == 3 else scale[index])

    def activation_bits(self, device: str) -> int:
        return 8 if device == "cpu" else super().activation_bits(device)

    def activation_bytes(self, in_features: int, device: str) -> int:
        if device != "cpu":
            return 0
        wide = 2 * in_features if cpu.variant() == "avx2" else 0  # codes in 16 bits
        return code_bytes(in_features, self._activation_group) + wide

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        return copies_before_ampere(capability, rows)

    @property
    def _activation_group(self) -> int:
        return self.group_size or self.ROW_GROUP

    def _grouped(self, weight: Tensor) -> Tensor:
        """[out_features, in_features] → [out_features, groups, inputs a group]"""
        return weight.reshape(len(weight), -1, self.group_size)


SCHEME = Int8
