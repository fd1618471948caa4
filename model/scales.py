"""Scales of quantized weights as published, in the form in which the schemes store them."""

from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from model.config import CheckpointError
from model.storage import Storage
from quant.packing import unpack_nibbles
from quant.schemes import Int4, Stored

_HEADS = ("word_embeddings.", "lm_head.")


class Scales:
    """Brings a folder's scales, by canonical name, to the shapes and dtypes of its storage, without any loss.

    Published are float16 scales, one a row; of a matrix that was quantized after its inputs were divided among
    model-parallel ranks one a row and rank, which int4 can hold: as groups that divide a rank's inputs. Where no scheme
    holds them, the folder is a float one: of the float32 numbers that codes and scales mean.
    """

    def __init__(self, storage: Storage | None, entries: Stored) -> None:
        self.entries = dict(entries)
        self._scale_of: dict[str, str] = {}  # of the weights that are given as float32
        self._bits = 8
        self._groups: dict[str, int] = {}  # scales a row, where they are repeated
        self.storage = storage
        if storage is None:
            return
        names = [n for n in entries if n.endswith(".weight_scale") and n.removesuffix("_scale") in entries]
        blocks = [name for name in names if not name.startswith(_HEADS)]
        divided = [name for name in blocks if len(entries[name][0]) == 2]
        if storage.scheme == "int8":
            if divided:
                self._mean(names, 8)
                return
        elif storage.scheme == "int4" and not storage.group_size and divided:
            spans = [self._inputs(name) // (*entries[name][0], 1)[1] for name in blocks]
            size = next((size for size in sorted(Int4.GROUPS)[:0:-1] if gcd(*spans) % size == 0), None)
            if size is None:
                self._mean(names, 4)
                return
            self.storage = replace(storage, group_size=size)
            self._groups = {name: self._inputs(name) // size for name in blocks}
        _, head = storage.schemes(torch.float32, "cuda")
        if isinstance(head, Int4) and head.group_size:
            rows = (name for name in names if name.startswith(_HEADS) and len(entries[name][0]) == 1)
            self._groups |= {name: self._inputs(name) // head.group_size for name in rows}
        for name in names:
            shape, dtype = entries[name]
            if name in self._groups:
                self.entries[name] = (shape[0], self._groups[name]), dtype
            elif self._widened(name) and dtype == torch.float16:
                self.entries[name] = shape, torch.float32

    def _mean(self, names: list[str], bits: int) -> None:
        """Makes the folder a float one."""
        self.storage, self._bits = None, bits
        for name in names:
            weight = name.removesuffix("_scale")
            rows, width = self.entries[weight][0]
            self.entries[weight] = (rows, width * 8 // bits), torch.float32
            del self.entries[name]
            self._scale_of[weight] = name

    def scale_of(self, name: str) -> str | None:
        """The scales of a weight that is given as the numbers it means."""
        return self._scale_of.get(name)

    def repeats(self, name: str) -> bool:
        """Whether scales have another shape in the files than here."""
        return name in self._groups

    def meant(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The float32 numbers of a matrix with scales [rows] or [rows, ranks], exactly."""
        numbers = (unpack_nibbles(codes) if self._bits == 4 else codes).float()
        ranks = scale.float().reshape(len(scale), -1)
        return numbers.mul_(ranks.repeat_interleave(numbers.shape[1] // ranks.shape[1], dim=1))

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the folder as the scheme has it."""
        if name in self._groups:
            ranks = tensor.reshape(len(tensor), -1)
            return ranks.repeat_interleave(self._groups[name] // ranks.shape[1], dim=1)
        return tensor.to(self.entries[name][1])

    def _widened(self, name: str) -> bool:
        """Whether the scheme's scales are float32."""
        assert self.storage is not None
        return (self.storage.head if name.startswith(_HEADS) else self.storage.scheme) == "int8"

    def _inputs(self, name: str) -> int:
        """Of an int4 weight."""
        return 2 * self.entries[name.removesuffix("_scale")][0][-1]


def inferred(entries: Stored) -> Storage | None:
    """How a folder without config.json is stored: the published quantized forms of GLM-130B's do not say themselves.

    Raises CheckpointError for what is neither int8 nor int4.
    """
    layer = "transformer.layers.0."
    norm, weight = (
        entries.get(f"{layer}input_layernorm.weight"),
        entries.get(f"{layer}attention.query_key_value.weight"),
    )
    if weight is None or norm is None or f"{layer}attention.query_key_value.weight_scale" not in entries:
        return None
    bits = {1: 8, 2: 4}.get(norm[0][0] // max(weight[0][-1], 1))
    if bits is None:
        raise CheckpointError(f"{layer}attention.query_key_value.weight has shape {list(weight[0])}, in no known form")
    return Storage.published(bits, "word_embeddings.weight_scale" in entries)
