"""The base that an adapter is read for: a network's shapes and names, and the slices of this rank."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor

from model.config import CheckpointError
from model.naming import Naming, Place, placed
from model.network import Network, Norm
from model.parallel import ALONE, Ranks
from model.sharding import ShardSpec, Slice, cuts_of
from quant.linear import Linear, Weight


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of a tensor of this network: `start` and `length` among its `whole` rows."""

    path: str
    start: int
    length: int
    whole: int


class AdapterTarget:
    """A loaded network, or a rank's part of one, and its family's names of the tensors."""

    def __init__(self, model: Network, namings: Sequence[Naming] = (), ranks: Ranks = ALONE) -> None:
        self.model = model
        self.architecture = model.architecture
        self.namings = namings
        self.ranks = ranks
        self._cuts = cuts_of(model.architecture)

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The layers that can have low-rank products: path → (outputs, inputs) of the whole matrix."""
        model = self.model
        if self.ranks.size > 1:
            with torch.device("meta"):
                model = Network(self.architecture)
        found = ((path, m) for path, m in model.named_modules() if isinstance(m, Linear) or path == "lm_head")
        return {path: (m.out_features, m.in_features) for path, m in found if isinstance(m, Weight)}

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify a base among those of one shape, whatever its quantization.

        They are a hash of the scales and biases of all norms, in float16.
        """
        digest = sha256()
        for norm in self.model.modules():
            if isinstance(norm, Norm):
                for parameter in norm.parameters(recurse=False):
                    digest.update(parameter.detach().cpu().half().numpy().tobytes())
        return digest.hexdigest()[:16]

    def stretch(self, path: str) -> Stretch:
        """The rows of a linear that a published or canonical path names. Raises CheckpointError if it names no
        linear."""
        place = self._place(path, "weight")
        if place is None or place.name not in self.linears:
            raise CheckpointError(f"{path} is not a linear layer of this model")
        whole = self.linears[place.name][0]
        start, length = self._rows(place, whole)
        return Stretch(place.name, start, length, whole)

    def bias(self, path: str) -> Stretch | None:
        """The stretch of the bias of a linear or a norm; None if there is no such bias."""
        place = self._place(path, "bias")
        modules = dict(self.model.named_modules())
        module = modules.get(place.name) if place is not None else None
        if place is None or not isinstance(module, Linear | Norm) or module.bias is None:
            return None
        whole = self.linears[place.name][0] if place.name in self.linears else len(module.bias)
        return Stretch(place.name, *self._rows(place, whole), whole)

    def cut(self, path: str, leaf: str) -> ShardSpec | None:
        """The division of a tensor among ranks; None if this rank has all of it."""
        return self._cuts(f"{path}.{leaf}") if self.ranks.size > 1 else None

    def own(self, cut: ShardSpec, length: int) -> Slice:
        """This rank's slice of a tensor with `length` along the cut.

        Raises UsageError if the ranks do not divide the length.
        """
        return cut.part(length, self.ranks.rank, self.ranks.size)

    def called(self, name: str, paths: Iterable[str]) -> bool:
        """Whether `name` is the end of a linear's path, in the layout to which all `paths` belong."""
        for naming in (*self.namings, Naming({})):
            published = {naming.bare(p) for path in self.linears for p in self._published(naming, path)}
            if all(naming.bare(path) in published for path in paths):
                return any(ends_with(path, name) for path in published)
        return False

    def _place(self, path: str, leaf: str) -> Place | None:
        place = placed(f"{path}.{leaf}", self.namings)
        found, _, kind = place.name.rpartition(".")
        return place._replace(name=found) if kind == leaf else None

    def _published(self, naming: Naming, path: str) -> Iterator[str]:
        return (name.removesuffix(".weight") for name in naming.published(f"{path}.weight"))

    def _rows(self, place: Place, whole: int) -> tuple[int, int]:
        """Start and length of a part: only queries, keys and values are published apart."""
        if place.parts == 1:
            return 0, whole
        sections = self.architecture.qkv_sections
        return sum(sections[: place.part]), sections[place.part]


def ends_with(path: str, name: str) -> bool:
    """Whether a path ends with the name, in whole parts between dots."""
    return path == name or path.endswith(f".{name}")


def put(tensor: Tensor, model: Network) -> Tensor:
    """An adapter's tensor [...] on the network's device, in its dtype, contiguous."""
    return tensor.to(model.device, model.dtype).contiguous()
