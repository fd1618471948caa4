"""The observer: gives each request an id, and tells the log and the metrics how it ended."""

import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from server.errors import internal
from server.logs import frames
from server.metrics import Metrics

CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
QUIET = {"/live", "/ready", "/health", "/metrics"}
REFUSALS = {413, 429, 503}


class Observer:
    """The outermost middleware; no exception of a request passes it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: FilteringBoundLogger, routes: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.log = log
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = self._request_id(scope)
        state = scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except Exception as error:
            state["outcome"] = "error"
            self.log.error("failure", request_id=request_id, frames=frames(error))
            if status == 0:
                await internal(request_id).answer(scope)(scope, receive, stamped)
        finally:
            seconds = time.perf_counter() - start
            # The path is the client's: only those that name a route may become a label.
            route = scope["path"] if scope["path"] in self.routes else "unmatched"
            outcome = state.get("outcome") or outcome_of(status)
            self.metrics.request(route, outcome, seconds)
            if status in REFUSALS and "code" in state:
                self.metrics.refusal(state["code"])
            (self.log.debug if route in QUIET else self.log.info)(
                "request",
                request_id=request_id,
                method=scope["method"],
                route=route,
                status=status,
                outcome=outcome,
                seconds=round(seconds, 6),
            )

    def _request_id(self, scope: Scope) -> str:
        given = Headers(scope=scope).get("x-request-id", "")
        return given if CLIENT_ID.fullmatch(given) else uuid4().hex


def outcome_of(status: int) -> str:
    """How a request ended, in the words of the metrics."""
    if 200 <= status < 400:
        return "ok"
    named = {0: "cancelled", 499: "cancelled", 503: "overloaded", 504: "deadline"}
    return named.get(status, "invalid" if status < 500 else "error")
