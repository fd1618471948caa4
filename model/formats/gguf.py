"""GGUF, llama.cpp's files: a file or a folder with one, with sizes and tokenizer inside. Q4_0 and Q8_0 are kept."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import CheckpointError, Config
from model.format import Format, cut_stored
from model.gguf.architectures import architecture_of, config_of
from model.gguf.header import MAGIC, Header, Place
from model.gguf.tokenizer import tokenizer_files
from model.sharding import Slice
from quant.scheme import Scheme, Stored, Tensors

SUFFIX = ".gguf"
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_OTHER_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "latest*", "rank*")


class GGUFSource:
    """The tensors of a GGUF file, or of all its parts, under the names that they have in transformers."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for files that are missing, damaged or of an unknown architecture."""
        header = opened(path)
        config = config_of(header)
        self.listing = header.path
        self.files = sorted({place.path for place in header.tensors.values()})
        self.entries: Stored = {}
        self._places: dict[str, Place] = {}
        self._orders: dict[str, Tensor] = {}  # rows of the file, in the order of transformers
        architecture = architecture_of(header)
        for own, place in header.tensors.items():
            name = architecture.published(own, header.path)
            if name is None:
                continue
            if name in self._places:
                raise CheckpointError(f"{header.path}: {own} is there twice, as {name}")
            self._places[name] = place
            self.entries[name] = place.shape, place.kind.dtype or torch.float32
            if own.split(".")[-2] in architecture.interleaved:
                self._orders[name] = _halves(place.shape[0], config.whole("head_dim"), name)

    def kind(self, name: str) -> str | None:
        kind = self._places[name].kind
        return None if kind.dequantized is None else kind.name

    def form(self, name: str) -> Scheme | None:
        place = self._places[name]
        return place.kind.scheme if len(place.shape) == 2 else None

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        place = self._places[name]
        raw, rest = self._bytes(name, part)
        tensor = place.kind.numbers(raw).flatten(-2)
        return tensor if rest is None else rest.of(tensor)

    def stored(self, name: str, part: Slice | None = None) -> Tensors:
        kind = self._places[name].kind
        assert kind.scheme is not None
        assert kind.stored is not None
        raw, rest = self._bytes(name, part)
        return cut_stored(kind.scheme, kind.stored(raw), rest, name)

    def _bytes(self, name: str, part: Slice | None) -> tuple[Tensor, Slice | None]:
        """The blocks of a slice of a tensor, uint8 [..., blocks, bytes], and what is still to be cut from them."""
        place = self._places[name]
        order = self._orders.get(name)
        if part is not None and part.dim == 0 and len(place.shape) > 1 and len(part.spans) == 1 and order is None:
            return _mapped(place, *part.spans[0]), None
        raw = _mapped(place, 0, place.shape[0])
        if order is not None:
            own = order if part is None or part.dim else part.of(order)
            return raw[own], part if part is not None and part.dim else None
        if part is None or len(place.shape) == 1:
            return raw, part
        if part.dim == 0:
            return part.of(raw), None
        block = place.kind.block
        if any(start % block or length % block for start, length in part.spans):
            return raw, part
        return Slice(1, tuple((start // block, length // block) for start, length in part.spans)).of(raw), None


def _mapped(place: Place, start: int, count: int) -> Tensor:
    """Some rows of a tensor as uint8 [rows, blocks, bytes], or all of a vector as [blocks, bytes]: a view of the file.

    Each call maps the file anew, so that pages of earlier tensors do not count as memory in use.
    """
    shape = (*place.shape[:-1], place.shape[-1] // place.kind.block, place.kind.num_bytes)
    offset = place.offset
    if len(place.shape) > 1:
        offset += start * prod(shape[1:])
        shape = (count, *shape[1:])
    try:
        return torch.from_numpy(np.memmap(place.path, np.uint8, "c", offset, shape))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place.path}: unreadable ({error})") from None


def _halves(rows: int, head_dim: int, name: str) -> Tensor:
    """For each row of transformers' order, its row in the file, where pairs of a head are side by side: [rows]."""
    if rows % head_dim or head_dim % 2:
        raise CheckpointError(f"{name} has {rows} rows, not heads of {head_dim}")
    return torch.arange(rows).view(-1, head_dim // 2, 2).transpose(1, 2).flatten()


def opened(path: Path) -> Header:
    """The header of a file, or of all its parts. Raises CheckpointError for files that are missing or damaged."""
    first = _file(path)
    match = _PART.fullmatch(first.name)
    header = Header.read(first)
    if match is None:
        return header
    tensors = dict(header.tensors)
    for number in range(2, int(match[3]) + 1):
        further = Header.read(first.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf"))
        for name, place in further.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{further.path}: {name} is also in {tensors[name].path.name}")
            tensors[name] = place
    return Header(header.path, header.metadata, tensors)


def _file(path: Path) -> Path:
    """The file, or the only one of a folder; of several parts the first."""
    if path.is_dir():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if len(chosen := {_first(own) for own in found}) != 1:
            names = ", ".join(own.name for own in sorted(chosen)[:8])
            raise CheckpointError(f"{path}: holds {names}: serve one of these files")
        return chosen.pop()
    return _first(path)


def _first(path: Path) -> Path:
    """The first part of a file in several parts, else the file itself."""
    match = _PART.fullmatch(path.name)
    return path if match is None else path.with_name(f"{match[1]}-00001-of-{match[3]}{SUFFIX}")


def _recognises(path: Path, quantization: Mapping[str, Any]) -> bool:
    """A file, or a folder with such files and no other weights."""
    if path.is_dir():
        return any(path.glob(f"*{SUFFIX}")) and not any(True for own in _OTHER_WEIGHTS for _ in path.glob(own))
    return path.is_file() and (path.suffix == SUFFIX or _begins(path))


def _begins(path: Path) -> bool:
    """Whether a file has GGUF's first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _config(path: Path) -> Config:
    return config_of(opened(path))


def _tokenizer(path: Path) -> Mapping[str, bytes]:
    return tokenizer_files(opened(path))


FORMAT = Format("GGUF", _recognises, GGUFSource, _config, _tokenizer)
