"""The host of adapters: it loads them, lends them to requests and unloads them."""

import time
from collections.abc import Callable
from dataclasses import replace

from engine.adapters import Adapters
from engine.config import EngineConfig
from engine.events import AdapterCard
from engine.jobs.job import JobContext
from engine.loading import Loaded
from engine.ranks import BroadcastingAdapters
from engine.registry import Entry, Registry
from engine.requests import RequestError
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Prefix
from model.adapters.adapter import Adapter
from model.config import CheckpointError


class AdapterHost:
    """The adapters of an engine. Several threads call `take` and `leave`; only the engine's thread calls the rest."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: Loaded,
        adapters: Adapters | BroadcastingAdapters,
        scheduler: Scheduler,
        job_context: JobContext,
    ) -> None:
        """`job_context` is that of requests without an adapter. The configuration's adapters are read already.

        Raises CheckpointError for a prefix that leaves no room for texts.
        """
        self.registry = Registry(config.max_adapters)
        self._loaded = loaded
        self._adapters = adapters
        self._scheduler = scheduler
        self._job_context = job_context
        self._contexts: dict[int, JobContext] = {}
        self._taken: dict[str, Entry] = {}  # by requests, from when they are prepared until they end
        for name in config.adapters:
            number = self.registry.begin(name)
            self._enter(number, name, loaded.runner.adapters.held.get(number), pinned=True)

    @property
    def cards(self) -> list[AdapterCard]:
        """Cards of the loaded adapters, for clients."""
        return self.registry.cards

    def take(self, name: str, request_id: str) -> JobContext:
        """Lends an adapter to a request until `leave`. Raises RequestError if no such adapter is loaded."""
        entry = self._taken[request_id] = self.registry.take(name)
        return self._contexts[entry.number]

    def number_of(self, request_id: str) -> int:
        """The number of a request's adapter, 0 for none."""
        entry = self._taken.get(request_id)
        return 0 if entry is None else entry.number

    def leave(self, request_id: str) -> None:
        """Ends a request's use of its adapter, when the request ends or does not begin."""
        entry = self._taken.pop(request_id, None)
        if entry is not None:
            self.registry.give_back(entry)

    def begin_loading(self, name: str, path: str, done: Callable[[int], object] = lambda number: None) -> int:
        """Starts to read an adapter's folder in a thread, which calls `done` with the adapter's number at its end.

        Call `finish_loading` then. Raises RequestError for a name that is taken.
        """
        number = self.registry.begin(name)
        self._adapters.read(number, path, lambda: done(number))
        return number

    def finish_loading(self, number: int, name: str) -> AdapterCard:
        """Makes an adapter that has been read available to requests.

        Raises RequestError for an adapter that cannot be used, and if all `max_adapters` adapters are in use.
        """
        try:
            adapter = self._adapters.attach(number)
        except CheckpointError as error:
            self.registry.fail(number)
            raise RequestError(str(error), "path", "invalid_adapter") from None
        try:
            return self._enter(number, name, adapter).card
        except (CheckpointError, RequestError) as error:
            self.registry.fail(number)
            self._adapters.drop(number)
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"adapter {name}: {error}", "path", "invalid_adapter") from None

    def unload(self, name: str) -> None:
        """Removes an adapter. Raises RequestError if it is not loaded or is in use."""
        self._forget(self.registry.remove(name).number)

    def _enter(self, number: int, name: str, adapter: Adapter, pinned: bool = False) -> Entry:
        prefix = adapter.prefix
        length, shift = (0, 0) if prefix is None else (len(prefix), prefix.shift)
        positions = self._loaded.checkpoint.model.architecture.max_sequence_length - shift
        longest = min(self._loaded.longest_behind(length), positions)
        entry = Entry(number, AdapterCard(name, adapter.kind, int(time.time()), length), pinned)
        gone = self.registry.enter(entry)
        if gone is not None:
            self._forget(gone.number)
        limits = replace(self._job_context.card, max_context=longest, max_span=longest, max_positions=longest + 1)
        self._contexts[number] = replace(self._job_context, card=limits) if length else self._job_context
        if length:
            self._scheduler.add_prefix(Prefix(number, length, shift))
        return entry

    def _forget(self, number: int) -> None:
        self._scheduler.forget(number)
        del self._contexts[number]
        self._adapters.drop(number)
