"""The CPU kernels: loading the library, choosing a variant, and its operators for torch.

`quant/cpu_kernels.cpp` is an optional part of the build. Its OpenMP symbols are unresolved until torch has loaded its
own runtime, so that both share one pool of threads: two pools on the same cores would fight.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quant.packing import TILE

VARIANTS = ("portable", "avx2", "avx-vnni", "avx512-vnni")  # by their numbers in cpu_kernels.cpp
CHOICE = "GLM_INFILL_CPU_KERNEL"

Draw = Callable[[NDArray[np.float32], float, int, float, float, int], int]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""

    def supported(self) -> list[str]:
        """Variants that this machine can run, the fastest last."""
        if self.library is None:
            return []
        return [name for number, name in enumerate(VARIANTS) if self.library.glm_infill_supports(number)]


@cache
def kernels() -> Kernels:
    """Loads the library that the package's build made."""
    spec = importlib.util.find_spec("quant._cpu")
    if spec is None or spec.origin is None:
        return Kernels(None, "built without a C++ compiler")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        return Kernels(None, str(error).splitlines()[0])
    pointer, i64, i32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.glm_infill_linear.argtypes = [
        i32, i32, i32, pointer, i64, pointer, pointer, pointer, i64, i64, i64, i32, pointer, pointer, pointer, pointer,
        i64, i32,
    ]  # fmt: skip
    library.glm_infill_attention.argtypes = [i32, *[pointer] * 8, *[i64] * 6, i32]
    library.glm_infill_low_rank.argtypes = [i32, *[pointer] * 7, *[i64] * 6, i32]
    library.glm_infill_gelu.argtypes = [i32, pointer, pointer, i64, i32]
    library.glm_infill_draw.argtypes = [
        i32, pointer, pointer, i64, ctypes.c_float, i64, ctypes.c_double, ctypes.c_double, ctypes.c_uint64,
    ]  # fmt: skip
    library.glm_infill_draw.restype = i64
    for function in ("linear", "gelu"):
        getattr(library, f"glm_infill_{function}").restype = None
    return Kernels(library)


def variant() -> str | None:
    """The variant in use: the fastest, or the one that GLM_INFILL_CPU_KERNEL names; None for torch's own kernels.

    Raises ValueError for a name that is unknown or that this machine cannot run.
    """
    return _chosen(os.environ.get(CHOICE))


@cache
def _chosen(asked: str | None) -> str | None:
    supported = kernels().supported()
    if not asked:
        return supported[-1] if supported else None
    if asked == "torch":
        return None
    if asked not in supported:
        raise ValueError(f"{CHOICE}={asked}: this machine has {', '.join([*supported, 'torch'])}")
    return asked


def describe() -> str:
    """One line for people: which path serves quantized weights, and why."""
    chosen = variant()
    if chosen is not None:
        return f"{chosen} kernels"
    reason = kernels().reason or f"{CHOICE}=torch"
    return f"torch's own kernels, slower ({reason})"


@dataclass(frozen=True, slots=True)
class Rows:
    """Input rows quantized once for all layers that share them.

    `codes` int8 [rows, inputs], `scales` float32 [rows, groups], `starts` int32 [rows, groups]: minus the weights'
    offset times the sum of a group's codes, from which the kernels' sums begin.
    """

    codes: Tensor
    scales: Tensor
    starts: Tensor


