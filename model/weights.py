"""The tensors of a checkpoint folder, read one at a time from its safetensors files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import CheckpointError
from model.storage import Storage

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Entries = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # dtype None: any floating point


class Weights:
    """The tensors of a folder: of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.

    `storage` tells how its matrices are stored, None for float. A file is opened anew for each tensor, so that the
    pages of those read before do not count as memory in use.
    """

    def __init__(self, folder: Path) -> None:
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        self.storage = Storage.read(folder)
        self.listing = index if index.exists() and not single.exists() else single
        self.entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._files: dict[str, Path] = {}
        listed = _listed(index) if self.listing == index else None
        for path in [single] if listed is None else sorted({folder / file for file in listed.values()}):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118
                    if listed is not None and listed.pop(name, None) != path.name:
                        raise CheckpointError(f"{path.name} has {name}, which {index.name} does not place there")
                    tensor = file.get_tensor(name)  # a view of the file: nothing is read
                    self.entries[name], self._files[name] = (tuple(tensor.shape), tensor.dtype), path
        if listed:
            name = next(iter(listed))
            raise CheckpointError(f"{listed[name]} lacks {name}, which {index.name} places there")

    @property
    def files(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def check(self, wanted: Entries) -> None:
        """Raises CheckpointError unless these are exactly the tensors wanted, in names, shapes and dtypes."""
        names = self.entries.keys()
        for problem, group in (("lacks", wanted.keys() - names), ("has unknown", names - wanted.keys())):
            if group:
                shown = ", ".join(sorted(group)[:3]) + (" …" if len(group) > 3 else "")
                raise CheckpointError(f"{self.listing.name} {problem} {shown}")
        for name, (shape, dtype) in wanted.items():
            found = self.entries[name]
            if found[0] != shape:
                raise CheckpointError(f"{name} has shape {list(found[0])}, config.json asks for {list(shape)}")
            if found[1] not in (_FLOATS if dtype is None else (dtype,)):
                raise CheckpointError(f"{name} has type {found[1]}, expected {dtype or 'floating point'}")

    def read(self, name: str) -> Tensor:
        """A tensor as a view of its file. Raises CheckpointError for NaN and infinity."""
        with opened(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.is_floating_point():
            low, high = tensor.aminmax()  # NaN if there is one; unlike isfinite without a copy
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise CheckpointError(f"{name} holds NaN or infinity")
        return tensor


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file to read from. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _listed(index: Path) -> dict[str, str]:
    """Tensor name → file name, of an index file. Raises CheckpointError."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(file).name == file for file in listed.values()):
            raise ValueError("a file outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r})") from None
    return dict(listed)
