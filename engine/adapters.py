"""A rank's adapters: a thread of their own reads them, so that no step waits for a file."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch

from model.adapters.adapter import Adapter
from model.adapters.held import HeldAdapters
from model.adapters.reading import read_adapter
from model.adapters.target import AdapterTarget
from model.config import CheckpointError


class Adapters:
    """Adapters by number; 0 is none. Each is `read`, then attached, later dropped, in the same order on all ranks.

    A relative path leads down from `root`, and nothing outside the root is read for it.
    """

    def __init__(self, target: AdapterTarget) -> None:
        self.root: Path | None = None
        self._target = target
        self.held = HeldAdapters(target.model)
        self._reading: dict[int, Future[Adapter]] = {}

    def read(self, number: int, path: str, done: Callable[[], object] = lambda: None) -> None:
        """Starts to read an adapter's folder. The reading thread calls `done` at its end."""
        future = self._reading[number] = Future()
        try:
            threading.Thread(target=self._read, args=(Path(path), future, done), daemon=True).start()
        except RuntimeError:  # the system has no thread left: this ends the adapter, not the engine
            future.set_exception(CheckpointError("there is no thread left to read the adapter in"))
            done()

    def attach(self, number: int) -> Adapter:
        """Adds an adapter that has been read to the network, on all ranks or on none.

        Raises CheckpointError for an adapter that cannot be used.
        """
        future = self._reading.pop(number)
        error = future.exception()
        ranks = self._target.ranks
        if ranks.size > 1 and not ranks.all_gather(torch.tensor([int(error is None)])).all() and error is None:
            error = CheckpointError("another rank could not read the adapter")
        if error is not None:
            raise error
        self.held.add(number, future.result())
        return future.result()

    def drop(self, number: int) -> None:
        """Removes an adapter that no row uses any more."""
        self.held.drop(number)

    def _read(self, folder: Path, future: "Future[Adapter]", done: Callable[[], object]) -> None:
        torch.set_num_threads(1)  # of this thread; the steps have all others
        try:
            if folder.is_absolute():
                future.set_result(read_adapter(folder, self._target))
            elif self.root is None:
                raise CheckpointError(f"adapter {folder.name}: there is no folder that it is below")
            else:
                future.set_result(read_adapter(self.root / folder, self._target, self.root))
        except CheckpointError as error:
            future.set_exception(error)
        except Exception as error:
            future.set_exception(CheckpointError(f"adapter {folder.name}: {type(error).__name__} while it was read"))
        done()
