"""A safetensors file, read tensor by tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import CheckpointError, damaged
from model.sharding import Slice
from quant.scheme import Stored


class SafetensorsFile:
    """The tensors of one file. Each tensor is a view of a memory mapping of its own.

    Each read opens the file anew, so that pages of earlier tensors do not count as memory in use. Raises
    CheckpointError for a file that is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.listing, self.files = path, [path]
        self.entries: Stored = {}
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)  # a view: nothing is read
                self.entries[name] = tuple(tensor.shape), tensor.dtype

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        with opened(self.listing) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor if part is None else part.of(tensor)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file. Raises CheckpointError if it is missing or unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"not a readable safetensors file ({error})") from None
