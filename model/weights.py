"""The tensors of a checkpoint folder under the network's names, one at a time, from every published layout."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.indexed_files import IndexedFiles
from model.naming import COPIES, SPARE, Naming, arranged, placed
from model.pickle_file import PickleFile
from model.rank_folders import num_ranks, ranked
from model.ranked import Ranked
from model.safetensors_file import SafetensorsFile
from model.sat import TRACKERS, sat_folder
from model.scales import Scales, inferred
from model.sharding import ShardSpec, ShardSpecs, Slice
from model.source import Source
from model.storage import Storage
from quant.scheme import Stored

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MASKED_HEAD = "mlm_head.bias"  # of no other task: ModernBERT's classifiers have the rest of its head
_CLASSIFIER = re.compile(r"(^|\.)(classifier|qa_outputs|score)\.")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")

Entries = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # dtype None: any floating point


class Weights:
    """The tensors of a folder by canonical name.

    `namings` are the possible layouts of names. `cuts` is the division among model-parallel ranks, which folders of
    several ranks need. `storage` is the storage of the matrices, None for float. Raises CheckpointError for files that
    cannot be read or merged.
    """

    def __init__(self, folder: Path, namings: Sequence[Naming] = (), cuts: ShardSpecs | None = None) -> None:
        """Raises CheckpointError for files that cannot be read or merged."""

        def cut(name: str) -> ShardSpec | None:
            return None if cuts is None else cuts(placed(name, namings).name)

        self._source = _source(folder, cut)
        if cuts is None and len(self._source.files) > 1 and isinstance(self._source, Ranked):
            raise CheckpointError(f"{self._source.listing}: of {self._source.size} ranks, which cannot be merged here")
        self._parts = arranged(self._source.entries, namings)
        self._has_classifier = any(_CLASSIFIER.search(name) for name in self._source.entries)
        entries = {name: self._joined(name, parts) for name, parts in self._parts.items()}
        described = (folder / "config.json").exists()
        self._scales = Scales(Storage.read(folder) if described else inferred(entries), entries)
        self.storage = self._scales.storage
        self.entries: Stored = self._scales.entries

    @property
    def listing(self) -> Path:
        """The file to name for missing tensors."""
        return self._source.listing

    @property
    def files(self) -> list[Path]:
        return sorted(self._source.files)

    def check(self, wanted: Entries) -> None:
        """Checks that the folder has exactly these tensors, with these shapes and dtypes.

        It also accepts a tied copy if it equals its original, and the tensors in `naming.SPARE`. Raises CheckpointError
        for any other difference.
        """
        copies = [name for name in COPIES if name in self.entries and name not in wanted]
        names = self.entries.keys() - copies - set(SPARE).difference(wanted)
        layers, asked = _num_layers(names), _num_layers(wanted)
        if layers != asked and layers:
            raise CheckpointError(f"{self.listing.name} has {layers} layers, config.json asks for {asked}")
        if _MASKED_HEAD in wanted and _MASKED_HEAD not in names:
            what = "classifier" if self._has_classifier else "network"
            raise CheckpointError(f"{self.listing}: a {what} without a masked-language-model head")
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
        for name in copies:
            same = COPIES[name]
            if self.entries[name] != self.entries.get(same) or not torch.equal(self._read(name), self._read(same)):
                raise CheckpointError(f"{name} differs from {same}, which it is a copy of in this network")

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        """A tensor [...], or a slice of it. It may be a view of its file; do not write to it.

        Raises CheckpointError for NaN and infinity.
        """
        tensor = self._read(name, part)
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # NaN if there is one; unlike isfinite without a copy
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise CheckpointError(f"{name} holds NaN or infinity")
        return tensor

    def _read(self, name: str, part: Slice | None = None) -> Tensor:
        scale = self._scales.scale_of(name)
        if scale is not None:
            tensor = self._scales.meant(self._whole(name), self._whole(scale))
        elif self._scales.repeats(name):
            tensor = self._scales.stored(name, self._whole(name))
        else:
            return self._scales.stored(name, self._whole(name, part))
        return tensor if part is None else part.of(tensor)

    def _whole(self, name: str, part: Slice | None = None) -> Tensor:
        """A tensor of the files, or a slice of it, with all its parts joined."""
        names = self._parts[name]
        if len(names) == 1:
            return self._source.read(names[0], part)
        if part is None or part.dim:
            return torch.cat([self._source.read(own, part) for own in names])
        pieces, start = [], 0
        for own in names:
            rows = self._source.entries[own][0][0]
            wanted = part.within(start, rows)
            if wanted.spans:
                pieces.append(self._source.read(own, wanted))
            start += rows
        return torch.cat(pieces)

    def _joined(self, name: str, parts: tuple[str, ...]) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a tensor of several parts."""
        (shape, dtype), *rest = (self._source.entries[part] for part in parts)
        for part, (other, kind) in zip(parts[1:], rest, strict=True):
            if (other[1:], kind, len(other)) != (shape[1:], dtype, len(shape)) or not shape:
                raise CheckpointError(
                    f"{part} is {list(other)} {kind}, {parts[0]} {list(shape)} {dtype}: no parts of one {name}"
                )
        return (
            ((sum(self._source.entries[part][0][0] for part in parts), *shape[1:]), dtype) if rest else (shape, dtype)
        )


def _source(folder: Path, cuts: ShardSpecs) -> Source:
    """The folder's files: folders of `quantize --tp` first, then safetensors, pickles, and ranks."""
    size = num_ranks(folder)
    if size > 1:
        return ranked(folder, size, cuts)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    pickled, pickled_index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if not single.exists():
        if index.exists():
            return IndexedFiles(index, SafetensorsFile)
        if pickled.exists():
            return PickleFile(pickled)
        if pickled_index.exists():
            return IndexedFiles(pickled_index, PickleFile)
        if any((folder / name).exists() for name in TRACKERS):
            return sat_folder(folder, cuts)
    return SafetensorsFile(single)


def _num_layers(names: Iterable[str]) -> int:
    return 1 + max((int(match[1]) for name in names if (match := _LAYER.match(name))), default=-1)
