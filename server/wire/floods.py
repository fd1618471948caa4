"""Floods: log lines that may come by the thousand. One per second and kind is written."""

import logging
import time
from collections.abc import Callable, Hashable

SECONDS = 1.0
MAX_KINDS = 1000


class Floods:
    """Says which lines may be written, and how many of their kind were dropped before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def left_out(self, kind: Hashable) -> int | None:
        """Number of dropped lines of a kind since the last written one; None if this line must be dropped too."""
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
    """Floods of libraries' log lines. Lines of one kind differ only in their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._floods = Floods()

    def filter(self, record: logging.LogRecord) -> bool:
        return self._floods.left_out((record.name, record.msg)) is not None
