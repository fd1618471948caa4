"""The gate: it bounds the work in flight."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.requests import RequestError
from server.access.keyring import Client
from server.wire.errors import ApiError
from server.wire.route import route_of

# How much the newest stay weighs in the mean of stays, and between which seconds a client is told to come back.
NEWEST = 0.1
SOONEST_S, LATEST_S = 0.1, 60.0


class Gate:
    """Bounds the work in flight, in requests and in tokens. Draining admits nothing; aborting also ends work in flight.

    A client with a key may hold at most as much as is left free (the dynamic thresholds of Choudhury and Hahne, 1998):
    one client alone fills half of the queue, two a third each, and one more client always finds room.

    A refusal asks the client to come back after the mean residence time of recent requests: by then the requests of now
    have left.
    """

    def __init__(self, max_inside: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_inside = max_inside
        self.max_tokens = max_tokens
        self.clock = clock
        self.stay_s = 1.0
        self.inside = 0
        self.tokens = 0
        self.held: Counter[str] = Counter()
        self.held_tokens: Counter[str] = Counter()
        self.draining = False
        self.aborted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, client: Client) -> "Ticket":
        """Takes a place. Raises ApiError if there is none, and if the client is over its rate."""
        if self.draining:
            raise ApiError(503, "the server is draining and takes no new work", "draining")
        if self.inside >= self.max_inside:
            raise self.full(f"all {self.max_inside} places in the queue are taken", "queue_full")
        if client.name and self.held[client.name] >= self.max_inside - self.inside:
            raise self.share_taken(f"{self.held[client.name]} of the {self.max_inside} places in the queue")
        client.rates.take_request()
        self.inside += 1
        self.held[client.name] += 1
        self._empty.clear()
        return Ticket(self, client)

    def leave(self, client: Client, tokens: int, entered: float) -> None:
        """Returns a place, and the tokens that were reserved."""
        self.stay_s += NEWEST * (self.clock() - entered - self.stay_s)
        self.inside -= 1
        self.tokens -= tokens
        self.held[client.name] -= 1
        self.held_tokens[client.name] -= tokens
        if self.inside == 0:
            self._empty.set()

    def full(self, message: str, code: str) -> ApiError:
        """The error for a request for which no client has room."""
        return ApiError(503, message, code, retry_s=self._retry_s)

    def share_taken(self, what: str) -> ApiError:
        """The error for a request of a client that holds its share. `what` names the shared resource."""
        message = f"this key holds {what}; the limit is as many as are free"
        return ApiError(429, message, "queue_share_taken", retry_s=self._retry_s)

    @property
    def _retry_s(self) -> float:
        return min(max(self.stay_s, SOONEST_S), LATEST_S)

    def drain(self) -> None:
        """Admits nothing from now on."""
        self.draining = True

    def abort(self) -> None:
        """Ends all work in flight, with an error for each client."""
        self.draining = True
        self.aborted.set()

    async def emptied(self) -> None:
        """Returns when no work is in flight."""
        await self._empty.wait()


@dataclass(slots=True, eq=False)
class Ticket:
    """The place of one request: its client, and the tokens reserved for it."""

    gate: Gate
    client: Client
    _entered: float = field(init=False)
    _left: bool = field(default=False, init=False)
    _tokens: int = field(default=0, init=False)
    _charges: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._entered = self.gate.clock()

    def admit(self, work_id: str, tokens: int) -> None:
        """Reserves all tokens that a piece of work may need, or none of them.

        Raises RequestError for more tokens than the server ever admits, and ApiError if too many are reserved (503) or
        the client is over its rate (429).
        """
        limit, name = self.gate.max_tokens, self.client.name
        if tokens > limit:
            message = f"the request may need {tokens:g} tokens; the limit is {limit:g}"
            raise RequestError(message, code="request_too_large")
        if self.gate.tokens + tokens > limit:
            raise self.gate.full(f"the queue has no room for {tokens} more tokens of {limit}", "queue_tokens_full")
        if name and self.gate.held_tokens[name] >= limit - self.gate.tokens:
            raise self.gate.share_taken(f"{self.gate.held_tokens[name]} of the {limit} tokens in the queue")
        self.client.rates.take_tokens(tokens)
        self.gate.tokens += tokens
        self.gate.held_tokens[name] += tokens
        self._tokens += tokens
        self._charges[work_id] = tokens

    def settle(self, work_id: str, tokens: int) -> None:
        """Replaces the reservation by the number of tokens that the work took; the client's rate counts these alone."""
        self.client.rates.give_tokens(self._charges.pop(work_id) - tokens)

    def leave(self) -> None:
        """Returns the place, once. Reserved tokens without `settle`, such as those of cancelled work, stay charged."""
        if not self._left:
            self._left = True
            self.gate.leave(self.client, self._tokens, self._entered)


class Admission:
    """Middleware that sends work through a gate before its body is read. `work` are paths that protocols name."""

    def __init__(self, app: ASGIApp, gate: Gate, work: Collection[str]) -> None:
        self.app = app
        self.gate = gate
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope, self.work):
            await self.app(scope, receive, send)
            return
        try:
            ticket = scope["state"]["ticket"] = self.gate.enter(scope["state"]["client"])
        except ApiError as error:
            await error.answer(scope)(scope, receive, send)
            return

        async def leaving(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                # As the last byte goes out: a client that asks again as soon as it has it finds its place free.
                ticket.leave()

        try:
            await self.app(scope, receive, leaving)
        finally:
            ticket.leave()


def is_work(scope: Scope, work: Collection[str]) -> bool:
    """Whether a request asks for work rather than for information.

    Work is every POST below /v1/, future routes included, and a POST of these paths, such as `/infill` or
    `/models/{name}`.
    """
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return scope["path"].startswith("/v1/") or route_of(scope["path"], work) is not None
