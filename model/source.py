"""What every layout of checkpoint files offers: tensors by the names in the files, read one at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.sharding import Slice


class Source(Protocol):
    """The tensors of one or more files.

    `entries` gives shapes and dtypes by name, known without reading; `listing` is the file that messages name for what
    is missing or too much.
    """

    @property
    def listing(self) -> Path: ...

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        """A tensor, or a part of it, not to be written to. Raises CheckpointError."""
