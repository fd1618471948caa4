"""The changes that adapters make to one layer: low-rank products (LoRA, arXiv 2106.09685) and other biases.

Each row of a batch uses one adapter or none, over one copy of the layer's weight. A row's bits do not depend on the
rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.operators.add_low_rank import add_low_rank


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A product up · down · x that is added to a layer's outputs from `first` on: `down` [rank, inputs], `up` [rank,
    width]."""

    down: Tensor
    up: Tensor
    first: int = 0

    @property
    def last(self) -> int:
        """Index one past the last output that the product changes."""
        return self.first + self.up.shape[1]


class Selection:
    """The adapter of each row in the next products. All layers of a network share it. Adapters are numbers; 0 is
    none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.select(())

    def select(self, adapters: Sequence[int]) -> None:
        """Sets the adapter number of each row, for the products that follow."""
        found: dict[int, list[int]] = {}
        for row, number in enumerate(adapters):
            if number:
                found.setdefault(number, []).append(row)
        self.rows = {number: torch.tensor(rows, device=self._device) for number, rows in found.items()}
        self._entries: dict[tuple[tuple[int, int], ...], tuple[Tensor, list[int]]] = {}

    def entries(self, pieces: tuple[tuple[int, int], ...]) -> tuple[Tensor, list[int]]:
        """Arguments of `add_low_rank`: pairs (row, piece) [entries, 2], and the number of rows of each piece.

        `pieces` has (adapter number, number of its pieces) for each adapter of the layer.
        """
        if pieces not in self._entries:
            rows = [self.rows[number] for number, count in pieces for _ in range(count)]
            entries = [torch.stack([own, torch.full_like(own, piece)], dim=1) for piece, own in enumerate(rows)]
            self._entries[pieces] = torch.cat(entries), [len(own) for own in rows]
        return self._entries[pieces]


class Adapted:
    """The changes that adapters make to one layer, by adapter number."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.pieces: dict[int, tuple[LowRank, ...]] = {}
        self.biases: dict[int, Tensor] = {}  # added to the layer's own bias, [outputs] each

    def drop(self, number: int) -> None:
        """Removes an adapter's changes from the layer."""
        self.pieces.pop(number, None)
        self.biases.pop(number, None)

    @property
    def empty(self) -> bool:
        """Whether no adapter changes the layer."""
        return not self.pieces and not self.biases

    def added(self, out: Tensor, x: Tensor) -> Tensor:
        """Adds the changes to the outputs [rows, outputs] for the inputs x [rows, inputs]. It may overwrite `out`."""
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
