"""Schemes: how a linear layer's weight is stored, and how rows are multiplied with it.

Every scheme keeps one promise for layers of 16 features and more: an output row depends on its own input row only,
bit for bit, however many rows share the call. A request then gets the same numbers alone and in a batch of 64. The two
of bitsandbytes are exempt: llm-int8 everywhere, nf4 on a GPU.

A weight passes through three forms: float [out_features, in_features]; *stored*, as a checkpoint file has it (`tensors`
tells names, shapes and dtypes); *packed*, as this machine's kernels read it.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quant import cpu
from quant.packing import TILE, pack_nibbles, tiled_scale, tiles, unpack_nibbles, untile

Tensors = dict[str, Tensor]
Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]
Cut = tuple[int, int, int]  # dim, start, length
Across = Callable[[Tensor], Tensor]  # the greatest, elementwise, of what all have who hold inputs of the same rows

# A BLAS picks another summation order below this many rows (a matrix-vector product at 1); from here on it
# was measured to give each row the same bits at every height.
_MIN_ROWS = 16


def itself(x: Tensor) -> Tensor:
    """`Across` for a weight with all its inputs."""
    return x


class Scheme(Protocol):
    """Storage and matrix product of one kind of weight."""

    name: str

    def tensors(self, out_features: int, in_features: int) -> Stored:
        """Name → (shape, dtype) of a stored weight. Raises ValueError for sizes that the scheme cannot hold."""

    def quantize(self, weight: Tensor, across: Across = itself) -> Tensors:
        """The stored form of a float weight. Raises ValueError for NaN, infinity or sizes that do not fit.

        Where the weight has only some inputs of its rows, `across` makes scales of whole rows those of the whole.
        """

    def dequantize(self, stored: Tensors) -> Tensor:
        """The float32 weight that the stored form stands for."""

    def narrow(self, name: str, dim: int, start: int, length: int) -> Cut | None:
        """How a stored tensor is cut when the weight is, None for not at all.

        dim 0 are outputs, 1 inputs. Raises ValueError for a cut through what is stored as one.
        """

    def pack(self, stored: Tensors) -> Tensors:
        """The packed form, on the device of the stored one."""

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        """x [..., in_features] → [..., out_features] in x's dtype."""


class Float:
    """The weight as it is."""

    name = "none"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def tensors(self, out_features: int, in_features: int) -> Stored:
        return {"weight": ((out_features, in_features), self.dtype)}

    def quantize(self, weight: Tensor, across: Across = itself) -> Tensors:
        return {"weight": _finite(weight, self.dtype)}

    def dequantize(self, stored: Tensors) -> Tensor:
        return stored["weight"].float()

    def narrow(self, name: str, dim: int, start: int, length: int) -> Cut | None:
        return dim, start, length

    def pack(self, stored: Tensors) -> Tensors:
        return stored

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        return linear(x, packed["weight"], bias)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        """Chosen rows of the weight, [..., in_features]."""
        return F.embedding(index, packed["weight"])


class Int8:
    """INT8 weights, one scale per output, symmetric: scale = max|row| / 127.

    On a CPU the kernels take int8 activations with one scale per row and 16 inputs (outliers in some inputs leave the
    others precise); without the kernels, torch's own product takes one scale per row.
    """

    name = "int8"
    GROUP = 16  # inputs that share an activation scale

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features < 2:
            raise ValueError("int8 needs at least 2 input features")  # torch._int_mm is wrong for 1
        return {
            "weight": ((out_features, in_features), torch.int8),
            "weight_scale": ((out_features,), torch.float32),
        }

    def quantize(self, weight: Tensor, across: Across = itself) -> Tensors:
        codes, scale = quantize_rows(_finite(weight), across)
        return {"weight": codes, "weight_scale": scale.squeeze(-1)}

    def dequantize(self, stored: Tensors) -> Tensor:
        return stored["weight"].float() * stored["weight_scale"][:, None]

    def narrow(self, name: str, dim: int, start: int, length: int) -> Cut | None:
        if name == "weight_scale":
            return None if dim == 1 else (0, start, length)
        return dim, start, length

    def pack(self, stored: Tensors) -> Tensors:
        weight, scale = stored["weight"], stored["weight_scale"].float()
        if weight.is_cuda or cpu.variant() is None:
            return {"weight": weight, "weight_scale": scale}
        inputs = _round_up(weight.shape[1], self.GROUP)
        return {"weight": tiles(weight, 8, inputs), "weight_scale": tiled_scale(scale[:, None]).flatten()}

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        weight, scale = packed["weight"], packed["weight_scale"]
        flat = x.reshape(-1, x.shape[-1])
        if x.is_cuda:
            from quant import gpu

            out = gpu.int8_linear(flat, weight, scale, bias)
        elif weight.dim() == 4:
            out = cpu.quantized_linear(flat.float(), self.GROUP, weight, scale, bias, 8, out_features)
        else:
            codes, row_scale = quantize_rows(flat.float())
            out = torch._int_mm(codes, weight.t()).float() * row_scale * scale
            out = out if bias is None else out + bias
        return out.to(x.dtype).reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        """Chosen rows of the weight, float32 [..., in_features]: an embedding that shares the head's weight."""
        weight, scale = packed["weight"], packed["weight_scale"]
        codes = untile(weight, 8, index)[..., :in_features] if weight.dim() == 4 else weight[index]
        return codes.float() * scale[index, None]


