"""One exchange with the engine: its events, for as long as someone waits for them."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from engine.client import EngineClient, EngineUnavailable
from engine.events import Done, Event, Failed, ResultDone
from engine.requests import Request as Work
from server.errors import ApiError
from server.gate import Gate
from server.service import Service

Result = TypeVar("Result")
Events = AsyncGenerator[Event, None]


class ClientGone(Exception):
    """The client closed the connection."""


def submit(engine: EngineClient, work: Work, work_id: str) -> Events:
    """The events of a request, closable: the seam promises that closing the iterator cancels the request."""
    return engine.submit(work, work_id)


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
