"""An adapter's folder: its configuration, and its tensors without the code that a pickle may contain."""

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from model.config import CheckpointError, Config
from model.pickle_file import PickleFile
from model.safetensors_file import SafetensorsFile
from model.source import Source

CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
P_TUNING_FILES = ("model.safetensors", "pytorch_model.bin")
# The files that may be read from a folder.
FILES = (CONFIG, "config.json", *PEFT_FILES, *P_TUNING_FILES)


class Folder:
    """An adapter's folder while it is read. It opens each file once and reads from that open file.

    With a `root`, it takes a file only if the system says that the open file lies below `root`. So no link reads
    anything outside the root, even if somebody puts it there during loading.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = None if root is None else root.resolve()
        self._opened: dict[str, Path] = {}
        self._descriptors = ExitStack()

    def open(self, name: str) -> Path | None:
        """Path of the open file; None if there is none.

        Raises CheckpointError for what is not a regular file or lies outside the root, and OSError.
        """
        if name in self._opened:
            return self._opened[name]
        try:
            # Non-blocking: the name may now be a pipe, which would wait for a writer.
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        self._descriptors.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{name} is not a regular file")
        if self._root is not None and not _place(descriptor).is_relative_to(self._root):
            raise CheckpointError(f"{name} lies outside the adapters' folder")
        path = self._opened[name] = Path(f"/dev/fd/{descriptor}")
        return path

    def told(self, message: str) -> str:
        """A message with the files' names in place of the paths that they were read from."""
        for name, path in sorted(self._opened.items(), key=lambda item: -len(str(item[1]))):
            message = message.replace(str(path), name)
        return message.replace(f"{self.path}/", "")

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._descriptors.close()


def _place(descriptor: int) -> Path:
    """Where an open file lies."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        raise CheckpointError(
            "this system cannot tell the path of an open file, which loading an adapter needs"
        ) from None


class Tensors:
    """The tensors of an adapter's file. `source` is the file's name."""

    def __init__(self, folder: Folder, names: tuple[str, ...]) -> None:
        """Of the first file that there is. Raises CheckpointError."""
        found = next(((name, path) for name in names if (path := folder.open(name)) is not None), None)
        if found is None:
            raise CheckpointError(f"holds neither {' nor '.join(names)}")
        self.source, path = found
        self._file: Source = (PickleFile if self.source.endswith(".bin") else SafetensorsFile)(path)

    @property
    def names(self) -> Iterator[str]:
        """The names of the tensors."""
        return iter(self._file.entries)

    def read(self, name: str) -> Tensor:
        """A floating-point tensor [...]. Raises CheckpointError for another type, NaN and infinity."""
        tensor = self._file.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.source}: {name} has type {tensor.dtype}, expected floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.source}: {name} holds NaN or infinity")
        return tensor


def config_of(folder: Folder, name: str) -> Config | None:
    """A JSON object of the folder; None if the file is missing. Raises CheckpointError for other content."""
    path = folder.open(name)
    return None if path is None else Config(Config.read(path.parent, path.name).fields, name)
