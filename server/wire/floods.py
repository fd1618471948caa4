"""Floods: lines of the log that may come by the thousand, of which one a second of a kind is written."""

import logging
import time
from collections.abc import Callable, Hashable

SECONDS = 1.0
MAX_KINDS = 1000


class Floods:
    """Says which line may be written, and how many of its kind were left out before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def left_out(self, kind: Hashable) -> int | None:
        """How many lines of a kind were left out since the last one; None when this one must be left out too."""
        now = self._clock()
        written, left_out = self._kinds.get(kind, (-SECONDS, 0))
        if kind in self._kinds and now - written < SECONDS:
            self._kinds[kind] = (written, left_out + 1)
            return None
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = (now, 0)
        return left_out


class FloodFilter(logging.Filter):
    """The same for the lines of libraries. What differs within a kind is in their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._floods = Floods()

    def filter(self, record: logging.LogRecord) -> bool:
        return self._floods.left_out((record.name, record.msg)) is not None
