"""Names of tensors in published checkpoints, as data.

The network's own names, called canonical here, are accepted in every layout.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from model.config import CheckpointError

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_WRAPPERS = ("module.",)  # a wrapper of data-parallel training

# Tied duplicates: a tensor that must equal another one where the network has no place for it.
COPIES = {
    "lm_head.weight": "word_embeddings.weight",
    "lm_head.weight_scale": "word_embeddings.weight_scale",
    "mlm_head.decoder.weight": "word_embeddings.weight",
    "mlm_head.weight": "word_embeddings.weight",
    "mlm_head.decoder.bias": "mlm_head.bias",
}
# Known tensors that a network may have no place for.
SPARE = (
    "pooler.weight",
    "pooler.bias",
    "next_sentence.weight",
    "next_sentence.bias",
    "transformer.position_embeddings.weight",  # ESM-2's first files have one beside their rotary positions
)


class Place(NamedTuple):
    """The place of a published tensor: a part of a canonical tensor, whose parts are joined along the rows."""

    name: str
    part: int = 0
    parts: int = 1


class Naming:
    """The tensor names of one published layout.

    `modules` maps a canonical module path to its published path, or to several whose tensors are its rows, one below
    the other; `{i}` is a layer's number. It omits paths that are the same. A path may begin with any of `prefixes`, in
    the file and in `modules`. `unused` are patterns, as in a shell, of tensors that the network does not need. `leaves`
    are old names of weight and bias. The weights of published modules whose path ends with one of `turned` have a row
    for each input.
    """

    def __init__(
        self,
        modules: Mapping[str, str | tuple[str, ...]],
        prefixes: tuple[str, ...] = (),
        unused: tuple[str, ...] = (),
        leaves: Mapping[str, str] | None = None,
        turned: tuple[str, ...] = (),
    ) -> None:
        self.modules = {path: (found,) if isinstance(found, str) else found for path, found in modules.items()}
        self.prefixes = (*_WRAPPERS, *prefixes)
        self.unused = unused
        self.leaves = dict(leaves or {})
        self._turned = tuple(f".{path}.weight" for path in turned)
        self._places = {
            self.bare(path): Place(canonical, part, len(paths))
            for canonical, paths in self.modules.items()
            for part, path in enumerate(paths)
        }

    def place(self, name: str) -> Place | None:
        """The place of a published tensor; None if `modules` does not name it."""
        path, _, leaf = self.bare(name).rpartition(".")
        numbers = _LAYER.findall(f"{path}.")
        found = self._places.get(_LAYER.sub("{i}", f"{path}.")[:-1]) if len(numbers) < 2 else None
        if found is None:
            return None
        canonical = found.name.replace("{i}", numbers[0]) if numbers else found.name
        return found._replace(name=f"{canonical}.{self.leaves.get(leaf, leaf)}")

    def published(self, name: str) -> tuple[str, ...]:
        """The published names of the parts of a canonical tensor."""
        path, _, leaf = name.rpartition(".")
        numbers = _LAYER.findall(f"{path}.")
        found = self.modules.get(_LAYER.sub("{i}", f"{path}.")[:-1])
        return (name,) if found is None else tuple(f"{p.replace('{i}', ''.join(numbers))}.{leaf}" for p in found)

    def bare(self, name: str) -> str:
        """A name without its prefixes."""
        while prefix := next((p for p in self.prefixes if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        return name

    def turns(self, name: str) -> bool:
        """Whether a published tensor is a matrix with a row for each input."""
        return name.endswith(self._turned) and self.place(name) is not None

    def skips(self, name: str) -> bool:
        """Whether the network does not need a published tensor."""
        return any(fnmatchcase(known, pattern) for pattern in self.unused for known in (name, self.bare(name)))


def placed(name: str, namings: Sequence[Naming]) -> Place:
    """The place of a published tensor. A name in no layout is canonical."""
    for naming in namings:
        if (place := naming.place(name)) is not None:
            return place
    bare = name
    for naming in namings:
        bare = naming.bare(bare)
    return Place(bare)


def arranged(names: Iterable[str], namings: Sequence[Naming]) -> dict[str, tuple[str, ...]]:
    """Canonical name → published names of its parts, for all tensors of a checkpoint that the network needs.

    Raises CheckpointError for parts that are missing or duplicate.
    """
    found: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for published in names:
        if any(naming.skips(published) for naming in namings):
            continue
        place = placed(published, namings)
        parts = found.setdefault(place.name, {})
        if place.part in parts or counts.setdefault(place.name, place.parts) != place.parts:
            raise CheckpointError(f"{parts.get(place.part, next(iter(parts.values())))} is also there as {published}")
        parts[place.part] = published
    for name, parts in found.items():
        if len(parts) < counts[name]:
            raise CheckpointError(f"{', '.join(parts.values())} without the other parts of {name}")
    return {name: tuple(parts[part] for part in sorted(parts)) for name, parts in found.items()}
