"""The listener: it accepts connections up to a number, and refuses further ones with an answer.

It calls `accept` itself. asyncio would accept thousands of connections before it counts one of them; without free
descriptors it would let clients wait, and log a traceback for each try.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from structlog.typing import FilteringBoundLogger

from server.wire.connection import Connection
from server.wire.errors import ApiError
from server.wire.floods import Floods

CODE = "too_many_connections"
# Accepted in one go, before others have their turn.
AT_ONCE = 64
# So many of those who are refused may take so long to read why; their descriptors are part of the reserve.
LINGERING = 32
LINGER_SECONDS = 1.0
# Until accepting is tried again when it fails.
PAUSE_SECONDS = 0.2
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}


class Listener:
    """Accepts connections on listening sockets, from `start` to `close`.

    `connections` are the open ones, `room` is their limit. `make` makes the protocol of a new connection; `refused`
    counts one that was refused.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        room: int,
        connections: set[Connection],
        make: Callable[[], Connection],
        refused: Callable[[str], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._sockets = sockets
        self._room = room
        self._connections = connections
        self._make = make
        self._refused = refused
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._floods = Floods()
        self._answer = _refusal()
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving: deque[socket.socket] = deque()
        self._pauses: set[asyncio.TimerHandle] = set()
        # Given up for a moment, it lets a client be told even when there is no descriptor left.
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)

    def start(self) -> None:
        """Starts to accept."""
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        """Stops accepting, and returns when every accepted connection is in `connections`."""
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        for pause in self._pauses:
            pause.cancel()
        self._let_go()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        await asyncio.gather(*self._opening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._tell("cannot accept connections", detail=os.strerror(error.errno or 0))
                if error.errno in NO_DESCRIPTORS and self._accept_by_spare(listening):
                    continue
                self._pause(listening)
                return
            connection.setblocking(False)
            if len(self._connections) < self._room:
                self._open(connection)
            else:
                self._tell("connections refused", room=self._room)
                self._refuse(connection)
                self._leaving.append(connection)
                if len(self._leaving) > LINGERING:
                    _close(self._leaving.popleft())
                else:
                    self._loop.call_later(LINGER_SECONDS, self._close_one)

    def _open(self, connection: socket.socket) -> None:
        protocol = self._make()
        # It counts from now on; its transport is not there yet.
        self._connections.add(protocol)
        task = self._loop.create_task(self._connect(protocol, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, protocol: Connection, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            self._connections.discard(protocol)
            connection.close()
            self._tell("connection lost as it was opened", detail=os.strerror(error.errno or 0))

    def _accept_by_spare(self, listening: socket.socket) -> bool:
        """Refuses one client by the spare descriptor; False when that cannot be done either."""
        self._let_go()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        try:
            connection, _ = listening.accept()
        except OSError as error:
            accepted = isinstance(error, BlockingIOError)
        else:
            accepted = True
            connection.setblocking(False)
            self._refuse(connection)
            _close(connection)
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
        return accepted

    def _pause(self, listening: socket.socket) -> None:
        """Tries again in a while: the socket stays ready, and would be tried without an end."""

        def go_on() -> None:
            self._pauses.discard(pause)
            self._loop.add_reader(listening, self._accept, listening)

        self._loop.remove_reader(listening)
        pause = self._loop.call_later(PAUSE_SECONDS, go_on)
        self._pauses.add(pause)

    def _refuse(self, connection: socket.socket) -> None:
        self._refused(CODE)
        # It goes into an empty buffer. What the client sends is read before the end, or the answer would be lost.
        with suppress(OSError):
            connection.send(self._answer)
            connection.shutdown(socket.SHUT_WR)

    def _close_one(self) -> None:
        if self._leaving:
            _close(self._leaving.popleft())

    def _let_go(self) -> None:
        while self._leaving:
            _close(self._leaving.popleft())

    def _tell(self, event: str, **facts: object) -> None:
        left_out = self._floods.left_out(event)
        if left_out is not None:
            self._log.warning(event, **facts, left_out=left_out)


def _close(connection: socket.socket) -> None:
    """Closes without a reset, which would overtake the answer, if what has come so far is all."""
    with suppress(OSError):
        for _ in range(16):
            if not connection.recv(65536):
                break
    connection.close()


def _refusal() -> bytes:
    answer = ApiError(503, "the server has no room for more connections", CODE).answer({})
    headers = [*answer.raw_headers, (b"connection", b"close")]
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + lines + b"\r\n" + bytes(answer.body)
