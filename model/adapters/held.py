"""The adapters that a network holds, by number. They come and go between steps; each row uses one or none."""

from collections.abc import Sequence

from model.adapters.adapter import Adapter, Prefix
from model.network import Network, Norm
from quant.adapted import Adapted, Selection
from quant.linear import Weight


class HeldAdapters:
    """The adapters of a network's layers. Numbers are positive; 0 is none."""

    def __init__(self, model: Network) -> None:
        self._model = model
        self._selection = Selection(model.device)
        self._held: dict[int, Adapter] = {}

    def add(self, number: int, adapter: Adapter) -> None:
        """Adds an adapter that was read for this network, under a number."""
        self._held[number] = adapter
        for path, pieces in adapter.pieces.items():
            self._layer(path).pieces[number] = pieces
        for path, bias in adapter.biases.items():
            self._layer(path).biases[number] = bias

    def drop(self, number: int) -> None:
        """Removes an adapter that no row uses any more."""
        adapter = self._held.pop(number)
        for path in (*adapter.pieces, *adapter.biases):
            module = self._model.get_submodule(path)
            if isinstance(module, Weight | Norm) and module.adapted is not None:
                module.adapted.drop(number)
                if module.adapted.empty:
                    module.adapted = None

    def select(self, numbers: Sequence[int]) -> None:
        """Sets the adapter number of each row, for the products that follow."""
        if self._held:
            self._selection.select(numbers)

    def prefix(self, number: int) -> Prefix:
        """The prefix of an adapter that has one."""
        prefix = self._held[number].prefix
        assert prefix is not None
        return prefix

    def get(self, number: int) -> Adapter:
        """The adapter with this number."""
        return self._held[number]

    def _layer(self, path: str) -> Adapted:
        module = self._model.get_submodule(path)
        assert isinstance(module, Weight | Norm)
        if module.adapted is None:
            module.adapted = Adapted(self._selection)
        return module.adapted
