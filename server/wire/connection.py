"""A connection: uvicorn's HTTP/1.1 over h11, with a time limit for every step of a slow client."""

import asyncio
import socket
from typing import Protocol, Self

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.wire.answer import encode
from server.wire.errors import ApiError

# The route that reads a body answers with its own 408; this limit is for bodies that nobody reads.
BODY_GRACE_SECONDS = 5.0
UNREAD_BYTES = 128 * 1024


class Times(Protocol):
    """The time limits of a client, in seconds."""

    @property
    def header_seconds(self) -> float:
        """Seconds for the head of a request."""

    @property
    def body_seconds(self) -> float:
        """Seconds for the body of a request."""

    @property
    def write_seconds(self) -> float:
        """Seconds without progress while the client reads a response."""


class Connection(H11Protocol):
    """The connection of one client. `bound` makes the class that uvicorn instantiates."""

    times: Times

    @classmethod
    def bound(cls, times: Times) -> type[Self]:
        """The class with its time limits, since uvicorn makes the objects."""
        return type(cls.__name__, (cls,), {"times": times})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._reading: tuple[str, int] | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        # The kernel holds so much for a client and no more; of what it does not take every byte is told of, so that
        # the time it is left unread can be measured.
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        transport.set_write_buffer_limits(high=0)
        self._time_reading()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._time_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._time_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading = None
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        # uvicorn leaves this one running when the connection breaks.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.times.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "the request is not valid HTTP", "bad_http"))

    def _time_reading(self) -> None:
        """Starts the clock when the client owes something, and stops it when it has been sent."""
        owes = self._owes()
        if owes == self._reading:
            return
        self._reading = owes
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if owes is not None and not self.transport.is_closing():
            in_head = owes[0] == "head"
            seconds = self.times.header_seconds if in_head else self.times.body_seconds + BODY_GRACE_SECONDS
            self._read_timer = self.loop.call_later(seconds, self._give_up)

    def _owes(self) -> tuple[str, int] | None:
        """What of which request is still to come."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body", id(self.cycle)
        # Between requests it is uvicorn that keeps the time, until the next byte comes.
        is_resting = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if self.conn.their_state is h11.IDLE and not is_resting:
            return "head", id(self.cycle)
        return None

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self.times.header_seconds
            self._refuse(ApiError(408, f"the headers did not arrive within {seconds:g} s", "header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers without a request, where an answer can still be made, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encode(error.body)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            head = h11.Response(status_code=error.status, headers=headers, reason=b"")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
