"""Folders of Megatron, DeepSpeed and SwissArmyTransformer: one file a model-parallel rank, read as if undivided."""

import re
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.cuts import Cut, Cuts, merge
from model.pickle_file import PickleFile
from quant.schemes import Stored

TRACKERS = ("latest", "latest_checkpointed_iteration.txt")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SAME = ("iteration", "global_steps")  # what training counts


class SatFolder:
    """The tensors of the iteration that a folder's `latest` names, merged from its ranks.

    Scales of a matrix whose inputs are divided come from each rank's own quantization: they are merged to one a row
    and rank, [outputs, ranks].
    """

    def __init__(self, folder: Path, cuts: Cuts) -> None:
        """`cuts` knows the names in the files. Raises CheckpointError for ranks that are missing or do not agree."""
        self.listing = _iteration(folder)
        self._ranks = [PickleFile(path) for path in _rank_files(self.listing)]
        self._cuts: dict[str, Cut | None] = {}
        self.entries: Stored = {}
        first = self._ranks[0]
        for rank in self._ranks[1:]:
            _check(first, rank)
        if first.state.get("mp_world_size", self.size) != self.size:
            raise CheckpointError(
                f"{self.listing}: written by {first.state['mp_world_size']} ranks, there are files of {self.size}"
            )
        for name, (shape, dtype) in first.entries.items():
            cut = cuts(name)
            if cut is not None and cut.dim >= len(shape):
                shape = (*shape, self.size) if self.size > 1 else shape
            elif cut is not None:
                shape = tuple(n * self.size if dim == cut.dim else n for dim, n in enumerate(shape))
            self.entries[name], self._cuts[name] = (shape, dtype), cut

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self._ranks)

    @property
    def files(self) -> list[Path]:
        return [rank.listing for rank in self._ranks]

    def read(self, name: str) -> Tensor:
        cut = self._cuts[name]
        shards = (rank.read(name) for rank in self._ranks)
        if self.size > 1 and cut is not None and cut.dim >= len(self._ranks[0].entries[name][0]):
            return torch.stack(list(shards), dim=-1)
        try:
            return merge(shards, cut, self.size)
        except ValueError as error:
            raise CheckpointError(f"{self.listing}: {name}: {error}") from None


def _iteration(folder: Path) -> Path:
    """The folder of the ranks' files."""
    trackers = [folder / name for name in TRACKERS if (folder / name).exists()]
    try:
        names = {path.read_text(encoding="utf-8").strip() for path in trackers}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{trackers[0]}: not readable ({error})") from None
    if len(names) > 1:
        raise CheckpointError(f"{trackers[0]} and {trackers[1].name} name different iterations")
    name = names.pop()
    if Path(name).name != name or name in ("", "..") or not (folder / name).is_dir():
        raise CheckpointError(f"{trackers[0]}: names {name[:50]!r}, which is not a folder beside it")
    return folder / name


def _rank_files(folder: Path) -> list[Path]:
    """One for each rank, from 0 on."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _RANK.fullmatch(path.name))}
    for rank in range(max(len(found), 1)):
        if rank not in found:
            raise CheckpointError(f"{folder / f'mp_rank_{rank:02}_model_states.pt'}: no such file")
    return [found[rank] for rank in range(len(found))]


def _check(first: PickleFile, rank: PickleFile) -> None:
    """Raises CheckpointError unless two ranks are of the same checkpoint."""
    for field in _SAME:
        if first.state.get(field) != rank.state.get(field):
            raise CheckpointError(
                f"{rank.listing}: {field} {rank.state.get(field)}, {first.listing.name} has {first.state.get(field)}"
            )
    for name in first.entries.keys() ^ rank.entries.keys():
        raise CheckpointError(f"{rank.listing}: does not hold the same tensors as {first.listing.name}: {name}")
    for name, (shape, dtype) in first.entries.items():
        other, kind = rank.entries[name]
        if (other, kind) != (shape, dtype):
            raise CheckpointError(
                f"{rank.listing}: {name} is {list(other)} {kind}, in {first.listing.name} {list(shape)} {dtype}"
            )
