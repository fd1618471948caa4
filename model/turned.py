"""A source whose matrices lie turned in their files: rows are inputs, as in GPT-2's Conv1D."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.sharding import Slice
from model.source import Source


class Turned:
    """The tensors of another source, the matrices `names` with rows and columns exchanged."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self._source = source
        self._names = {name for name in names if len(source.entries[name][0]) == 2}

    @property
    def listing(self) -> Path:
        return self._source.listing

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        turned = {name: self._source.entries[name] for name in self._names}
        return {**self._source.entries, **{name: (shape[::-1], dtype) for name, (shape, dtype) in turned.items()}}

    @property
    def files(self) -> Sequence[Path]:
        return self._source.files

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        """A tensor [...], or a slice of it; not to be written to. Raises CheckpointError for a damaged file."""
        if name not in self._names:
            return self._source.read(name, part)
        inner = None if part is None else Slice(1 - part.dim, part.spans)
        return self._source.read(name, inner).t().contiguous()
