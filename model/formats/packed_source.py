"""The tensors of a folder whose matrices another library has packed, presented as float ones."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.format import cut_stored
from model.sharding import Slice
from model.source import Source
from quant.scheme import Scheme, Stored, Tensors

_NUMBERS = 2**22  # unpacked at once, which keeps what is unpacked for a moment small


class Packed(ABC):
    """A matrix [outputs, inputs] in its files. `kind` is the format's word for how it is quantized."""

    def __init__(self, shape: tuple[int, int], kind: str) -> None:
        self.shape, self.kind = shape, kind

    @abstractmethod
    def numbers(self, start: int, count: int) -> Tensor:
        """`count` rows from `start` on, dequantized: float32 [count, inputs]."""

    @abstractmethod
    def exact(self) -> Scheme | None:
        """The scheme that has exactly the matrix's numbers; None if no scheme has. Reads scales and zeros."""

    @abstractmethod
    def stored(self, start: int, count: int) -> Tensors:
        """The tensors of `form` for some rows."""

    @cached_property
    def form(self) -> Scheme | None:
        """The answer of `exact`, found once."""
        return self.exact()


class PackedSource:
    """A `QuantizedSource` of packed matrices by their names ("….weight").

    `hidden` are the tensors that the matrices are made of, and those that stand beside them without changing them.
    """

    def __init__(self, source: Source, matrices: Mapping[str, Packed], hidden: Collection[str]) -> None:
        self._source, self._matrices = source, matrices
        plain = {name: entry for name, entry in source.entries.items() if name not in hidden}
        self.entries: Stored = plain | {name: (own.shape, torch.float32) for name, own in matrices.items()}

    @property
    def listing(self) -> Path:
        return self._source.listing

    @property
    def files(self) -> list[Path]:
        return sorted(self._source.files)

    def kind(self, name: str) -> str | None:
        return self._matrices[name].kind if name in self._matrices else None

    def form(self, name: str) -> Scheme | None:
        return self._matrices[name].form if name in self._matrices else None

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        if name not in self._matrices:
            return self._source.read(name, part)
        matrix = self._matrices[name]
        if part is None or part.dim:
            whole = matrix.numbers(0, matrix.shape[0])
            return whole if part is None else part.of(whole)
        pieces = [matrix.numbers(start, count) for start, count in part.spans]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def stored(self, name: str, part: Slice | None = None) -> Tensors:
        matrix = self._matrices[name]
        assert matrix.form is not None
        by_rows = part is not None and part.dim == 0
        spans = part.spans if part is not None and by_rows else ((0, matrix.shape[0]),)
        at_once = max(_NUMBERS // matrix.shape[1], 1)
        pieces = [
            matrix.stored(first, min(at_once, start + count - first))
            for start, count in spans
            for first in range(start, start + count, at_once)
        ]
        joined = {leaf: torch.cat([piece[leaf] for piece in pieces]) for leaf in pieces[0]}
        return joined if by_rows else cut_stored(matrix.form, joined, part, name)


def rows_of(source: Source, name: str, start: int, count: int) -> Tensor:
    """`count` rows of a tensor [rows, …] of the files, from `start` on."""
    return source.read(name, Slice(0, ((start, count),)))


def columns_of(source: Source, name: str, start: int, count: int) -> Tensor:
    """`count` columns of a tensor [rows, columns] of the files, from `start` on."""
    return source.read(name, Slice(1, ((start, count),)))


def expect(source: Source, name: str, *shapes: tuple[int, ...], dtypes: Collection[torch.dtype] = ()) -> None:
    """Checks that the files have a tensor, with one of these shapes and dtypes (none: any).

    Raises CheckpointError, naming the tensor, if not.
    """
    if name not in source.entries:
        raise CheckpointError(f"{source.listing.name} lacks {name}")
    shape, dtype = source.entries[name]
    if shape not in shapes:
        wanted = " or ".join(str(list(own)) for own in shapes)
        raise CheckpointError(f"{name} has shape {list(shape)}, expected {wanted}")
    if dtypes and dtype not in dtypes:
        raise CheckpointError(f"{name} has type {dtype}, expected {' or '.join(map(str, dtypes))}")


def modules_with(source: Source, leaf: str) -> list[str]:
    """The paths of the modules that have a tensor of this name."""
    return [name.removesuffix(f".{leaf}") for name in source.entries if name.endswith(f".{leaf}")]
