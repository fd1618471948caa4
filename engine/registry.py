"""The adapters that are loaded, by name: who uses them, and which makes way for another. No tensors."""

import threading
from dataclasses import dataclass

from engine.events import AdapterCard
from engine.requests import RequestError


@dataclass(slots=True, eq=False)
class Entry:
    """A loaded adapter, how many requests go by it, and when one last began to. `pinned` ones, which the operator
    started with, never make way."""

    number: int
    card: AdapterCard
    pinned: bool = False
    uses: int = 0
    used_at: int = 0


class Registry:
    """At most `limit` adapters. Requests take them from one thread and give them back from another."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: dict[str, Entry] = {}
        self._loading: dict[int, str] = {}
        self._numbers = self._clock = 0
        self._lock = threading.Lock()

    @property
    def cards(self) -> list[AdapterCard]:
        with self._lock:
            return [entry.card for entry in self._entries.values()]

    def begin(self, name: str) -> int:
        """The number of an adapter that is to be loaded. Raises RequestError for a name that is taken."""
        with self._lock:
            if name in self._entries or name in self._loading.values():
                raise RequestError(f"adapter {name!r} is there already; unload it first", "name", "adapter_exists")
            self._numbers += 1
            self._loading[self._numbers] = name
            return self._numbers

    def fail(self, number: int) -> None:
        """It could not be loaded after all."""
        with self._lock:
            del self._loading[number]

    def enter(self, entry: Entry) -> Entry | None:
        """Takes up an adapter that is loaded; gives the one that has made way: unused, and used least recently.

        Raises RequestError where all are in use.
        """
        with self._lock:
            gone = None
            if len(self._entries) >= self.limit:
                unused = [e for e in self._entries.values() if not e.uses and not e.pinned]
                if not unused:
                    message = f"all {self.limit} adapters are in use, or were there from the start; unload one first"
                    raise RequestError(message, "name", "adapters_full")
                gone = min(unused, key=lambda e: e.used_at)
                del self._entries[gone.card.name]
            del self._loading[entry.number]
            self._touch(entry)
            self._entries[entry.card.name] = entry
            return gone

    def remove(self, name: str) -> Entry:
        """Takes an adapter out. Raises RequestError for one that is not there or in use."""
        with self._lock:
            entry = self._found(name, "name")
            if entry.uses:
                message = f"adapter {name!r} is in use by {entry.uses} requests"
                raise RequestError(message, "name", "adapter_in_use")
            return self._entries.pop(name)

    def take(self, name: str) -> Entry:
        """One more request goes by an adapter. Raises RequestError for one that is not there."""
        with self._lock:
            entry = self._found(name, "adapter")
            entry.uses += 1
            self._touch(entry)
            return entry

    def give_back(self, entry: Entry) -> None:
        """One request less goes by it."""
        with self._lock:
            entry.uses -= 1

    def _found(self, name: str, param: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise RequestError(f"no adapter {name[:80]!r} is loaded", param, "adapter_not_found")
        return entry

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.used_at = self._clock
