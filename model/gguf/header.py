"""The header of a GGUF file: its metadata, and the places of its tensors. Every count and length in it may lie.

Source: ggml, include/gguf.h. A header is read once, in the order of its bytes; whatever it announces must lie within
the file. Long arrays are skipped, and read when they are asked for.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from model.config import CheckpointError
from model.gguf.kinds import BY_NUMBER, NAMES, Kind

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST = 1 << 16  # entries of metadata, and tensors, of a file
LONGEST_NAME = 1 << 10  # bytes of a key or of a tensor's name
LONGEST_TEXT = 1 << 26  # bytes
LONGEST_ARRAY = 1 << 22  # elements
LARGEST = 1 << 40  # numbers of a tensor
DIMENSIONS = 4
_ALIGNMENT = 32  # bytes, where the metadata has no other
_LFS = b"version https://git-lfs"

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tensor in a file. `shape` is torch's: the last dimension is contiguous. `offset` is in bytes."""

    path: Path
    kind: Kind
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.kind.block * self.kind.num_bytes


@dataclass(frozen=True, slots=True)
class Array:
    """A long array of the metadata, which is read from the file when it is asked for."""

    path: Path
    kind: int
    count: int
    offset: int

    def read(self) -> list[Any]:
        """The elements. Raises CheckpointError for a text that is not UTF-8."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(self.path, data, self.offset)
            take = cursor.text if self.kind == _STRING else lambda: cursor.scalar(self.kind)
            return [take() for _ in range(self.count)]


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a file by key, and its tensors' places by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Place]

    @staticmethod
    def read(path: Path) -> "Header":
        """Raises CheckpointError, in one line, for a file that is no GGUF file, and for one that is damaged."""
        try:
            with path.open("rb") as file:
                begin = file.read(len(_LFS))
                if begin == _LFS:
                    raise CheckpointError(
                        f"{path}: a pointer of Git LFS, not the file itself; `git lfs pull` fetches it"
                    )
                if begin[:4] != MAGIC:
                    raise CheckpointError(f"{path}: not a GGUF file")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _read(_Cursor(path, data, len(MAGIC)))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except OSError as error:
            raise CheckpointError(f"{path}: unreadable ({error})") from None


class _Cursor:
    """Reads a file's bytes one after the other. Raises CheckpointError past its end."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path, self.data, self.position = path, data, position

    def skip(self, count: int) -> int:
        """Goes on by so many bytes, and returns where they begin."""
        begin = self.position
        if count > len(self.data) - begin:
            raise self.damaged(f"ends within its header, at byte {len(self.data)}")
        self.position = begin + count
        return begin

    def scalar(self, kind: int) -> Any:
        """A number or a truth value of a type of `_SCALARS`."""
        form = _SCALARS[kind]
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def whole(self, kind: int, name: str, most: int) -> int:
        """An unsigned number that may be at most `most`."""
        value: int = self.scalar(kind)
        if value > most:
            raise self.damaged(f"{name} {value} is above {most}")
        return value

    def text(self, most: int = LONGEST_TEXT) -> str:
        """A string of at most so many bytes."""
        length: int = self.scalar(10)
        if length > most:
            raise self.damaged(f"a text of {length} bytes, at byte {self.position}")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"a text that is not UTF-8, at byte {begin}") from None

    def name(self) -> str:
        """A key or a tensor's name."""
        name = self.text(LONGEST_NAME)
        if not name.isprintable():
            raise self.damaged(f"the name {name!r}")
        return name

    def damaged(self, reason: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self.path}: a damaged GGUF file: {reason}")


def _read(cursor: _Cursor) -> Header:
    version = cursor.scalar(4)
    if version not in VERSIONS:
        bytes_swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian" if bytes_swapped in VERSIONS else f"of version {version}"
        raise CheckpointError(f"{cursor.path}: a GGUF file {what}; only little-endian ones of version 2 and 3 are read")
    num_tensors = cursor.whole(10, "the number of tensors", MOST)
    num_entries = cursor.whole(10, "the number of metadata entries", MOST)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.name()
        if key in metadata:
            raise cursor.damaged(f"{key} is there twice")
        metadata[key] = _value(cursor, key)
    infos = [_info(cursor) for _ in range(num_tensors)]
    return Header(cursor.path, metadata, _placed(cursor, infos, _alignment(cursor, metadata)))


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.scalar(4)
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.scalar(kind)
    if kind != _ARRAY:
        raise cursor.damaged(f"{key} has the unknown type {kind}")
    element = cursor.scalar(4)
    count = cursor.whole(10, f"the length of {key}", LONGEST_ARRAY)
    array = Array(cursor.path, element, count, cursor.position)
    if element == _STRING:
        for _ in range(count):
            cursor.skip(cursor.scalar(10))
    elif element in _SCALARS:
        cursor.skip(count * struct.calcsize(_SCALARS[element]))
    else:
        raise cursor.damaged(f"{key} is an array of the type {element}, which is not read")
    return array


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _info(cursor: _Cursor) -> tuple[str, Kind, tuple[int, ...], int]:
    """A tensor's name, kind, shape, and offset behind the header."""
    name = cursor.name()
    dims = [cursor.scalar(10) for _ in range(cursor.whole(4, f"{name}: the number of dimensions", DIMENSIONS))]
    number = cursor.scalar(4)
    kind = BY_NUMBER.get(number)
    if kind is None:
        known = ", ".join(own.name for own in BY_NUMBER.values())
        raise CheckpointError(
            f"{cursor.path}: {name} is stored as {NAMES.get(number, f'type {number}')}, which is not read; "
            f"these kinds are: {known}"
        )
    if not dims or 0 in dims or prod(dims) > LARGEST:
        raise cursor.damaged(f"{name} has the shape {dims[::-1]}")
    if dims[0] % kind.block:
        raise cursor.damaged(f"{name} has rows of {dims[0]} numbers, not blocks of {kind.block} ({kind.name})")
    return name, kind, tuple(dims[::-1]), cursor.scalar(10)


def _placed(cursor: _Cursor, infos: list[tuple[str, Kind, tuple[int, ...], int]], alignment: int) -> dict[str, Place]:
    """The places of tensors; they must lie within the file and apart from each other."""
    begin = -(-cursor.position // alignment) * alignment
    places: dict[str, Place] = {}
    for name, kind, shape, offset in infos:
        if name in places:
            raise cursor.damaged(f"{name} is there twice")
        place = places[name] = Place(cursor.path, kind, shape, begin + offset)
        if offset % alignment:
            raise cursor.damaged(f"{name} begins at {offset}, not at a multiple of {alignment}")
        if place.offset + place.num_bytes > len(cursor.data):
            raise CheckpointError(
                f"{cursor.path}: {name} ends at byte {place.offset + place.num_bytes}, the file at {len(cursor.data)}; "
                "an unfinished download?"
            )
    ordered = sorted(places.items(), key=lambda item: item[1].offset)
    for (first, own), (second, other) in pairwise(ordered):
        if own.offset + own.num_bytes > other.offset:
            raise cursor.damaged(f"{first} and {second} overlap")
    return places
