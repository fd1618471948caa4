"""Folders of Megatron, DeepSpeed and SwissArmyTransformer: one file per model-parallel rank."""

import re
from pathlib import Path

from model.config import CheckpointError
from model.pickle_file import PickleFile
from model.ranked import Ranked
from model.sharding import ShardSpecs

TRACKERS = ("latest", "latest_checkpointed_iteration.txt")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SAME = ("iteration", "global_steps")  # what training counts


def sat_folder(folder: Path, cuts: ShardSpecs) -> Ranked:
    """The tensors of the iteration in a folder's `latest`. Raises CheckpointError for ranks that are missing or
    differ."""
    iteration = _iteration(folder)
    ranks = [PickleFile(path) for path in _rank_files(iteration)]
    first = ranks[0]
    for rank in ranks[1:]:
        for field in _SAME:
            if first.state.get(field) != rank.state.get(field):
                raise CheckpointError(
                    f"{rank.listing}: {field} {rank.state.get(field)}, "
                    f"{first.listing.name} has {first.state.get(field)}"
                )
    size = first.state.get("mp_world_size", len(ranks))
    if size != len(ranks):
        raise CheckpointError(f"{iteration}: written by {size} ranks, there are files of {len(ranks)}")
    return Ranked(iteration, ranks, cuts)


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
