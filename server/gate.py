"""The gate: how many requests are inside, and whether it still lets any in."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError

GUARDED = "/v1/"
# Work that existing clients ask for at the root.
GUARDED_ROOT = frozenset({"/infill", "/tokenize", "/detokenize"})


class Gate:
    """Bounds the work in flight. Draining lets nothing in; aborting also ends what is inside."""

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0
        self.draining = False
        self.aborted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        """Takes a place. Raises ApiError when there is none."""
        if self.draining:
            raise ApiError(503, "the server is draining and takes no new work", "draining")
        if self.inside >= self.max_inside:
            raise ApiError(503, f"all {self.max_inside} places in the queue are taken", "queue_full")
        self.inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """Gives the place back."""
        self.inside -= 1
        if self.inside == 0:
            self._empty.set()

    def drain(self) -> None:
        """Lets nothing in from now on."""
        self.draining = True

    def abort(self) -> None:
        """Ends what is inside, each with an error that its client can read."""
        self.draining = True
        self.aborted.set()

    async def emptied(self) -> None:
        """Returns when nothing is inside."""
        await self._empty.wait()


class Admission:
    """Middleware that sends work (`POST` to what is guarded) through a gate, before its body is read."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        try:
            self.gate.enter()
        except ApiError as error:
            await error.answer(scope)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.gate.leave()


def is_work(scope: Scope) -> bool:
    """Whether a request asks for work, rather than for how things are."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path: str = scope["path"]
    return path.startswith(GUARDED) or path in GUARDED_ROOT