_library = torch.library.Library("glm_infill", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    "quantize_rows(Tensor x, int bits, int group) -> (Tensor, Tensor, Tensor)",
    "rows_linear(Tensor codes, Tensor scales, Tensor starts, Tensor weight, Tensor weight_scale, Tensor? bias, "
    "int bits, int outputs) -> Tensor",
    "quantized_linear(Tensor x, int group, Tensor weight, Tensor weight_scale, Tensor? bias, int bits, int outputs) "
    "-> Tensor",
    "attention(Tensor query, Tensor keys, Tensor values, Tensor rows, Tensor blocks, int block_size, "
    "Tensor? key_scales=None, Tensor? value_scales=None) -> Tensor",
    "add_low_rank(Tensor(a!) out, Tensor x, Tensor entries, Tensor[] down, Tensor[] up, int[] first) -> ()",
    "gelu(Tensor x) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def quantize_rows(x: Tensor, bits: int, group: int) -> Rows:
    """x float32 [rows, features] → int8 codes with one scale per row and `group` inputs, absmax / 127.

    Rounds to the nearest even; a group with NaN or infinity has the scale NaN. Features are filled up to whole groups.
    `bits` are those of the weights to come.
    """
    return Rows(*torch.ops.glm_infill.quantize_rows(x, bits, group))


def quantized_linear(
    x: Tensor | Rows, group: int, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, bits: int, outputs: int
) -> Tensor:
    """float32 [rows, outputs] from x float32 [rows, features], or from rows quantized before, and tiles
    (`quant.packing`).

    `weight_scale` is float16 [tiles, groups, 16], or float32 [tiles × 16] for one scale per output.
    """
    out: Tensor
    if isinstance(x, Rows):
        out = torch.ops.glm_infill.rows_linear(x.codes, x.scales, x.starts, weight, weight_scale, bias, bits, outputs)
    else:
        out = torch.ops.glm_infill.quantized_linear(x, group, weight, weight_scale, bias, bits, outputs)
    return out


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention of single rows over cache blocks, float32; a row's bits are its own.

    query [rows, heads, head_dim]; keys and values [slots, heads, head_dim], float32 or, with scales float32
    [slots, heads] (`quant.vectors`), int8; `rows` int64 [rows, 4]: where a row's blocks begin in `blocks`, and the
    slots it sees, 0 … context − 1 and first … last; slot i lies in block i // block_size.
    Raises IndexError for a row that sees nothing, or what its blocks or the cache do not have.
    """
    out: Tensor = torch.ops.glm_infill.attention(
        query, keys, values, rows, blocks, block_size, key_scales, value_scales
    )
    return out


def add_low_rank(
    out: Tensor, x: Tensor, entries: Tensor, down: Sequence[Tensor], up: Sequence[Tensor], first: Sequence[int]
) -> None:
    """Adds low-rank products to some rows, float32: out[row, first:] += x[row] · downᵀ · up; a row's bits are its own.

    out [rows, outputs], x [rows, inputs]; `entries` int64 [entries, 2]: a row and its piece, entries of one piece best
    behind each other, and those of one row with outputs apart; of each piece down [rank, inputs], up [rank, width] and
    its first output. Raises ValueError for other shapes, IndexError for rows, pieces or outputs that are not there.
    """
    torch.ops.glm_infill.add_low_rank(out, x, entries, down, up, first)


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, float32, each element by the same instructions wherever it lies."""
    out: Tensor = torch.ops.glm_infill.gelu(x)
    return out


def drawing(bar: NDArray[np.float32]) -> Draw | None:
    """How to draw an index from a row of scores float32 [count], to which `bar` [count] is added; None where there are
    no kernels: `draw(scores, sharpness, limit, top_p, min_p, state)`.

    Weights are exp(sharpness · score). An index stays if fewer than `limit` come before it, by weight and then by
    number, if they hold less than `top_p` of all, and if it has at least `min_p` of the best one's weight. `state` is
    where the random numbers begin, which are splitmix64's.
    """
    name, library = variant(), kernels().library
    if library is None or name is None:
        return None
    function, number = library.glm_infill_draw, VARIANTS.index(name)
    at = bar.ctypes.data

    def draw(scores: NDArray[np.float32], sharpness: float, limit: int, top_p: float, min_p: float, state: int) -> int:
        scores = np.ascontiguousarray(scores)
        if scores.shape != bar.shape:
            raise ValueError(f"a row of {scores.shape} scores for {bar.shape}")
        found: int = function(number, scores.ctypes.data, at, len(bar), sharpness, limit, top_p, min_p, state)
        return found

    return draw


def _call(function: str, *arguments: object) -> object:
    """Runs a function of the library, gives what it returns; tensors go as pointers."""
    name = variant()
    library = kernels().library
    if library is None or name is None:
        raise RuntimeError("the CPU kernels are not in use on this machine")
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    return getattr(library, f"glm_infill_{function}")(VARIANTS.index(name), *values, torch.get_num_threads())


def _quantize_rows(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    rows = _like_quantized(x, bits, group)
    _call("linear", bits, False, x, x.shape[1], *rows, *_sizes(rows[0], rows[1]), None, None, None, None, 0)
    return rows


def _like_quantized(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, groups = x.shape[0], -(-x.shape[1] // group)
    return (
        x.new_empty((rows, groups * group), dtype=torch.int8),
        x.new_empty((rows, groups), dtype=torch.float32),
        x.new_empty((rows, groups), dtype=torch.int32),
    )


def _sizes(codes: Tensor, scales: Tensor) -> tuple[int, int, int, int]:
    """rows, inputs, groups, inputs a group"""
    rows, inputs = codes.shape
    groups = scales.shape[1]
    return rows, inputs, groups, inputs // groups


def _rows_linear(
    codes: Tensor,
    scales: Tensor,
    starts: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    bits: int,
    outputs: int,
) -> Tensor:
    return _product(None, (codes, scales, starts), weight, weight_scale, bias, bits, outputs)


def _like_rows_product(
    codes: Tensor,
    scales: Tensor,
    starts: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    bits: int,
    outputs: int,
) -> Tensor:
    return scales.new_empty((codes.shape[0], outputs))


def _quantized_linear(
    x: Tensor, group: int, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, bits: int, outputs: int
) -> Tensor:
    x = x.contiguous()
    return _product(x, _like_quantized(x, bits, group), weight, weight_scale, bias, bits, outputs)


def _product(
    x: Tensor | None,
    rows: tuple[Tensor, Tensor, Tensor],
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    bits: int,
    outputs: int,
) -> Tensor:
    """The product of `rows`, which the library first makes of x unless that is None.

    Raises ValueError for inputs or outputs that the weight does not have.
    """
    codes, scales, _ = rows
    inputs, most = weight.shape[1] * (8 if bits == 4 else 4), len(weight) * TILE
    if codes.shape[1] != inputs or outputs > most:
        raise ValueError(f"{codes.shape[1]} inputs and {outputs} outputs for a weight of {inputs} and {most}")
    bias = None if bias is None else bias.float().contiguous()
    out = scales.new_empty((len(codes), outputs))
    _call(
        "linear", bits, weight_scale.dim() == 3, x, 0 if x is None else x.shape[1], *rows, *_sizes(codes, scales),
        weight, weight_scale, bias, out, outputs,
    )  # fmt: skip
    return out


def _like_product(
    x: Tensor, group: int, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, bits: int, outputs: int
) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


def _attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    query, shape = query.contiguous(), (len(keys), *query.shape[1:])
    scales = [s for s in (key_scales, value_scales) if s is not None]
    for name, given, dtype, wanted in (
        ("keys and values", (keys, values), torch.int8 if scales else torch.float32, shape),
        ("their scales", scales, torch.float32, shape[:2]),
        ("rows", (rows,), torch.int64, (len(query), 4)),
        ("blocks", (blocks,), torch.int64, (len(blocks),)),
    ):
        if any(t.dtype != dtype or t.shape != wanted or not t.is_contiguous() for t in given) or len(scales) == 1:
            raise ValueError(f"attention takes {name} as {dtype} {list(wanted)} without gaps")
    out = torch.empty_like(query)
    slots = (*query.shape, block_size, len(blocks), len(keys))
    if not _call("attention", query, keys, values, key_scales, value_scales, out, rows, blocks, *slots):
        raise IndexError("a row of attention sees nothing, or slots outside its blocks or the cache")
    return out


def _like_query(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    blocks: Tensor,
    block_size: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _add_low_rank(
    out: Tensor, x: Tensor, entries: Tensor, down: list[Tensor], up: list[Tensor], first: list[int]
) -> None:
    x, inputs = x.contiguous(), x.shape[1]
    floats = (out, *down, *up)
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in floats) or x.dtype != torch.float32:
        raise ValueError("low-rank products take float32 without gaps")
    if len(out) != len(x) or any(d.shape != (len(u), inputs) for d, u in zip(down, up, strict=True)):
        raise ValueError(f"low-rank products of {list(x.shape)} inputs do not fit")
    if entries.dtype != torch.int64 or entries.shape != (len(entries), 2) or not entries.is_contiguous():
        raise ValueError("entries are int64 [entries, 2] without gaps")
    pieces = torch.tensor([(*u.shape[:1], start, u.shape[1]) for u, start in zip(up, first, strict=True)])
    stride = max((len(u) for u in up), default=0)
    hidden = x.new_empty((len(entries), stride))
    addresses = [(ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors)) for tensors in (down, up)]
    sizes = (*x.shape, out.shape[1], len(entries), len(up), stride)
    if not _call("low_rank", x, out, entries, *addresses, pieces, hidden, *sizes):
        raise IndexError("a low-rank product of rows, pieces or outputs that are not there")


def _no_result(out: Tensor, x: Tensor, entries: Tensor, down: list[Tensor], up: list[Tensor], first: list[int]) -> None:
    pass


def _gelu(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _call("gelu", x, out, x.numel())
    return out


def _like_input(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _run, _fake in (
    ("quantize_rows", _quantize_rows, _like_quantized),
    ("rows_linear", _rows_linear, _like_rows_product),
    ("quantized_linear", _quantized_linear, _like_product),
    ("attention", _attention, _like_query),
    ("add_low_rank", _add_low_rank, _no_result),
    ("gelu", _gelu, _like_input),
):
    _library.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"glm_infill::{_name}", _fake, lib=_library)
