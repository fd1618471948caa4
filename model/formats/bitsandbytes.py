"""bitsandbytes' 4-bit blocks (NF4 and FP4, arXiv 2305.14314) and 8-bit rows (LLM.int8(), arXiv 2208.07339).

In 4 bits `weight` [bytes, 1] has two codes a byte, the first in the high nibble, of the matrix row by row; a block of
`blocksize` numbers, which may run across rows, has one `weight.absmax`, and code c stands for `weight.quant_map`[c] ·
absmax. Nested statistics are such codes of absmaxes themselves, with 256 levels, less an offset. The shape is in
`weight.quant_state.bitsandbytes__TYPE`, JSON in bytes. In 8 bits `weight` int8 [outputs, inputs] stands for code ·
`SCB` / 127.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import CheckpointError
from model.files import open_files
from model.format import Format
from model.formats.affine import Affine, Parts
from model.formats.keeping import keeping
from model.formats.packed_source import Packed, PackedSource, expect, modules_with, rows_of
from model.source import Source
from quant import bitsandbytes
from quant.scheme import Scheme, Tensors
from quant.schemes.nf4 import Nf4
from quant.usage import UsageError

STATE = ".quant_state.bitsandbytes__"
_ROW_ORDER = 0  # `weight_format`, as bitsandbytes numbers the orders of bytes


def _recognises(path: Path, quantization: Mapping[str, Any]) -> bool:
    method = quantization.get("quant_method")
    return method == "bitsandbytes" or (
        method is None and bool(quantization.get("load_in_4bit") or quantization.get("load_in_8bit"))
    )


def _opened(path: Path) -> PackedSource:
    source = open_files(path)
    matrices: dict[str, Packed] = {}
    hidden: set[str] = set()
    for name in source.entries:
        weight, found, kind = name.partition(STATE)
        if found:
            blocks = _Blocks(source, weight, kind)
            matrices[weight] = blocks
            hidden |= blocks.names
    for module in {*modules_with(source, "SCB"), *modules_with(source, "weight_format")}:
        matrices[f"{module}.weight"] = _rows(source, module)
        hidden |= {f"{module}.{leaf}" for leaf in ("weight", "SCB", "weight_format")}
    return PackedSource(source, matrices, hidden)


def _rows(source: Source, module: str) -> Affine:
    """A matrix of 8-bit rows."""
    name, order = f"{module}.weight", f"{module}.weight_format"
    shape = source.entries.get(name, ((),))[0]
    if len(shape) != 2:
        raise CheckpointError(f"{module}.SCB belongs to no matrix: {name} has shape {list(shape)}")
    expect(source, name, shape, dtypes=(torch.int8,))
    expect(source, f"{module}.SCB", (shape[0],), dtypes=(torch.float32,))
    if order in source.entries:
        expect(source, order, (), (1,), dtypes=(torch.uint8,))
        if int(source.read(order)) != _ROW_ORDER:
            raise CheckpointError(f"{order} is {int(source.read(order))}, only rows ({_ROW_ORDER}) are read")
    parts = Parts(
        partial(rows_of, source, name),
        lambda start, count: rows_of(source, f"{module}.SCB", start, count)[:, None] / 127,
    )
    return Affine((shape[0], shape[1]), "8-bit rows", parts, keeping(8, shape[1], 0))


@dataclass(frozen=True, slots=True)
class _State:
    """The fields of a `quant_state`."""

    shape: tuple[int, int]
    block_size: int
    nested_block_size: int
    offset: float

    @classmethod
    def read(cls, data: bytes, name: str) -> "_State":
        """From JSON. Raises CheckpointError for other content and for other shapes than a matrix's."""
        try:
            fields = json.loads(data)
            shape = tuple(fields["shape"])
            sizes = fields["blocksize"], fields.get("nested_blocksize", 1)
            offset = fields.get("nested_offset", 0.0)
            whole = all(type(n) is int and 0 < n < 2**31 for n in (*shape, *sizes))
            if not whole or len(shape) != 2 or type(offset) not in (int, float):
                raise ValueError(f"shape {shape}, blocks of {sizes}, offset {offset}")
            return cls((shape[0], shape[1]), *sizes, float(offset))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{name} is not the state of a matrix ({error!r})") from None


