"""Files with an index, which maps each tensor to its file."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from model.config import CheckpointError, damaged
from model.contents import listed
from model.sharding import Slice
from model.source import Source
from quant.scheme import Stored


class IndexedFiles:
    """The tensors of the files in an index of the hub's form (`weight_map`).

    Raises CheckpointError for an index that is no such JSON, and for files that differ from it.
    """

    def __init__(self, index: Path, opened: Callable[[Path], Source]) -> None:
        """Raises CheckpointError where files and index differ."""
        placed = _placed(index)
        self.listing = index
        self.entries: Stored = {}
        self._sources: dict[str, Source] = {}
        paths = sorted({index.parent / file for file in placed.values()})
        if absent := [path.name for path in paths if not path.exists()]:
            raise CheckpointError(f"{index}: names {listed(absent)}, not in the folder")
        for path in paths:
            source = opened(path)
            for name, entry in source.entries.items():
                if placed.pop(name, None) != path.name:
                    raise CheckpointError(f"{path.name} has {name}, which {index.name} does not place there")
                self.entries[name], self._sources[name] = entry, source
        if placed:
            name = next(iter(placed))
            raise CheckpointError(f"{placed[name]} lacks {name}, which {index.name} places there")

    @property
    def files(self) -> list[Path]:
        return sorted({path for source in self._sources.values() for path in source.files})

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        return self._sources[name].read(name, part)


def _placed(index: Path) -> dict[str, str]:
    """Tensor name → file name, of an index file. Raises CheckpointError."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(file).name == file and file not in ("", "..") for file in placed.values()):
            raise ValueError("a file outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, f"not an index of {index.name.split('.')[1]} files ({error!r})") from None
    return dict(placed)
