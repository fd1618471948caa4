"""A stream: a growing fill in the form of the client's protocol, by default server-sent events."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.events import Done, Event, Failed
from server.exchange.exchange import ClientGone, Events, attend
from server.exchange.service import Service
from server.telemetry.logs import frames
from server.wire.answer import encode
from server.wire.errors import ApiError, translate

HEARTBEAT = b": heartbeat\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Dialect(Protocol):
    """The wire format of a protocol's events. Each method returns the bytes of complete events, or none."""

    def event(self, event: Event) -> bytes:
        """The bytes of an event of the engine."""

    def error(self, error: ApiError) -> bytes:
        """The bytes of an error, which ends the stream."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The engine's events and their wire format. `heartbeat` is sent while no event comes."""

    events: Events
    dialect: Dialect
    request_id: str
    media_type: str = "text/event-stream"
    heartbeat: bytes = HEARTBEAT


class EventStream(Response):
    """The response. It waits for the first event, so that a refusal still gets its own status."""

    def __init__(self, service: Service, stream: Stream) -> None:
        super().__init__(headers=HEADERS, media_type=stream.media_type)
        # Response counts an empty body; a stream has no length.
        del self.headers["content-length"]
        self.service = service
        self.stream = stream
        self.started = False
        self.outcome = "ok"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await attend(receive, self.service.gate, self._play(send))
        except ClientGone:
            self.outcome = "cancelled"
        except asyncio.CancelledError:
            # So a server tells of it that ends the task of a client that left.
            self.outcome = "cancelled"
            raise
        except Exception as error:
            if not self.started:
                raise
            self.outcome = "error"
            self.service.log.error("stream", request_id=self.stream.request_id, frames=frames(error))
            failed = translate(error, self.stream.request_id)
            await self._write(send, self.stream.dialect.error(failed), last=True)
        finally:
            if self.started:
                scope["state"]["outcome"] = self.outcome
            await self.stream.events.aclose()

    async def _play(self, send: Send) -> None:
        event = await anext(self.stream.events)
        if isinstance(event, Failed):
            raise self.service.failed(event, self.stream.request_id)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self.started = True
        while not isinstance(event, Done | Failed):
            await self._write(send, self.stream.dialect.event(event))
            event = await self._next(send)
        if isinstance(event, Failed):
            self.outcome = event.outcome
            error = self.service.failed(event, self.stream.request_id)
            await self._write(send, self.stream.dialect.error(error), last=True)
        else:
            await self._write(send, self.stream.dialect.event(event), last=True)

    async def _next(self, send: Send) -> Event:
        """The next event, with heartbeats while it takes its time."""
        step = asyncio.ensure_future(anext(self.stream.events))
        try:
            while True:
                done, _ = await asyncio.wait({step}, timeout=self.service.settings.heartbeat_seconds)
                if done:
                    return step.result()
                await self._write(send, self.stream.heartbeat)
        finally:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)

    async def _write(self, send: Send, data: bytes, last: bool = False) -> None:
        if not data and not last:
            return
        try:
            async with asyncio.timeout(self.service.settings.write_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            # A client that reads nothing is as good as gone; its place is somebody else's.
            raise ClientGone from None


def sse(name: str, data: Mapping[str, Any]) -> bytes:
    """A named event on the wire. JSON escapes line breaks, so its data is one line."""
    return b"event: " + name.encode() + b"\ndata: " + encode(data) + b"\n\n"


def data(value: Mapping[str, Any]) -> bytes:
    """One unnamed event."""
    return b"data: " + encode(value) + b"\n\n"