class _Blocks(Packed):
    """A matrix in blocks of 4-bit codes."""

    def __init__(self, source: Source, weight: str, kind: str) -> None:
        """Raises CheckpointError for tensors that do not belong together."""
        self._source, self._weight = source, weight
        state = f"{weight}{STATE}{kind}"
        if source.entries[state][1] is not torch.uint8 or prod(source.entries[state][0]) > 10_000:
            raise CheckpointError(f"{state} is not the state of a matrix")
        self._state = _State.read(source.read(state).numpy().tobytes(), state)
        super().__init__(self._state.shape, kind.upper())
        count = prod(self.shape)
        octets, blocks = -(-count // 2), -(-count // self._state.block_size)
        shape, self._storage = source.entries.get(weight, ((), torch.uint8))
        if prod(shape) * self._storage.itemsize != octets or len(shape) != 2 or shape[1] != 1:
            raise CheckpointError(f"{weight} has shape {list(shape)} {self._storage}, expected {octets} bytes")
        expect(source, f"{weight}.quant_map", (16,), dtypes=(torch.float32,))
        self.names = {weight, state, f"{weight}.quant_map", f"{weight}.absmax"}
        self._nested = f"{weight}.nested_absmax" in source.entries
        if self._nested:
            expect(source, f"{weight}.absmax", (blocks,), dtypes=(torch.uint8,))
            expect(source, f"{weight}.nested_absmax", (-(-blocks // self._state.nested_block_size),))
            expect(source, f"{weight}.nested_quant_map", (256,), dtypes=(torch.float32,))
            self.names |= {f"{weight}.nested_absmax", f"{weight}.nested_quant_map"}
        else:
            expect(source, f"{weight}.absmax", (blocks,), dtypes=(torch.float32,))

    def numbers(self, start: int, count: int) -> Tensor:
        inputs, size = self.shape[1], self._state.block_size
        first, last = start * inputs, (start + count) * inputs  # in the order of the file
        octets = self._octets(first // 2, -(-last // 2))
        codes = torch.stack([octets >> 4, octets & 15], dim=-1).flatten()[first % 2 :][: last - first]
        values = self._source.read(f"{self._weight}.quant_map")[codes.int()]
        blocks = torch.arange(first, last) // size
        absmax = self._absmax(first // size, -(-last // size))
        return values.mul_(absmax[blocks - first // size]).view(count, inputs)

    def exact(self) -> Scheme | None:
        try:
            scheme = Nf4()
        except UsageError:  # without the library the numbers are read all the same, and converted
            return None
        levels = bitsandbytes.library().functional.get_4bit_type("nf4", device="cpu")
        same = torch.equal(self._source.read(f"{self._weight}.quant_map"), levels)
        return scheme if same and self._state.block_size == Nf4.BLOCK and self.shape[1] % Nf4.BLOCK == 0 else None

    def stored(self, start: int, count: int) -> Tensors:
        inputs, blocks = self.shape[1], self.shape[1] // Nf4.BLOCK
        return {
            "weight": self._octets(start * inputs // 2, (start + count) * inputs // 2).view(count, -1),
            "absmax": self._absmax(start * blocks, (start + count) * blocks).view(count, -1),
        }

    def _octets(self, start: int, stop: int) -> Tensor:
        """Bytes of the matrix, uint8; the file may have them as numbers of another dtype."""
        size = self._storage.itemsize
        first = start // size
        elements = rows_of(self._source, self._weight, first, -(-stop // size) - first)
        return elements.contiguous().view(torch.uint8).flatten()[start - first * size :][: stop - start]

    def _absmax(self, start: int, stop: int) -> Tensor:
        """The absmaxes of some blocks, float32."""
        own = rows_of(self._source, f"{self._weight}.absmax", start, stop - start)
        if not self._nested:
            return own
        levels = self._source.read(f"{self._weight}.nested_quant_map")
        blocks = torch.arange(start, stop) // self._state.nested_block_size
        return levels[own.int()] * self._source.read(f"{self._weight}.nested_absmax")[blocks] + self._state.offset


FORMAT = Format("bitsandbytes", _recognises, _opened)
