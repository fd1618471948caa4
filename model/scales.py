"""Scales of published quantized weights, converted to the form in which the schemes store them."""

from dataclasses import replace

import torch
from torch import Tensor

from model.config import CheckpointError
from model.storage import Storage
from quant.scheme import IntegerScheme, Scheme, Stored

_HEADS = ("word_embeddings.", "lm_head.")


class Scales:
    """Converts a folder's scales, by canonical name, to the shapes and dtypes of its storage, without loss.

    Published scales are float16, or bfloat16 where the weights were, and there is one per row. A matrix that was
    quantized after its inputs were divided among ranks has one per row and rank; int4 can hold these as groups that
    divide a rank's inputs. If no scheme holds them, the folder counts as a float one: its weights are code × scale in
    float32.
    """

    def __init__(self, storage: Storage | None, entries: Stored) -> None:
        self.entries = dict(entries)
        self._scale_of: dict[str, str] = {}  # weight that is read as float32 → its scales
        self._published: IntegerScheme | None = None  # the scheme of their codes
        self._groups: dict[str, int] = {}  # scales per row, if they are repeated
        self.storage = storage
        if storage is None:
            return
        names = [n for n in entries if n.endswith(".weight_scale") and n.removesuffix("_scale") in entries]
        blocks = [name for name in names if not name.startswith(_HEADS)]
        divided = [name for name in blocks if len(entries[name][0]) == 2]
        self._blocks, self._head = storage.schemes(torch.float32, "cuda")
        if isinstance(self._blocks, IntegerScheme) and not self._blocks.group_size and divided:
            spans = [self._inputs(name) // (*entries[name][0], 1)[1] for name in blocks]
            grouped = self._blocks.grouped_by(spans)
            if grouped is None:
                self._mean(names, self._blocks)
                return
            self.storage = replace(storage, group_size=grouped.group_size)
            self._groups = {name: self._inputs(name) // grouped.group_size for name in blocks}
        if self._head.group_size:
            rows = (name for name in names if name.startswith(_HEADS) and len(entries[name][0]) == 1)
            self._groups |= {name: self._inputs(name) // self._head.group_size for name in rows}
        for name in names:
            shape, dtype = entries[name]
            if name in self._groups:
                self.entries[name] = (shape[0], self._groups[name]), dtype
            elif dtype in (torch.float16, torch.bfloat16) and isinstance(scheme := self._scheme(name), IntegerScheme):
                self.entries[name] = shape, scheme.scale_dtype

    def _mean(self, names: list[str], published: IntegerScheme) -> None:
        """Makes the folder a float one."""
        self.storage, self._published = None, published
        for name in names:
            weight = name.removesuffix("_scale")
            rows, width = self.entries[weight][0]
            self.entries[weight] = (rows, width * 8 // published.facts.bits), torch.float32
            del self.entries[name]
            self._scale_of[weight] = name

    def scale_of(self, name: str) -> str | None:
        """Name of the scales of a weight that is read as float32; None for another tensor."""
        return self._scale_of.get(name)

    def repeats(self, name: str) -> bool:
        """Whether these scales have another shape in the files than in the storage."""
        return name in self._groups

    def meant(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Exact float32 weight [rows, inputs] of stored codes with scales [rows] or [rows, ranks]."""
        assert self._published is not None
        numbers = self._published.codes(codes).float()
        ranks = scale.float().reshape(len(scale), -1)
        return numbers.mul_(ranks.repeat_interleave(numbers.shape[1] // ranks.shape[1], dim=1))

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the folder in the form of its scheme: scales [rows] or [rows, ranks] become [rows, groups].

        Raises CheckpointError for scales that the scheme's dtype does not hold.
        """
        if name in self._groups:
            ranks = tensor.reshape(len(tensor), -1)
            return ranks.repeat_interleave(self._groups[name] // ranks.shape[1], dim=1)
        converted = tensor.to(self.entries[name][1])
        if tensor.dtype == torch.bfloat16 and not torch.equal(converted.to(tensor.dtype), tensor):
            raise CheckpointError(f"{name} has scales that are too small or too large for {converted.dtype}")
        return converted

    def _scheme(self, name: str) -> Scheme:
        """The scheme that stores the weight of these scales."""
        return self._head if name.startswith(_HEADS) else self._blocks

    def _inputs(self, name: str) -> int:
        """The inputs of the weight of these scales."""
        return self.entries[name.removesuffix("_scale")][0][-1] * 8 // self._scheme(name).facts.bits


def inferred(entries: Stored) -> Storage | None:
    """The storage of a folder without config.json, from the shapes of GLM-130B's published quantized forms.

    None for a float folder. Raises CheckpointError for a shape that is neither int8 nor int4.
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
        raise CheckpointError(
            f"{layer}attention.query_key_value.weight has shape {list(weight[0])}, which is neither int8 nor int4"
        )
    return Storage.published(bits, "word_embeddings.weight_scale" in entries)
