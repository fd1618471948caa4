"""What adapters change of a layer, row by row: low-rank products (LoRA, arXiv 2106.09685) and other biases.

Rows of one batch may go by different adapters, or by none, over one copy of the layer's weight. A row's bits do not
depend on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.operators.add_low_rank import add_low_rank


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What is added to a layer's outputs from `first` on: up · down · x, `down` [rank, inputs], `up` [rank, width]."""

    down: Tensor
    up: Tensor
    first: int = 0

    @property
    def last(self) -> int:
        """The end of the outputs."""
        return self.first + self.up.shape[1]


class Selection:
    """The rows of the next products by adapter; shared by all layers of a network. Adapters are numbers, 0 is none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.select(())

    def select(self, adapters: Sequence[int]) -> None:
        """Takes the adapter of every row."""
        found: dict[int, list[int]] = {}
        for row, number in enumerate(adapters):
            if number:
                found.setdefault(number, []).append(row)
        self.rows = {number: torch.tensor(rows, device=self._device) for number, rows in found.items()}
        self._entries: dict[tuple[tuple[int, int], ...], tuple[Tensor, list[int]]] = {}

    def entries(self, pieces: tuple[tuple[int, int], ...]) -> tuple[Tensor, list[int]]:
        """Rows with their pieces and the rows that each piece has, as `add_low_rank` takes them, where adapters have so
        many pieces each."""
        if pieces not in self._entries:
            rows = [self.rows[number] for number, count in pieces for _ in range(count)]
            entries = [torch.stack([own, torch.full_like(own, piece)], dim=1) for piece, own in enumerate(rows)]
            self._entries[pieces] = torch.cat(entries), [len(own) for own in rows]
        return self._entries[pieces]


class Adapted:
    """What adapters, by number, change of one layer."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.pieces: dict[int, tuple[LowRank, ...]] = {}
        self.biases: dict[int, Tensor] = {}  # what is added to the layer's own

    def drop(self, number: int) -> None:
        """Forgets an adapter."""
        self.pieces.pop(number, None)
        self.biases.pop(number, None)

    @property
    def empty(self) -> bool:
        return not self.pieces and not self.biases

    def added(self, out: Tensor, x: Tensor) -> Tensor:
        """The layer's outputs [rows, outputs] of x [rows, inputs], which may be overwritten, with what is changed."""
        rows = self.selection.rows
        active = [number for number in rows if number in self.pieces]
        if active:
            out = self._with_products(out, x, active)
        for number, bias in self.biases.items():
            if number in rows:
                out[rows[number]] += bias
        return out

    def _with_products(self, out: Tensor, x: Tensor, active: list[int]) -> Tensor:
        pieces = [piece for number in active for piece in self.pieces[number]]
        entries, counts = self.selection.entries(tuple((number, len(self.pieces[number])) for number in active))
        out = out.contiguous()
        add_low_rank(
            out, x, entries, counts, [p.down for p in pieces], [p.up for p in pieces], [p.first for p in pieces]
        )
        return out
