"""The registry of loaded adapters by name: who uses them, and which one makes room for another. No tensors."""

import threading
from dataclasses import dataclass

from engine.events import AdapterCard
from engine.requests import RequestError


@dataclass(slots=True, eq=False)
class Entry:
    """A loaded adapter, the number of requests that use it, and the time of its last use.

    A `pinned` one, given at the start by the operator, never makes room.
    """

    number: int
    card: AdapterCard
    pinned: bool = False
    uses: int = 0
    used_at: int = 0


class Registry:
    """At most `limit` adapters. One thread takes them for requests, another gives them back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: dict[str, Entry] = {}
        self._loading: dict[int, str] = {}
        self._numbers = self._clock = 0
        self._lock = threading.Lock()

    @property
    def cards(self) -> list[AdapterCard]:
        """Cards of the loaded adapters."""
        with self._lock:
            return [entry.card for entry in self._entries.values()]

    def begin(self, name: str) -> int:
        """Reserves a name for an adapter that will load, and returns its number.

        Raises RequestError for a name that is taken.
        """
        with self._lock:
            if name in self._entries or name in self._loading.values():
                raise RequestError(f"adapter {name!r} is loaded already; unload it first", "name", "adapter_exists")
            self._numbers += 1
            self._loading[self._numbers] = name
            return self._numbers

    def fail(self, number: int) -> None:
        """Cancels the reservation of an adapter that could not be loaded."""
        with self._lock:
            del self._loading[number]

    def enter(self, entry: Entry) -> Entry | None:
        """Adds a loaded adapter. Returns the least recently used of the unused ones if it must make room.

        Raises RequestError if all adapters are in use.
        """
        with self._lock:
            gone = None
            if len(self._entries) >= self.limit:
                unused = [e for e in self._entries.values() if not e.uses and not e.pinned]
                if not unused:
                    message = f"all {self.limit} adapters are in use or were given at the start; unload one first"
                    raise RequestError(message, "name", "adapters_full")
                gone = min(unused, key=lambda e: e.used_at)
                del self._entries[gone.card.name]
            del self._loading[entry.number]
            self._touch(entry)
            self._entries[entry.card.name] = entry
            return gone

    def remove(self, name: str) -> Entry:
        """Removes an adapter. Raises RequestError if it is not loaded or is in use."""
        with self._lock:
            entry = self._found(name, "name")
            if entry.uses:
                message = f"adapter {name!r} is in use by {entry.uses} requests"
                raise RequestError(message, "name", "adapter_in_use")
            return self._entries.pop(name)

    def take(self, name: str) -> Entry:
        """Counts one more request that uses an adapter. Raises RequestError if it is not loaded."""
        with self._lock:
            entry = self._found(name, "adapter")
            entry.uses += 1
            self._touch(entry)
            return entry

    def give_back(self, entry: Entry) -> None:
        """Counts one request less."""
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
