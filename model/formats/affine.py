"""Matrices of codes with a scale, and perhaps a zero, for a group of inputs or a whole row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import CheckpointError
from model.formats.packed_source import Packed
from quant.scheme import IntegerScheme, Scheme, Tensors

SCALES = (torch.float16, torch.bfloat16, torch.float32)

Rows = Callable[[int, int], Tensor]  # (start, count) → the values of `count` rows


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an affine matrix, some rows at a time.

    `codes` gives [count, inputs], centred so that a symmetric code is itself; `scales` [count, groups]; `zeros` [count,
    groups] the code of zero (None: 0 everywhere). `groups` [inputs] is the group of each input, None if they follow
    each other in groups of one size.
    """

    codes: Rows
    scales: Rows
    zeros: Rows | None = None
    groups: Tensor | None = None


class Affine(Packed):
    """(code − zero) · scale. `scheme` is the one that has these codes, if their scales and zeros allow it."""

    def __init__(self, shape: tuple[int, int], kind: str, parts: Parts, scheme: IntegerScheme | None) -> None:
        super().__init__(shape, kind if parts.groups is None else f"{kind} in act-order")
        self._parts, self._scheme = parts, scheme

    def numbers(self, start: int, count: int) -> Tensor:
        codes, scales = self._parts.codes(start, count).float(), self._parts.scales(start, count).float()
        zeros = None if self._parts.zeros is None else self._parts.zeros(start, count).float()
        if self._parts.groups is not None:
            order = self._parts.groups
            codes = codes if zeros is None else codes - zeros[:, order]
            return codes * scales[:, order]
        grouped = codes.view(count, scales.shape[1], -1)
        grouped = grouped if zeros is None else grouped - zeros[..., None]
        return (grouped * scales[..., None]).flatten(1)

    def exact(self) -> Scheme | None:
        if self._scheme is None or self._parts.groups is not None:
            return None
        scales = self._parts.scales(0, self.shape[0])
        if not torch.equal(scales.to(self._scheme.scale_dtype).double(), scales.double()):
            return None
        if self._parts.zeros is not None and bool(self._parts.zeros(0, self.shape[0]).any()):
            return None
        return self._scheme

    def stored(self, start: int, count: int) -> Tensors:
        assert self._scheme is not None
        scales = self._parts.scales(start, count).to(self._scheme.scale_dtype)
        groups = self.shape[1] // (self._scheme.group_size or self.shape[1])
        scales = scales.repeat_interleave(groups // scales.shape[1], dim=1)
        return self._scheme.stored(self._parts.codes(start, count).contiguous(), scales)


def group_order(groups: Tensor, name: str, count: int, size: int) -> Tensor | None:
    """The group of each input [inputs], int64, from a tensor of the files; None if inputs follow in groups of `size`.

    Raises CheckpointError, naming the tensor, for a group that is none of `count`.
    """
    groups = groups.long()
    if bool(((groups < 0) | (groups >= count)).any()):
        raise CheckpointError(f"{name} names groups from {int(groups.min())} to {int(groups.max())}, there are {count}")
    inputs = len(groups)
    regular = inputs % size == 0 and torch.equal(groups, torch.arange(inputs) // size)
    return None if regular else groups
