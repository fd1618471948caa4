"""A safetensors file, written tensor by tensor."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from quant.scheme import Stored, num_bytes

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class SafetensorsWriter:
    """A safetensors file of tensors announced beforehand, written in any order. It gets its name once it is complete.

    Like the library, it puts wider dtypes first, so that every tensor is aligned.
    """

    def __init__(self, path: Path, tensors: Stored) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = dict[str, int](), 0
        for name in sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name)):
            shape, dtype = tensors[name]
            starts[name], end = end, end + num_bytes({name: tensors[name]})
            header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [starts[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._path, self._tensors = path, tensors
        self._starts = {name: 8 + len(text) + start for name, start in starts.items()}
        self._file = path.with_name(f"{path.name}.part").open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor, once, of the announced shape [...] and dtype."""
        assert (tuple(tensor.shape), tensor.dtype) == self._tensors[name], name
        self._file.seek(self._starts.pop(name))
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            assert not self._starts, f"not written: {', '.join(self._starts)}"
            os.replace(self._file.name, self._path)
