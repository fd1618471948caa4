"""INT4 weights, with one scale for a group of inputs or for a whole row."""

from collections.abc import Mapping
from math import gcd
from typing import Self

import torch
from torch import Tensor

from quant import cpu
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
    scale_dtype = torch.float16
    ROW_GROUP = 32  # inputs that share an activation scale where the weight has one scale a row

    def __init__(self, group_size: int = 32) -> None:
        if group_size not in FACTS.group_sizes:
            raise UsageError(f"group_size must be one of {', '.join(map(str, FACTS.group_sizes))} (0: whole rows)")
        self.group_size = group_size

    @classmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        return cls(group_size)

    @classmethod
    def kernels(cls) -> str:
        return cpu.describe()

    @property
    def code_range(self) -> tuple[int, int]:
        return (-8 if self.group_size else -7), 7

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features % 2:
            raise UsageError(f"int4 needs an even number of inputs, not {in_features}")
        if self.group_size and in_features % self.group_size:
            raise UsageError(f"group_size {self.group_size} does not divide the {in_features} inputs")
        groups = (out_features, in_features // self.group_size) if self.group_size else (out_features,)
        return {"weight": ((out_features, in_features // 2), torch.int8), "weight_scale": (groups, self.scale_dtype)}

    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        self.tensors(*weight.shape)
        weight = finite(weight)
        scales = self.scales(weight, reduce_max)
        codes = (self._grouped(weight) / scales.float()[..., None]).round().clamp(*self.code_range).to(torch.int8)
        return self.stored(codes.flatten(1), scales)

    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        """The smallest float16 scales [out_features, groups] whose codes reach both ends of a group; 1 for zeros.

        A scale is negative if the group has codes −8 … 7 and its largest number is positive. Raises UsageError for a
        weight too large for float16.
        """
        grouped, (lowest, highest) = self._grouped(weight), self.code_range
        ends = torch.stack([grouped.amax(-1), -grouped.amin(-1)])
        high, low = ends if self.group_size else reduce_max(ends)
        most = torch.maximum(torch.maximum(high, low) / -lowest, torch.minimum(high, low) / highest)
        if bool((most > torch.finfo(torch.float16).max).any()):
            raise UsageError("the weight is too large for float16 scales")
        steps = (most * 2.0**24).ceil()  # of these few of float16's smallest steps, rounding down would cut the largest
        most = torch.where(steps <= -lowest, steps * 2.0**-24, most)
        signed = torch.where((high > low) & (lowest != -highest), -most, most)
        return torch.where(most == 0, 1.0, signed).to(self.scale_dtype)

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
        return weight.view(len(weight), -1, self.group_size or weight.shape[1])

    def dequantize(self, stored: Tensors) -> Tensor:
        scale = stored["weight_scale"].float().reshape(len(stored["weight"]), -1)
        return (self._grouped(unpack_nibbles(stored["weight"]).float()) * scale[..., None]).flatten(1)

    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        if dim == 0:
            return 0, start, length
        size = 2 if name == "weight" else self.group_size
        if not size:
            return None
        whole = self.group_size or 2
        if start % whole or length % whole:
            raise UsageError(f"a cut of inputs at {start} + {length} goes through a group of {whole}")
        return 1, start // size, length // size

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
            own = scale[index].reshape(*index.shape, -1)
        else:
            codes = untile(weight, 4, index)[..., :in_features]
            own = scale[index // TILE, :, index % TILE] if self.group_size else scale[index, None]
        grouped = (
            codes.float().reshape(*index.shape, own.shape[-1], codes.shape[-1] // own.shape[-1])
            * own.float()[..., None]
        )
        return grouped.flatten(-2)

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
