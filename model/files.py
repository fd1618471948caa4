"""The files of a checkpoint folder, as one source of tensors under their published names."""

from pathlib import Path

from model.contents import unread
from model.indexed_files import IndexedFiles
from model.pickle_file import PickleFile
from model.rank_folders import num_ranks, ranked
from model.safetensors_file import SafetensorsFile
from model.sat import TRACKERS, sat_folder
from model.sharding import ShardSpecs
from model.source import Source


def open_files(folder: Path, cuts: ShardSpecs = lambda name: None) -> Source:
    """The tensors as they are stored: of folders of `quantize --tp` first, then safetensors, pickles, and ranks.

    `cuts` is the division among model-parallel ranks, by the names in the files. Raises CheckpointError for files that
    are missing or unreadable.
    """
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
        raise unread(folder)
    return SafetensorsFile(single)
