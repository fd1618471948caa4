"""The tensors of a checkpoint folder under the network's names, one at a time, from every published layout."""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.contents import listed
from model.files import open_files
from model.format import same_numbers
from model.formats import format_of
from model.naming import COPIES, SPARE, Naming, arranged, placed
from model.preferred import HEADS, Matrix, preferred
from model.ranked import Ranked
from model.scales import Scales, inferred
from model.sharding import ShardSpec, ShardSpecs, Slice
from model.source import Source
from model.storage import Storage
from model.turned import Turned
from quant.registry import FLOAT, scheme_facts
from quant.scheme import Scheme, Stored, Tensors

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_LANGUAGE_HEADS = ("mlm_head.", "lm_head.")
_OTHER_HEADS = ("next_sentence.", "pooler.")
# transformers' heads for classes, answers in a text, and rewards.
_CLASSIFIER = re.compile(r"(?:\w+\.)?(?:classifier|pre_classifier|score|qa_outputs|classification_head|v_head)\.")

Entries = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # dtype None: any floating point


class Weights:
    """The tensors of a folder by canonical name.

    `namings` are the possible layouts of names. `cuts` is the division among model-parallel ranks, which folders of
    several ranks need. `storage` is the storage of the matrices in this project's own form, None for float. Matrices of
    a foreign format count as float ones; `form` says which scheme has their numbers exactly, and `stored` reads them in
    it. Raises CheckpointError for files that cannot be read or merged.
    """

    def __init__(self, folder: Path, namings: Sequence[Naming] = (), cuts: ShardSpecs | None = None) -> None:
        """Raises CheckpointError for files that cannot be read or merged."""

        def cut(name: str) -> ShardSpec | None:
            return None if cuts is None else cuts(placed(name, namings).name)

        self.format = format_of(folder)
        self._quantized = None if self.format is None else self.format.opened(folder)
        self._source: Source = self._quantized or open_files(folder, cut)
        if cuts is None and len(self._source.files) > 1 and isinstance(self._source, Ranked):
            raise CheckpointError(f"{self._source.listing}: of {self._source.size} ranks, which cannot be merged here")
        turned = [name for name in self._source.entries if any(naming.turns(name) for naming in namings)]
        if turned and self._quantized is None:
            self._source = Turned(self._source, turned)
        self._parts = arranged(self._source.entries, namings)
        entries = {name: self._joined(name, parts) for name, parts in self._parts.items()}
        self._scales = Scales(None if self.format else _own(folder, entries), entries)
        self.storage = self._scales.storage
        self.entries: Stored = self._scales.entries

    @property
    def listing(self) -> Path:
        """The file to name for missing tensors."""
        return self._source.listing

    @property
    def files(self) -> list[Path]:
        return sorted(self._source.files)

    def float_dtype(self, storage: Storage) -> torch.dtype:
        """The dtype that holds every matrix that `storage` leaves in floats: theirs, or float32 if there are several.

        A foreign format's matrix that becomes floats is a float32 one.
        """
        found = set()
        for name, (shape, dtype) in self.entries.items():
            if name.endswith(".weight") and len(shape) == 2 and dtype.is_floating_point:
                if not self.kinds(name):
                    found.add(dtype)
                elif (storage.head if name.startswith(HEADS) else storage.scheme) == FLOAT:
                    found.add(torch.float32)
        return found.pop() if len(found) == 1 else torch.float32

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
        self._check_head(wanted.keys() - names, names - wanted.keys())
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
        _check_finite(name, tensor)
        return tensor

    def _check_head(self, lacking: Set[str], unknown: Set[str]) -> None:
        """Raises CheckpointError for a folder with another head, or none, in place of a language model's."""
        classifier = [name for name in self._source.entries if _CLASSIFIER.match(name)]
        heads = {name for name in lacking if name.startswith(_LANGUAGE_HEADS)}
        if heads and all(name.startswith(_OTHER_HEADS) for name in lacking - heads):
            found = f"the head of a classifier ({listed(classifier)})" if classifier else "no head at all"
        elif not lacking and unknown and unknown <= set(classifier):
            found = f"also the head of a classifier ({listed(classifier)})"
        else:
            return
        raise CheckpointError(
            f"{self.listing.name} has {found}, but filling and scoring need a language model's; "
            "use the model that it was made from"
        )

    def form(self, name: str) -> Scheme | None:
        """The scheme that has exactly the numbers of a matrix of a foreign format; None for other tensors."""
        if self._quantized is None:
            return None
        first, *rest = (self._quantized.form(part) for part in self._parts[name])
        return first if all(same_numbers(first, other) for other in rest) else None

    def kinds(self, name: str) -> set[str]:
        """The format's words for how a matrix is quantized; none for a tensor of floats."""
        if self._quantized is None:
            return set()
        return {kind for part in self._parts[name] if (kind := self._quantized.kind(part)) is not None}

    def stored(self, name: str, part: Slice | None = None) -> Tensors:
        """The tensors of a matrix's `form`, or those of a slice of the matrix. They may be views of a file.

        Raises CheckpointError for a cut through a group, for NaN and for infinity.
        """
        assert self._quantized is not None
        pieces = [self._quantized.stored(own, within) for own, within in self._pieces(name, part)]
        joined = {leaf: torch.cat([piece[leaf] for piece in pieces]) for leaf in pieces[0]} if pieces[1:] else pieces[0]
        for tensor in joined.values():
            _check_finite(name, tensor)
        return joined

    def chosen(self, source: object, scheme: str | None, group_size: int | None, head: str | None) -> Storage:
        """The storage in memory, from that of the files and the options; `source` is for messages.

        A foreign format's embedding and head become floats with the blocks, and floats among them INT8 with blocks that
        `scheme` quantizes, unless `head` says something else.
        Raises CheckpointError if weights in this project's own form cannot be loaded with these options.
        """
        if self._quantized is None:
            return Storage.chosen(source, self.storage, scheme, group_size, head)
        own = preferred(self.matrices())
        if head is None and scheme is not None and FLOAT in (scheme, own.head):
            head = scheme_facts(scheme).default_head
        return own.replaced(scheme, group_size, head)

    def matrices(self) -> list[Matrix]:
        """The matrices of embedding, blocks and head, as the files have them."""
        wanted = [n for n, (shape, _) in self.entries.items() if n.endswith(".weight") and len(shape) == 2]
        return [
            Matrix(
                name, (self.entries[name][0][0], self.entries[name][0][1]), self.form(name), frozenset(self.kinds(name))
            )
            for name in wanted
            if name.startswith(HEADS) or _LAYER.match(name)
        ]

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
        pieces = [self._source.read(own, within) for own, within in self._pieces(name, part)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _pieces(self, name: str, part: Slice | None) -> Iterator[tuple[str, Slice | None]]:
        """The published parts of a tensor, and the slices of them that make a slice of it."""
        names, start = self._parts[name], 0
        for own in names:
            if len(names) == 1 or part is None or part.dim:
                yield own, part
                continue
            rows = self._source.entries[own][0][0]
            within = part.within(start, rows)
            if within.spans:
                yield own, within
            start += rows

    def _joined(self, name: str, parts: tuple[str, ...]) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a tensor of several parts: floats of several dtypes have the one that holds them all."""
        (shape, dtype), *rest = (self._source.entries[part] for part in parts)
        for part, (other, kind) in zip(parts[1:], rest, strict=True):
            if dtype.is_floating_point and kind.is_floating_point:
                dtype = kind = torch.promote_types(dtype, kind)
            if (other[1:], kind, len(other)) != (shape[1:], dtype, len(shape)) or not shape:
                raise CheckpointError(
                    f"{part} is {list(other)} {kind}, {parts[0]} {list(shape)} {dtype}: no parts of one {name}"
                )
        return (
            ((sum(self._source.entries[part][0][0] for part in parts), *shape[1:]), dtype) if rest else (shape, dtype)
        )


def _own(folder: Path, entries: Stored) -> Storage | None:
    """The storage that a folder in this project's own form states, or that its shapes show."""
    return Storage.read(folder) if (folder / "config.json").exists() else inferred(entries)


def _check_finite(name: str, tensor: Tensor) -> None:
    """Raises CheckpointError for NaN and infinity."""
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.aminmax()  # NaN if there is one; unlike isfinite without a copy
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise CheckpointError(f"{name} holds NaN or infinity")


def _num_layers(names: Iterable[str]) -> int:
    return 1 + max((int(match[1]) for name in names if (match := _LAYER.match(name))), default=-1)
