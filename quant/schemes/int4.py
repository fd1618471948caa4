"""INT4 weights, with one scale for a group of inputs or for a whole row."""

from collections.abc import Mapping
from math import gcd
from typing import Self

import torch
from torch import Tensor

from quant import cpu
from quant.groups import check_group_size, check_groups, cut_inputs, half_scales, meant
from quant.operators.int4_linear import int4_linear, torch_packed, torch_packed_row_bytes
from quant.packing import TILE, code_bytes, pack_nibbles, tiled_scale, tiles, unpack_nibbles, untile
from quant.rows import finite, round_up
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
    description="half a byte a weight, one scale for a group of inputs or for a whole row",
    bits=4,
    head=True,
    group_sizes=(0, 32, 64, 128),
    group_size=32,
    calibrates=True,
    default_head="int8",
    published_bits=4,
)


class Int4(HeadScheme, IntegerScheme):
    """INT4 weights with one float16 scale for a group of inputs or for a whole row.

    A byte holds two numbers, element 2i in the high nibble. With `group_size` 0 this is the form of GLM-130B and
    ChatGLM-6B (GLM-130B, quantization/layers.py): codes −7 … 7, scale = max|row| / 7. A group has codes −8 … 7; the
    sign of its scale gives the code −8 to its larger side. On a CPU the kernels take int8 activations, with one scale
    per row and group.
    """

    name = "int4"
    facts = FACTS
    ROW_GROUP = 32  # inputs that share an activation scale where the weight has one scale a row

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
        return (-8 if self.group_size else -7), 7

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float16

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features % 2:
            raise UsageError(f"int4 needs an even number of inputs, not {in_features}")
        check_groups(self.group_size, in_features)
        groups = (out_features, in_features // self.group_size) if self.group_size else (out_features,)
        return {"weight": ((out_features, in_features // 2), torch.int8), "weight_scale": (groups, self.scale_dtype)}

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        self.tensors(*weight.shape)
        weight = finite(weight)
        scales = self.scales(weight, reduce_max)
        codes = (self._grouped(weight) / scales.float()[..., None]).round().clamp(*self.code_range).to(torch.int8)
        return self.stored(codes.flatten(1), scales)

    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        return half_scales(self._grouped(weight), self.code_range, identity if self.group_size else reduce_max)

    def stored(self, codes: Tensor, scales: Tensor) -> Tensors:
        return {"weight": pack_nibbles(codes), "weight_scale": scales if self.group_size else scales.squeeze(1)}

    def codes(self, weight: Tensor) -> Tensor:
        return unpack_nibbles(weight)

    def grouped_by(self, spans: list[int]) -> IntegerScheme | None:
        sizes = [size for size in FACTS.group_sizes if size and gcd(*spans) % size == 0]
        return Int4(max(sizes)) if sizes else None

    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        shapes = {name: shape for name, (shape, _) in self.tensors(out_features, in_features).items()}
        return {
            "weight": torch.randint(-119, 120, shapes["weight"], dtype=torch.int8, generator=generator),
            "weight_scale": torch.full(shapes["weight_scale"], SPREAD / 4, dtype=torch.float16),
        }

    def _grouped(self, weight: Tensor) -> Tensor:
        """[out_features, in_features] → [out_features, groups, inputs a group]"""
        return weight.reshape(len(weight), -1, self.group_size or weight.shape[1])

    def dequantize(self, stored: Tensors) -> Tensor:
        return meant(unpack_nibbles(stored["weight"]), stored["weight_scale"].reshape(len(stored["weight"]), -1))

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        if dim == 0:
            return 0, start, length
        size = 2 if name == "weight" else self.group_size
        return cut_inputs(start, length, self.group_size or 2, size) if size else None

    def pack(self, stored: Tensors) -> Tensors:
        weight, scale = stored["weight"], stored["weight_scale"]
        if weight.is_cuda:
            return stored
        if cpu.variant() is None:
            codes, pairs = torch_packed(weight, scale)
            return {"weight": codes, "weight_scale": pairs}
        inputs = round_up(weight.shape[1] * 2, self.group_size or self.ROW_GROUP)
        if self.group_size:
            return {"weight": tiles(weight, 4, inputs), "weight_scale": tiled_scale(scale)}
        return {"weight": tiles(weight, 4, inputs), "weight_scale": tiled_scale(scale.float()[:, None]).flatten()}

    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        if device != "cpu":
            return num_bytes(self.tensors(out_features, in_features))
        outputs = round_up(out_features, TILE)
        if cpu.variant() is None:
            return outputs * torch_packed_row_bytes(in_features, self.group_size)
        inputs = round_up(in_features, self.group_size or self.ROW_GROUP)
        return outputs * (inputs // 2 + (2 * inputs // self.group_size if self.group_size else 4))

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        group = self.group_size or self.ROW_GROUP
        out = int4_linear(flat, packed["weight"], packed["weight_scale"], bias, group, out_features)
        return out.reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        weight, scale = packed["weight"], packed["weight_scale"]
        if weight.dim() == 2 and weight.dtype == torch.int8:  # as stored, on a GPU
            codes = unpack_nibbles(weight[index].reshape(-1, weight.shape[1])).reshape(*index.shape, -1)
            return meant(codes, scale[index].reshape(*index.shape, -1))
        own = scale[index // TILE, :, index % TILE] if self.group_size else scale[index, None]
        return meant(untile(weight, 4, index)[..., :in_features], own)

    def check_head(self, device: str) -> None:
        if device == "cpu" and cpu.variant() is None:
            raise UsageError("an int4 embedding needs the CPU kernels, which this machine does not have")

    def activation_bits(self, device: str) -> int:
        return 8 if device == "cpu" else super().activation_bits(device)

    def activation_bytes(self, in_features: int, device: str) -> int:
        return code_bytes(in_features, self.group_size or self.ROW_GROUP) if device == "cpu" else 0

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        return copies_before_ampere(capability, rows)


SCHEME = Int4