class Int4:
    """INT4 weights, one float16 scale for a group of inputs or for a whole row; two numbers a byte, element 2i in the
    high nibble.

    With `group_size` 0 exactly GLM-130B's and ChatGLM-6B's form (130B/quantization/layers.py): codes −7 … 7, scale =
    max|row| / 7. A group has codes −8 … 7 and a scale whose sign gives its larger side the code −8. On a CPU the
    kernels take int8 activations, one scale per row and group.
    """

    name = "int4"
    GROUPS = (0, 32, 64, 128)
    ROW_GROUP = 32  # inputs that share an activation scale where the weight has one scale a row

    def __init__(self, group_size: int = 32) -> None:
        if group_size not in self.GROUPS:
            raise ValueError(f"group_size must be one of {', '.join(map(str, self.GROUPS))} (0: whole rows)")
        self.group_size = group_size

    def tensors(self, out_features: int, in_features: int) -> Stored:
        if in_features % 2:
            raise ValueError(f"int4 needs an even number of inputs, not {in_features}")
        if self.group_size and in_features % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide the {in_features} inputs")
        groups = (out_features, in_features // self.group_size) if self.group_size else (out_features,)
        return {"weight": ((out_features, in_features // 2), torch.int8), "weight_scale": (groups, torch.float16)}

    def quantize(self, weight: Tensor, across: Across = itself) -> Tensors:
        self.tensors(*weight.shape)
        grouped = self.grouped(_finite(weight))
        scale = self.scale(grouped, itself if self.group_size else across)
        codes = (grouped / scale.float()[..., None]).round().clamp(*self.codes).to(torch.int8)
        return self.stored(codes.flatten(1), scale)

    def grouped(self, weight: Tensor) -> Tensor:
        """[out_features, in_features] → [out_features, groups, inputs a group]"""
        return weight.view(len(weight), -1, self.group_size or weight.shape[1])

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return (-8 if self.group_size else -7), 7

    def scale(self, grouped: Tensor, across: Across = itself) -> Tensor:
        """The least in float16 with which the codes reach both ends of a group, [out_features, groups]; 1 for zeros.

        Negative where a group has codes −8 … 7 and its largest number is positive. Raises ValueError for a weight too
        large for float16.
        """
        lowest, highest = self.codes
        high, low = across(torch.stack([grouped.amax(-1), -grouped.amin(-1)]))
        most = torch.maximum(torch.maximum(high, low) / -lowest, torch.minimum(high, low) / highest)
        if bool((most > torch.finfo(torch.float16).max).any()):
            raise ValueError("the weight is too large for float16 scales")
        steps = (most * 2.0**24).ceil()  # of these few of float16's smallest steps, rounding down would cut the largest
        most = torch.where(steps <= -lowest, steps * 2.0**-24, most)
        signed = torch.where((high > low) & (lowest != -highest), -most, most)
        return torch.where(most == 0, 1.0, signed).to(torch.float16)

    def stored(self, codes: Tensor, scale: Tensor) -> Tensors:
        """The stored form of codes int8 [out_features, in_features] with scales [out_features, groups]."""
        return {"weight": pack_nibbles(codes), "weight_scale": scale if self.group_size else scale.squeeze(1)}

    def dequantize(self, stored: Tensors) -> Tensor:
        scale = stored["weight_scale"].float().reshape(len(stored["weight"]), -1)
        return (self.grouped(unpack_nibbles(stored["weight"]).float()) * scale[..., None]).flatten(1)

    def narrow(self, name: str, dim: int, start: int, length: int) -> Cut | None:
        if dim == 0:
            return 0, start, length
        size = 2 if name == "weight" else self.group_size
        if not size:
            return None
        whole = self.group_size or 2
        if start % whole or length % whole:
            raise ValueError(f"a cut of inputs at {start} + {length} goes through a group of {whole}")
        return 1, start // size, length // size

    def pack(self, stored: Tensors) -> Tensors:
        weight, scale = stored["weight"], stored["weight_scale"]
        if weight.is_cuda:
            return stored
        if cpu.variant() is None:
            return _TorchInt4.pack(weight, scale)
        inputs = _round_up(weight.shape[1] * 2, self.group_size or self.ROW_GROUP)
        if self.group_size:
            return {"weight": tiles(weight, 4, inputs), "weight_scale": tiled_scale(scale)}
        return {"weight": tiles(weight, 4, inputs), "weight_scale": tiled_scale(scale.float()[:, None]).flatten()}

    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        weight, scale = packed["weight"], packed["weight_scale"]
        flat = x.reshape(-1, x.shape[-1])
        if x.is_cuda:
            from quant import gpu

            out = gpu.int4_linear(flat, weight, scale, bias)
        elif weight.dtype == torch.uint8 and weight.dim() == 4:
            group = self.group_size or self.ROW_GROUP
            out = cpu.quantized_linear(flat.float(), group, weight, scale, bias, 4, out_features)
        else:
            out = _TorchInt4.matmul(flat.float(), weight, scale, bias, out_features)
        return out.to(x.dtype).reshape(*x.shape[:-1], out_features)

    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        """Chosen rows of the weight, float32 [..., in_features]: an embedding that shares the head's weight."""
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


Head = Float | Int8 | Int4  # what an embedding can be stored by: its rows are readable one by one
HEADS = ("none", "int8", "int4")  # their names


def build(name: str, dtype: torch.dtype = torch.float32, group_size: int = 32) -> Scheme:
    """The scheme of a name on the command line. Raises ValueError for what it does not have."""
    match name:
        case "none":
            return Float(dtype)
        case "int8":
            return Int8()
        case "int4":
            return Int4(group_size)
        case "nf4":
            from quant.bnb import Nf4  # needs an optional dependency

            return Nf4()
        case "llm-int8":
            from quant.bnb import LlmInt8

            return LlmInt8()
        case _:
            raise ValueError(f"no such scheme: {name}")


def build_head(name: str, dtype: torch.dtype, device: str) -> Head:
    """The scheme of the embedding and head. Raises ValueError where the machine cannot read its rows."""
    if name not in HEADS:
        raise ValueError(f"no such scheme for the embedding: {name}")
    if name == "int4" and device == "cpu" and cpu.variant() is None:
        raise ValueError("an int4 embedding needs the CPU kernels, which this machine does not have")
    scheme = build(name, dtype)
    assert isinstance(scheme, Head)
    return scheme


def quantize_rows(x: Tensor, across: Across = itself) -> tuple[Tensor, Tensor]:
    """x [rows, n] float32 → int8 codes [rows, n] and scales [rows, 1], symmetric absmax; a zero row has scale 1."""
    scale = across(x.abs().amax(-1, keepdim=True)) / 127
    scale = torch.where(scale == 0, 1.0, scale.clamp(min=torch.finfo(torch.float32).tiny))
    return (x / scale).round().to(torch.int8), scale


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., n] · weightᵀ [n, m] + bias, row by row independent of the number of rows."""
    rows = x.numel() // x.shape[-1]
    if rows >= _MIN_ROWS:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, _MIN_ROWS - rows))
    return F.linear(padded, weight, bias)[:rows].reshape(*x.shape[:-1], len(weight))


def _finite(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """In dtype. Raises ValueError for NaN and infinity, also those of a dtype that is too narrow."""
    weight = weight.to(dtype)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinity")
    return weight


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class _TorchInt4:
    """torch's own int4 product for a CPU without our kernels: float activations, groups of 32 inputs and more."""

    GROUP = 32

    @classmethod
    def pack(cls, weight: Tensor, scale: Tensor) -> Tensors:
        codes = unpack_nibbles(weight)
        outputs, inputs = codes.shape
        scale = scale.float().reshape(outputs, -1)
        group = inputs // scale.shape[1] if scale.shape[1] > 1 or inputs in (32, 64, 128) else cls.GROUP
        padded = F.pad(codes, (0, -inputs % group, 0, -outputs % TILE))
        scale = F.pad(scale.expand(-1, padded.shape[1] // group), (0, 0, 0, -outputs % TILE))
        pairs = torch.stack([scale.t(), torch.zeros_like(scale.t())], dim=-1).contiguous()
        return {"weight": torch._convert_weight_to_int4pack_for_cpu(padded.int() + 8, 1), "weight_scale": pairs}

    @staticmethod
    def matmul(x: Tensor, weight: Tensor, pairs: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
        inputs = weight.shape[1] * 2
        if not 0 <= inputs - x.shape[1] < inputs // len(pairs):
            raise ValueError(f"{x.shape[1]} inputs for a weight of {inputs}")
        padded = F.pad(x, (0, inputs - x.shape[1])).contiguous()
        out = torch._weight_int4pack_mm_for_cpu(padded, weight, inputs // len(pairs), pairs)[:, :out_features]
        return out if bias is None else out + bias
