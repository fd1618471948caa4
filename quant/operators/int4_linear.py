"""The product with a weight in int4, one scale for a group of inputs or for a whole row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant.operator import operator
from quant.operators.tiled import tiled_linear
from quant.packing import TILE, unpack_nibbles

GROUP = 32  # inputs that share a scale in torch's packing of a weight with one scale a row


def torch_packed(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Packs a stored weight [outputs, inputs / 2] and its scales for torch's own int4 product on a CPU.

    Returns that product's codes, in torch's own layout, and its scales and zero points [groups, outputs, 2].
    """
    codes = unpack_nibbles(weight)
    outputs, inputs = codes.shape
    scale = scale.float().reshape(outputs, -1)
    group = inputs // scale.shape[1] if scale.shape[1] > 1 or inputs in (32, 64, 128) else GROUP
    padded = F.pad(codes, (0, -inputs % group, 0, -outputs % TILE))
    scale = F.pad(scale.expand(-1, padded.shape[1] // group), (0, 0, 0, -outputs % TILE))
    pairs = torch.stack([scale.t(), torch.zeros_like(scale.t())], dim=-1).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(padded.int() + 8, 1), pairs


def torch_packed_row_bytes(inputs: int, group_size: int) -> int:
    """Bytes of one output in the form of `torch_packed`: its codes, and two float32 per group."""
    group = group_size or (inputs if inputs in (32, 64, 128) else GROUP)
    groups = -(-inputs // group)
    return groups * (group // 2 + 8)


def _plain(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    inputs = weight.shape[1] * 2
    if not 0 <= inputs - x.shape[1] < inputs // len(weight_scale):
        raise ValueError(f"{x.shape[1]} inputs for a weight of {inputs}")
    padded = F.pad(x.float(), (0, inputs - x.shape[1])).contiguous()
    out = torch._weight_int4pack_mm_for_cpu(padded, weight, inputs // len(weight_scale), weight_scale)[:, :outputs]
    return (out if bias is None else out + bias).to(x.dtype)


def _cpu(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    if weight.dim() != 4:
        return _plain(x, weight, weight_scale, bias, group, outputs)
    return tiled_linear(x.float(), group, weight, weight_scale, bias, 4, outputs).to(x.dtype)


def _cuda(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    from quant import gpu  # Triton takes seconds to import

    return gpu.int4_linear(x, weight, weight_scale, bias)


def _fake(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, group: int, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


int4_linear = operator("int4_linear", _plain, _fake, _cpu, _cuda)
"""x [rows, inputs] → [rows, outputs] in x's dtype.

`weight` is packed: the CPU kernels' tiles, with one activation scale per `group` inputs; on a GPU the stored form;
otherwise, with `weight_scale`, the result of `torch_packed`. `bias` is [outputs]. Raises ValueError for a number of
inputs that is not the weight's.
"""
