"""A file of `torch.save`, read tensor by tensor, without running the code that a pickle may contain."""

import ctypes
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor
from torch.serialization import safe_globals

from model.config import CheckpointError, damaged
from model.sharding import Slice
from quant.scheme import Stored

# GLM's and SwissArmyTransformer's training stores the state of numpy's generator beside the weights.
_STATE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
]
_MADV_DONTNEED = 4


class PickleFile:
    """The tensors of one file: those of its entry `module`, as training writes it, or all if there is no such entry.

    `state` holds the integers beside `module`, such as the iteration. The file stays mapped, and `read` copies. A file
    from before torch 1.6 cannot be mapped; all of it is in memory. Raises CheckpointError for a file with anything else
    than tensors.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError."""
        self.listing, self.files = path, [path]
        content = _loaded(path)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
        self.state = {k: v for k, v in content.items() if type(v) is int} if "module" in content else {}
        tensors = content.get("module", content)
        if not isinstance(tensors, dict):
            raise CheckpointError(f"{path}: module is a {type(tensors).__name__}, not tensors by name")
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not plain or tensor.is_quantized or not isinstance(name, str):
                raise CheckpointError(f"{path}: {name} is not a tensor of plain numbers")
            self._tensors[name] = tensor.detach()
        self.entries: Stored = {k: (tuple(t.shape), t.dtype) for k, t in self._tensors.items()}
        self._pages = _mappings(path)

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        tensor = self._tensors[name]
        found = tensor if part is None else part.of(tensor)
        # A copy keeps no reference to the mapping, so that its pages can be freed.
        joined = part is not None and len(part.spans) > 1
        copied = found if joined else found.clone(memory_format=torch.contiguous_format)
        self._drop(tensor.untyped_storage())
        return copied

    def _drop(self, storage: torch.UntypedStorage) -> None:
        """Lets go of mapped pages, which would count as memory in use until the file is closed.

        Nothing is ever written to the mapping, so whatever shares the pages reads them from the file again. Memory that
        is not of the mapping would be lost: a file can make its tensors lie elsewhere.
        """
        start, length = storage.data_ptr(), storage.nbytes()
        if length and any(start in pages and start + length - 1 in pages for pages in self._pages):
            skipped = start % os.sysconf("SC_PAGE_SIZE")
            _libc().madvise(ctypes.c_void_p(start - skipped), ctypes.c_size_t(length + skipped), _MADV_DONTNEED)


def _loaded(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        with safe_globals(_STATE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses the format of a damaged file
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if found := re.search(
            r"GLOBAL (\S+)|Trying to (?:load|call reduce for) (?:unsupported )?\S* ?(\S+)", str(error)
        ):
            name = found[1] or found[2]
            raise CheckpointError(f"{path}: holds more than tensors: {name}, which is not loaded") from None
        raise damaged(path, "not a readable file of torch.save (no valid pickle)") from None
    except Exception as error:  # a damaged pickle can raise any error
        lines = str(error).splitlines() or [type(error).__name__]
        raise damaged(path, f"not a readable file of torch.save ({lines[0]})") from None


def _mappings(path: Path) -> list[range]:
    """The addresses at which a file is mapped now; none where the system does not say."""
    maps, real = Path("/proc/self/maps"), os.path.realpath(path)
    if sys.platform != "linux" or not maps.exists():
        return []
    lines = [line.split(maxsplit=5) for line in maps.read_text(encoding="utf-8", errors="replace").splitlines()]
    bounds = [line[0].split("-") for line in lines if len(line) == 6 and line[5] == real]
    return [range(int(start, 16), int(end, 16)) for start, end in bounds]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
