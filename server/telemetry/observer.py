"""The observer: it gives each request an id, and reports its end to log, metrics and spans."""

import re
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from engine.events import Done
from server.telemetry.logs import frames
from server.telemetry.metrics import Metrics
from server.telemetry.trace import read_trace
from server.wire.answer import plain
from server.wire.errors import internal
from server.wire.route import route_of

if TYPE_CHECKING:
    from server.telemetry.spans import Spans

CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
WARNING = "x-glm-infill-warning"
QUIET = {"/live", "/ready", "/health", "/metrics"}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OUTCOMES = {
    0: "cancelled",
    401: "denied",
    403: "denied",
    429: "limited",
    499: "cancelled",
    503: "overloaded",
    504: "deadline",
}
REFUSALS = {401, 403, 408, 413, 415, 429, 431, 503}


class Observer:
    """The outermost middleware. No exception of a request passes it."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        log: FilteringBoundLogger,
        routes: frozenset[str],
        spans: "Spans | None" = None,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.log = log
        self.routes = routes
        self.spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        state = scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        # The path is the client's: only those that name a route may become a label.
        route = route_of(scope["path"], self.routes) or "unmatched"
        trace = read_trace(headers.get("traceparent", ""))
        span = None
        if self.spans is not None and route not in QUIET:
            span, trace = self.spans.start(route, trace, time.time_ns())
        log = self.log.bind(request_id=request_id, trace_id=trace.trace_id, span_id=trace.span_id)
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = MutableHeaders(scope=message)
                given["x-request-id"] = request_id
                if state.get("warnings"):
                    given[WARNING] = "; ".join(state["warnings"])
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except Exception as error:
            state["outcome"] = "error"
            log.error("failure", frames=frames(error))
            if status == 0:
                await internal(request_id).answer(scope)(scope, receive, stamped)
        finally:
            seconds = time.perf_counter() - start
            outcome = state.get("outcome") or outcome_of(status)
            self.metrics.request(route, outcome, seconds)
            if status in REFUSALS and "code" in state:
                self.metrics.refusal(state["code"])
            method = scope["method"] if scope["method"] in METHODS else "other"
            facts = {"method": method, "route": route, "status": status, "outcome": outcome}
            if "client" in state and state["client"].name:
                facts["client"] = state["client"].name
            done: Done | None = state.get("done")
            if span is not None and self.spans is not None:
                self.spans.end(span, facts, state.get("submitted_ns"), done)
            (log.debug if route in QUIET else log.info)(
                "request", **facts, seconds=round(seconds, 6), **(plain(done.usage) if done else {})
            )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if CLIENT_ID.fullmatch(given) else uuid4().hex


def outcome_of(status: int) -> str:
    """The outcome of a request, in the terms of the metrics."""
    if 200 <= status < 400:
        return "ok"
    return OUTCOMES.get(status, "invalid" if status < 500 else "error")
