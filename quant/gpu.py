"""The GPU kernels, in Triton: rows of floats times int4 or int8 weights, which become floats in registers only.

One kernel has two shapes. Up to 16 rows, where reading the weight takes all the time, several programs share the inputs
of an output, and a second kernel adds their parts. Above 16 rows, one program adds all parts of its tile. Both cut the
inputs in the same way, by the weight's sizes alone, and add in one order without atomics, so that a row's numbers
should not depend on the number of rows in the call. (Tiles have at most 32 rows also because Hopper has another matrix
instruction from 64 on.)

Before Ampere (an RTX 2080 Ti), Triton's `tl.dot` has not used tensor cores since version 3.3. Ordinary units compute up
to 64 rows; for more rows cuBLAS multiplies by floats of 1024 outputs at a time, and the last bits of these rows differ.
The tiles follow from the compiler's report of registers and shared memory, not from timings.

With TRITON_INTERPRET=1 in the environment before the import of this module, the kernels run on CPU tensors.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from quant.packing import unpack_nibbles
from quant.tensor_cores import AMPERE, COPIED_OUTPUTS, ORDINARY_ROWS

NARROW = 16  # rows up to which programs share the inputs; tensor cores take as many at once
_PROGRAMS = (
    256  # programs that keep a card reading: about three on each of 68 (RTX 2080 Ti) or 82 (3090) multiprocessors
)
_STEPS = 8  # the fewest steps along the inputs that are worth a program of their own


def int4_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in] float16 or bfloat16 → [rows, out] in x's dtype, summed in float32.

    `weight` int8 [out, in/2], two numbers −8 … 7 a byte, element 2i in the high nibble; `weight_scale` [out, groups]
    for groups of 32, 64 or 128 inputs, or [out] for one scale a row; `bias` [out].
    """
    return _linear(x, weight, weight_scale, bias, 4)


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Like `int4_linear`, for `weight` int8 [out, in] and `weight_scale` [out, groups] of 32 inputs, or [out]."""
    return _linear(x, weight, weight_scale, bias, 8)


def has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton reaches tensor cores on the device. True in Triton's interpreter."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (AMPERE, 0)


@dataclass(frozen=True, slots=True)
class Tile:
    """The rows and outputs that one program computes, and its compiler options."""

    rows: int
    outputs: int
    warps: int
    stages: int


def tile(rows: int, tensor_cores: bool) -> Tile:
    """The tile for a number of rows. It spills no registers and fits the shared memory (checked by
    tests/quant/test_gpu.py)."""
    if rows > NARROW:
        return Tile(32, 128, 8, 3)
    return Tile(NARROW, 64, 4, 4) if tensor_cores else Tile(triton.next_power_of_2(rows), 128, 4, 2)


def block(group: int, tensor_cores: bool) -> int:
    """Bytes of a weight row in one step, whatever the number of rows. `group` is bytes in a group, 0 for whole rows."""
    return min(group or 64, 64 if tensor_cores else 16)


def part_steps(outputs: int, blocks: int, tensor_cores: bool) -> int:
    """Steps in one part. A tile of rows runs `_PROGRAMS` programs if each of them then has at least `_STEPS` steps."""
    tiles = triton.cdiv(outputs, tile(1, tensor_cores).outputs)
    parts = max(1, min(triton.cdiv(_PROGRAMS, tiles), blocks // _STEPS))
    return int(triton.cdiv(blocks, parts))


@triton.jit  # type: ignore[untyped-decorator]
def _floats(codes: tl.tensor, offset: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """uint8 codes → codes − offset, exactly.

    In float16 a code is written into the fraction of 1024, since conversion instructions are slow.
    """
    if DTYPE == tl.float16:  # noqa: SIM300 - not a constant
        return (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + offset)
    else:
        return (codes.to(tl.float32) - offset).to(DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _store(
    total: tl.tensor,
    at: tl.tensor,
    known: tl.tensor,
    output: tl.tensor,
    outputs: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    GROUP: tl.constexpr,
) -> None:
    """total · scale + bias → `at`, rounded once. Groups have had their scales."""
    factor = tl.full(output.shape, 1.0, tl.float32)
    offset = tl.zeros(output.shape, tl.float32)
    if GROUP == 0:
        factor = tl.load(scale + output, mask=output < outputs, other=0.0).to(tl.float32)
    if bias is not None:
        offset = tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)
    tl.store(at, tl.fma(total, factor[None, :], offset[None, :]).to(at.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["rows", "splits", "steps"])  # type: ignore[untyped-decorator]
def products(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    width: tl.tensor,
    splits: tl.tensor,
    steps: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A tile [ROWS, OUTPUTS] of out [rows, outputs]; with PARTS one part of its sums, to out [splits, rows, outputs].

    A byte of weight [outputs, width] faces an element of x [rows, width]: an int8 code a DTYPE, two int4 codes an int32
    that is two of DTYPE, the first in its low half. So nothing is interleaved: one product takes the high nibbles and
    the even inputs, another the low nibbles and the odd ones. A part is `steps` times BLOCK columns. GROUP columns
    share a scale, 0 for whole rows.
    """
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    known = (row[:, None] < rows) & (output[None, :] < outputs)
    x_rows = x + row[:, None].to(tl.int64) * width
    weight_rows = weight + output[None, :].to(tl.int64) * width
    scale_rows = scale + output.to(tl.int64) * (width // GROUP if GROUP else 1)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for split in range(tl.program_id(2), splits, tl.num_programs(2)):
        part = tl.zeros((ROWS, OUTPUTS), tl.float32)
        for step in range(split * steps, tl.minimum(split * steps + steps, tl.cdiv(width, BLOCK))):
            column = step * BLOCK + tl.arange(0, BLOCK)
            inputs = tl.load(x_rows + column[None, :], mask=(row[:, None] < rows) & (column[None, :] < width), other=0)
            codes = tl.load(
                weight_rows + column[:, None], mask=(column[:, None] < width) & (output[None, :] < outputs), other=0
            )
            sums = tl.zeros((ROWS, OUTPUTS), tl.float32) if GROUP else part
            if BITS == 4:
                codes ^= 0x88
                even = inputs.to(tl.int16).to(DTYPE, bitcast=True)
                odd = (inputs >> 16).to(tl.int16).to(DTYPE, bitcast=True)
                sums = tl.dot(even, _floats(codes >> 4, 8, DTYPE), sums)
                sums = tl.dot(odd, _floats(codes & 15, 8, DTYPE), sums)
            else:
                sums = tl.dot(inputs, _floats(codes ^ 0x80, 128, DTYPE), sums)
            if GROUP:
                factor = tl.load(scale_rows + step * BLOCK // GROUP, mask=output < outputs, other=0.0)
                part = tl.fma(sums, factor.to(tl.float32)[None, :], part)
            else:
                part = sums
        total += part
    at = out + row[:, None].to(tl.int64) * outputs + output[None, :]
    if PARTS:
        tl.store(at + tl.program_id(2) * rows * outputs, total, mask=known)
    else:
        _store(total, at, known, output, outputs, scale, bias, GROUP)


@triton.jit(do_not_specialize=["rows", "splits"])  # type: ignore[untyped-decorator]
def sum_parts(
    parts: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> None:
    """Sums parts [splits, rows, outputs] to out [rows, outputs], in the same order as `products`."""
    row = tl.program_id(1) + tl.arange(0, 1)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = output[None, :] < outputs
    at = row[:, None] * outputs + output[None, :]
    sums = tl.zeros((1, OUTPUTS), tl.float32)
    for split in range(splits):
        sums += tl.load(parts + split * rows * outputs + at, mask=known, other=0.0)
    _store(sums, out + at, known, output, outputs, scale, bias, GROUP)


def _linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"the GPU kernels take float16 or bfloat16, not {x.dtype}")
    rows, outputs, width = len(x), *weight.shape
    tensor_cores = has_tensor_cores(x.device)
    if not tensor_cores and rows > ORDINARY_ROWS:
        return chunked(x, weight, scale, bias, bits)
    out = x.new_empty((x.shape[0], weight.shape[0]))
    if not rows:
        return out
    group = width // scale.shape[1] if scale.dim() == 2 else 0
    shape, columns = tile(rows, tensor_cores), block(group, tensor_cores)
    blocks = triton.cdiv(width, columns)
    length = part_steps(outputs, blocks, tensor_cores)
    count = triton.cdiv(blocks, length)
    apart = rows <= NARROW and count > 1
    parts = x.new_empty((count, rows, outputs), dtype=torch.float32) if apart else out
    tiles = triton.cdiv(outputs, shape.outputs)
    x, weight, scale = x.contiguous(), weight.contiguous(), scale.contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        products[tiles, triton.cdiv(rows, shape.rows), count if apart else 1](
            x.view(torch.int32) if bits == 4 else x, weight.view(torch.uint8), scale, bias, parts,
            rows, outputs, width, count, length,
            BITS=bits, GROUP=group, PARTS=apart, DTYPE=tl.float16 if x.dtype == torch.float16 else tl.bfloat16,
            ROWS=shape.rows, OUTPUTS=shape.outputs, BLOCK=columns,
            num_warps=shape.warps, num_stages=shape.stages, enable_fp_fusion=True,
        )  # fmt: skip
        if apart:
            sum_parts[tiles, rows](
                parts, scale, bias, out, rows, outputs, count,
                GROUP=group, OUTPUTS=shape.outputs, num_warps=shape.warps, enable_fp_fusion=True,
            )  # fmt: skip
    return out


def chunked(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """The same product by cuBLAS: x [rows, in] → [rows, out].

    It makes floats of `COPIED_OUTPUTS` outputs at a time, never of the whole weight.
    """
    out = x.new_empty((x.shape[0], weight.shape[0]))
    for first in range(0, len(weight), COPIED_OUTPUTS):
        some = slice(first, first + COPIED_OUTPUTS)
        codes = unpack_nibbles(weight[some]) if bits == 4 else weight[some]
        factors = scale[some].float().reshape(len(codes), -1, 1)
        floats = (codes.reshape(len(codes), factors.shape[1], -1) * factors).flatten(1).to(x.dtype)
        out[:, some] = F.linear(x, floats, None if bias is None else bias[some].to(x.dtype))
    return out
