"""One exchange with the engine: its events, as long as a client waits for them."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope

from engine.answers import FillResult, ScoreResult
from engine.client import EngineOverloaded, EngineUnavailable
from engine.events import Done, Event, Failed, ResultDone
from engine.requests import Request as Work
from engine.requests import RequestError
from server.access.gate import Gate, Ticket
from server.exchange.estimate import most_tokens
from server.exchange.service import Service
from server.wire.errors import ApiError

TIMEOUT_HEADER = "x-request-timeout-s"
NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")
# Outcomes that are no work done for the client.
UNCHARGED = {"invalid", "overloaded"}

Result = TypeVar("Result")
Events = AsyncGenerator[Event, None]
Outcome = tuple[list[FillResult | ScoreResult], Done]
NAMES: Mapping[str, str] = {}


class ClientGone(Exception):
    """The client closed the connection."""


def submit(service: Service, request: Request, work: Work, work_id: str, names: Mapping[str, str] = NAMES) -> Events:
    """Admits a request's work and returns its events. Closing them cancels the work.

    The work has its client's turn and its client's cached contexts. `names` maps the engine's field names to the
    client's, for errors. Raises ApiError or RequestError for work that is not admitted.
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
    events = service.engine.submit(work, work_id)
    return _followed(events, work_id, names, ticket, request.scope)


def _renamed(event: Failed, names: Mapping[str, str]) -> Failed:
    """A failure with the client's name of the field, also where its message begins with the engine's."""
    own = event.param
    if own is None or own not in names:
        return event
    message = names[own] + event.message.removeprefix(own) if event.message.startswith(f"{own} ") else event.message
    return replace(event, message=message, param=names[own])


async def _followed(events: Events, work_id: str, names: Mapping[str, str], ticket: Ticket, scope: Scope) -> Events:
    """The events, with the client's names; it also counts the tokens that the work took."""
    async with aclosing(events):
        try:
            async for event in events:
                if isinstance(event, Done):
                    ticket.settle(work_id, event.usage.total_tokens)
                    scope["state"]["done"] = event
                elif isinstance(event, Failed):
                    if event.outcome in UNCHARGED:
                        ticket.settle(work_id, 0)
                    event = _renamed(event, names)
                yield event
        except (EngineUnavailable, EngineOverloaded):
            ticket.settle(work_id, 0)
            raise


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
    """Runs work unless the client leaves or the server aborts first; then it cancels the work.

    Raises ClientGone if the client leaves, and EngineUnavailable if the server aborts.
    """
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
    """All results, in order, and the terminal event. Raises ApiError if the engine fails the request."""
    return await attended(service, request, _collect(service, events, "", request.state.request_id), [events])


async def complete_all(service: Service, request: Request, streams: list[Events], noun: str) -> list[Outcome]:
    """The results of requests that run side by side. If one fails, all fail.

    `noun` is the message's name of one of them. Raises ApiError as `complete` does.
    """
    names = [f"{noun} {number}: " if len(streams) > 1 else "" for number in range(len(streams))]
    request_id = request.state.request_id
    collects = (_collect(service, *each, request_id) for each in zip(streams, names, strict=True))
    return await attended(service, request, _together(collects), streams)


async def attended(
    service: Service, request: Request, work: Coroutine[Any, Any, Result], streams: list[Events]
) -> Result:
    """Runs work on streams of events while the client waits, then closes the streams.

    Raises ApiError (499) if the client leaves, and EngineUnavailable if the server aborts.
    """
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


async def _collect(service: Service, events: Events, member: str, request_id: str) -> Outcome:
    """The results of a request; a failure's message begins with `member`."""
    results: list[FillResult | ScoreResult] = []
    async for event in events:
        if isinstance(event, ResultDone):
            results.append(event.result)
        elif isinstance(event, Failed):
            raise service.failed(replace(event, message=member + event.message), request_id)
        elif isinstance(event, Done):
            return sorted(results, key=lambda result: result.index), event
    raise RuntimeError("the engine's events ended without a terminal one")


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
