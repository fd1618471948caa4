"""Files with an index, which maps each tensor to its file."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from model.config import CheckpointError
from model.sharding import Slice
from model.source import Source
from quant.scheme import Stored


class IndexedFiles:
    """The tensors of the files in an index of the hub's form (`weight_map`).

    Raises CheckpointError for an index that is no such JSON, and for files that differ from it.
    """

    def __init__(self, index: Path, opened: Callable[[Path], Source]) -> None:
        """Raises CheckpointError where files and index differ."""
        listed = _listed(index)
        self.listing = index
        self.entries: Stored = {}
        self._sources: dict[str, Source] = {}
        for path in sorted({index.parent / file for file in listed.values()}):
            source = opened(path)
            for name, entry in source.entries.items():
                if listed.pop(name, None) != path.name:
                    raise CheckpointError(f"{path.name} has {name}, which {index.name} does not place there")
                self.entries[name], self._sources[name] = entry, source
        if listed:
            name = next(iter(listed))
            raise CheckpointError(f"{listed[name]} lacks {name}, which {index.name} places there")

    @property
    def files(self) -> list[Path]:
        return sorted({path for source in self._sources.values() for path in source.files})

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        return self._sources[name].read(name, part)


def _listed(index: Path) -> dict[str, str]:
    """Tensor name → file name, of an index file. Raises CheckpointError."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(file).name == file and file not in ("", "..") for file in listed.values()):
            raise ValueError("a file outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not an index of {index.name.split('.')[1]} files ({error!r})") from None
    return dict(listed)
