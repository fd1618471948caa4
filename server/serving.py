"""Serving: the application behind sockets, from the start to a clean end."""

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from engine.client import EngineClient
from server.access.gate import Gate
from server.app import ROUTES, create_app
from server.console import tell
from server.exchange.service import Service
from server.settings import Settings
from server.telemetry.logs import library_logging, loop_errors
from server.telemetry.metrics import Metrics
from server.wire.binding import is_local, listen, url
from server.wire.connection import Connection
from server.wire.descriptors import connections_within, raise_limit
from server.wire.head import MAX_BYTES
from server.wire.listener import Listener
from server.wire.route import route_of

WATCH_SECONDS = 0.2
PROGRESS_SECONDS = 2.0
# After draining, answers are at most a few bytes away from their end.
FLUSH_SECONDS = 5


def serve(settings: Settings, engine: EngineClient) -> int:
    """Serves until a signal, or until the engine has failed for good. Returns the process's exit code.

    Before it starts the engine, it reports in one line if it cannot listen, and if an alias names no route.
    """
    for route in settings.path_aliases.values():
        if route_of(route, ROUTES) is None:
            tell(f"--path-alias: there is no route {route}")
            return 2
    try:
        room = connections_within(raise_limit(), settings.max_connections, settings.tp or 1)
        sockets = listen(settings.host, settings.port)
    except OSError as error:
        tell(str(error))
        return 1
    server = Server(settings, create_app(settings, engine, is_local(sockets)), sockets, room)
    server.run()
    return server.exit_code


class Server(uvicorn.Server):
    """uvicorn with our own signals and listener: the first signal drains, the second one aborts."""

    def __init__(self, settings: Settings, app: FastAPI, sockets: list[socket.socket], room: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                # One parser, and one whose strictness against request smuggling is known.
                http=Connection.bound(settings),
                ws="none",
                lifespan="on",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                log_config=library_logging(settings.log_level),
                h11_max_incomplete_event_size=MAX_BYTES,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )
        service: Service = app.state.service
        self.settings = settings
        self.sockets = sockets
        self.room = room
        self.reread_keys: Callable[[], None] = app.state.reread_keys
        self.listener: Listener | None = None
        self.engine: EngineClient = service.engine
        self.gate: Gate = service.gate
        self.metrics: Metrics = service.metrics
        self.log = service.log
        self.exit_code = 0
        self._signals = 0

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves, and watches signals and the engine."""
        # What is there by now stays: to look through all of it for garbage would hold up every answer.
        gc.collect()
        gc.freeze()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(loop_errors(self.log))
        # It ends nothing, not even when the terminal is closed: who wants an end has SIGTERM.
        loop.add_signal_handler(signal.SIGHUP, self.reread_keys)
        watch = asyncio.create_task(self._watch())
        try:
            await super().serve(sockets)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections with our own listener; uvicorn gets no socket."""
        await super().startup([])
        if self.room < self.settings.max_connections:
            self.log.warning("few open files", connections=self.room, max_connections=self.settings.max_connections)
        self.listener = Listener(
            self.sockets,
            self.room,
            cast(set[Connection], self.server_state.connections),
            self._connection,
            self.metrics.refusal,
            self.log,
        )
        self.listener.start()
        self.log.info("listening", urls=[url(listening) for listening in self.sockets])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the listener and the connections."""
        if self.listener is not None:
            await self.listener.close()
        await super().shutdown([])

    def _connection(self) -> Connection:
        made = cast(type[Connection], self.config.http_protocol_class)
        return made(self.config, self.server_state, self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only counts the signal. uvicorn's own handler would close the socket at once, and exit by the signal instead
        of with 0."""
        self._signals += 1

    async def _watch(self) -> None:
        before, told = "", 0.0
        while self._signals == 0:
            status, detail = self.engine.state()
            now = time.monotonic()
            if status == "ready" != before:
                card = self.engine.card
                origin = {"weights": card.origin} if card.origin else {}
                self.log.info(
                    "ready",
                    model=card.name,
                    quant=card.quant,
                    quant_head=card.quant_head,
                    tp=card.tp,
                    kernels=card.kernels,
                    **origin,
                )
            elif status == "loading" and now - told >= PROGRESS_SECONDS:
                told = now
                self.log.info("loading", detail=detail)
            before = status
            if status == "failed":
                self.log.error("engine failed", detail=detail)
                self.exit_code = 1
                self.should_exit = True
                return
            await asyncio.sleep(WATCH_SECONDS)
        self.gate.drain()
        self.log.info("draining", inside=self.gate.inside)
        emptied = asyncio.create_task(self.gate.emptied())
        second = asyncio.create_task(self._second_signal())
        await asyncio.wait({emptied, second}, timeout=self.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        emptied.cancel()
        second.cancel()
        self.gate.abort()
        self.should_exit = True

    async def _second_signal(self) -> None:
        while self._signals < 2:
            await asyncio.sleep(WATCH_SECONDS)
