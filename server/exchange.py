"""One exchange with the engine: its events, for as long as someone waits for them."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
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
Outcome = tuple[list[dict[str, Any]], Done]
NAMES: Mapping[str, str] = {}


class ClientGone(Exception):
    """The client closed the connection."""


async def submit(engine: EngineClient, work: Work, work_id: str, names: Mapping[str, str] = NAMES) -> Events:
    """The events of a request, closable: the seam promises that closing the iterator cancels the request.

    `names` has what the client calls the fields of the request that a failure may name.
    """
    async with aclosing(engine.submit(work, work_id)) as events:
        async for event in events:
            if isinstance(event, Failed) and event.param is not None:
                event = replace(event, param=names.get(event.param, event.param))
            yield event


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


async def complete(service: Service, request: Request, events: Events) -> Outcome:
    """All results in order, with the closing event."""
    return await attended(service, request, _collect(service, events, request.state.request_id), [events])


async def complete_all(service: Service, request: Request, streams: list[Events]) -> list[Outcome]:
    """The results of requests that run side by side. When one fails, so do all."""
    collects = (_collect(service, events, request.state.request_id) for events in streams)
    return await attended(service, request, _together(collects), streams)


async def attended(
    service: Service, request: Request, work: Coroutine[Any, Any, Result], streams: list[Events]
) -> Result:
    """Work on streams of events, for as long as the client waits; then they are closed."""
    try:
        return await attend(request.receive, service.gate, work)
    except ClientGone:
        raise ApiError(499, "the client left", "cancelled") from None
    finally:
        for events in streams:
            await events.aclose()


async def _together(collects: Iterable[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(collect) for collect in collects]
    except BaseExceptionGroup as failed:
        # The first failure is the client's answer; the group has ended the others.
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _collect(service: Service, events: Events, request_id: str) -> Outcome:
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
