"""One exchange with the engine: its events, for as long as someone waits for them."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from engine.client import EngineUnavailable
from engine.events import Done, Event, Failed, ResultDone
from engine.requests import Request as Work
from engine.requests import RequestError
from server.errors import ApiError
from server.estimate import most_tokens
from server.gate import Gate, Ticket
from server.service import Service

TIMEOUT_HEADER = "x-request-timeout-s"
NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")
# Outcomes that are no work done for the client.
UNCHARGED = {"invalid", "overloaded"}

Result = TypeVar("Result")
Events = AsyncGenerator[Event, None]


class ClientGone(Exception):
    """The client closed the connection."""


def submit(service: Service, request: Request, work: Work, work_id: str) -> Events:
    """Admits a request's work and gives its events; closing them cancels the work.

    The work takes its turn and finds cached contexts as its client's. Raises ApiError or RequestError for what is
    not admitted.
    """
    ticket: Ticket = request.state.ticket
    client = ticket.client
    work = replace(
        work,
        tenant=client.name,
        priority="batch" if client.priority == "batch" else work.priority,
        timeout_s=_deadline(request, work, service.settings.limits.timeout_s),
    )
    ticket.admit(work_id, most_tokens(work, service.engine.card))
    request.state.submitted_ns = time.time_ns()
    return _followed(service.engine.submit(work, work_id), work_id, ticket, request.scope)


async def _followed(events: Events, work_id: str, ticket: Ticket, scope: Scope) -> Events:
    """The events, noting on the way what the work really took."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                ticket.settle(work_id, event.usage.get("total_tokens", 0))
                scope["state"]["done"] = event
            elif isinstance(event, Failed) and event.outcome in UNCHARGED:
                ticket.settle(work_id, 0)
            yield event


def _deadline(request: Request, work: Work, limit: float) -> float:
    """The sooner of the body's and the header's deadline, in seconds; the server's where there is none."""
    given = request.headers.get(TIMEOUT_HEADER)
    own = work.timeout_s or limit
    if given is None:
        return own
    seconds = float(given) if NUMBER.fullmatch(given) else 0.0
    if not 0 < seconds <= limit:
        raise RequestError(f"{TIMEOUT_HEADER} must be a number of seconds above 0, at most {limit:g}", TIMEOUT_HEADER)
    return min(own, seconds)


async def attend(receive: Receive, gate: Gate, work: Coroutine[Any, Any, Result]) -> Result:
    """Does the work unless the client leaves or the server aborts first; then the work is cancelled."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(receive))
    abort = asyncio.create_task(gate.aborted.wait())
    waiters: set[asyncio.Task[Any]] = {task, gone, abort}
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            gone.result()
            raise ClientGone
        raise EngineUnavailable("the server is shutting down")
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)


async def complete(service: Service, request: Request, events: Events) -> tuple[list[dict[str, Any]], Done]:
    """All results in order, with the closing event."""
    async with aclosing(events):
        work = _collect(service, events, request.state.request_id)
        try:
            return await attend(request.receive, service.gate, work)
        except ClientGone:
            raise ApiError(499, "the client left", "cancelled") from None


async def _collect(service: Service, events: Events, request_id: str) -> tuple[list[dict[str, Any]], Done]:
    results: list[dict[str, Any]] = []
    async for event in events:
        if isinstance(event, ResultDone):
            results.append(event.result)
        elif isinstance(event, Failed):
            raise service.failed(event, request_id)
        elif isinstance(event, Done):
            return sorted(results, key=lambda result: int(result["index"])), event
    raise RuntimeError("the engine's events ended without a terminal one")


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
