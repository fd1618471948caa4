"""An adapter's folder: its configuration, and its tensors without the code that a pickle may hold."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError, Config
from model.pickle_file import PickleFile
from model.safetensors_file import SafetensorsFile
from model.source import Source

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
P_TUNING_FILES = ("model.safetensors", "pytorch_model.bin")
# All that is ever read of a folder.
FILES = (CONFIG, "config.json", *PEFT_FILES, *P_TUNING_FILES)


class Tensors:
    """The tensors of an adapter's file; `source` is the file's name."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        """Of the first file that there is. Raises CheckpointError."""
        path = next((folder / name for name in names if (folder / name).exists()), None)
        if path is None:
            raise CheckpointError(f"holds neither {' nor '.join(names)}")
        self.source = path.name
        self._file: Source = (PickleFile if path.suffix == ".bin" else SafetensorsFile)(path)

    @property
    def names(self) -> Iterator[str]:
        return iter(self._file.entries)

    def read(self, name: str) -> Tensor:
        """A tensor of floating point. Raises CheckpointError for another one, NaN and infinity."""
        tensor = self._file.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.source}: {name} has type {tensor.dtype}, expected floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.source}: {name} holds NaN or infinity")
        return tensor


def config_of(folder: Path, name: str) -> Config | None:
    """A JSON object of the folder, None where there is none. Raises CheckpointError."""
    if not (folder / name).exists():
        return None
    config = Config.read(folder, name)
    return Config(config.fields, name)
