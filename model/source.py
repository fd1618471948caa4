"""A source of tensors: every layout of checkpoint files offers them by their names there, one at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.sharding import Slice


class Source(Protocol):
    """The tensors of one or more files.

    `entries` gives shapes and dtypes by name, without reading. `listing` is the file that messages name for missing or
    unknown tensors.
    """

    @property
    def listing(self) -> Path:
        """The file that lists the tensors, for messages."""

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name → (shape, dtype) of each tensor."""

    @property
    def files(self) -> Sequence[Path]:
        """All files with tensors."""

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        """A tensor [...], or a slice of it; not to be written to. Raises CheckpointError for a damaged file."""
