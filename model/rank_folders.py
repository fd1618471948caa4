"""Folders that `quantize --tp` has cut: one folder per rank, each with its files and index."""

import json
from pathlib import Path

from model.config import CheckpointError
from model.indexed_files import IndexedFiles
from model.ranked import Ranked
from model.safetensors_file import SafetensorsFile
from model.sharding import ShardSpecs

INDEX = "model.safetensors.index.json"


def rank_folder(folder: Path, rank: int, size: int) -> Path:
    """The folder of one rank's tensors; the folder itself if there is one rank."""
    return folder / f"rank-{rank}-of-{size}" if size > 1 else folder


def num_ranks(folder: Path) -> int:
    """Number of ranks that a folder's tensors are divided among, from its config.json.

    Raises CheckpointError for a `tp` that is not 1 to 64.
    """
    path = folder / "config.json"
    if not path.exists():
        return 1
    described = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    size = described.get("tp", 1) if isinstance(described, dict) else 1
    if type(size) is not int or not 0 < size <= 64:
        raise CheckpointError(f"{path}: tp of quantization_config must be a number from 1 to 64, not {size!r}")
    return size


def ranked(folder: Path, size: int, cuts: ShardSpecs) -> Ranked:
    """The tensors of all ranks. Raises CheckpointError for a missing or wrong folder."""
    indices = [rank_folder(folder, rank, size) / INDEX for rank in range(size)]
    return Ranked(folder, [IndexedFiles(index, SafetensorsFile) for index in indices], cuts, scales_of_all=True)
