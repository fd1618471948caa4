"""Rates: token buckets that limit the work of one client."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.wire.errors import ApiError

Clock = Callable[[], float]


class Bucket:
    """A token bucket with one minute's amount, which fills up evenly. It gives an amount as a whole or not at all."""

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._filled_at = clock()

    def take(self, amount: float) -> float:
        """Takes an amount and returns 0, or returns the seconds until it can.

        More than a full bucket needs a full one, and leaves a debt that later requests wait for.
        """
        self._fill()
        missing = min(amount, self.per_minute) - self._level
        if missing > 0:
            return missing * 60 / self.per_minute
        self._level -= amount
        return 0.0

    def give(self, amount: float) -> None:
        """Returns an amount that was not needed; a negative one charges more."""
        self._fill()
        self._level = min(self._level + amount, self.per_minute)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._filled_at) * self.per_minute / 60, self.per_minute)
        self._filled_at = now


@dataclass(frozen=True, slots=True)
class Rates:
    """The buckets of a client; None is no limit."""

    requests: Bucket | None = None
    tokens: Bucket | None = None

    def take_request(self) -> None:
        """Charges one request. Raises ApiError (429) for one too many."""
        _take(self.requests, 1, "requests")

    def take_tokens(self, amount: int) -> None:
        """Charges the tokens that a request may need. Raises ApiError (429) for too many."""
        _take(self.tokens, amount, "tokens")

    def give_tokens(self, amount: int) -> None:
        """Refunds tokens that a request did not need."""
        if self.tokens is not None:
            self.tokens.give(amount)


def _take(bucket: Bucket | None, amount: int, what: str) -> None:
    if bucket is None:
        return
    seconds = bucket.take(amount)
    if seconds:
        message = f"over the rate of {bucket.per_minute:g} {what} a minute; try again in {seconds:.3g} s"
        raise ApiError(429, message, f"{what}_rate_exceeded", retry_s=seconds)
