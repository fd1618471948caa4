"""The service: the parts that every route uses, made once by the application factory."""

from dataclasses import dataclass
from typing import cast

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from engine.client import EngineClient
from engine.events import Failed, Loss
from server.access.gate import Gate
from server.settings import Settings
from server.telemetry.ignored import IgnoredFields
from server.telemetry.metrics import Metrics
from server.wire.errors import ApiError, failure


@dataclass(frozen=True, slots=True)
class Service:
    """The parts behind the routes."""

    settings: Settings
    engine: EngineClient
    gate: Gate
    metrics: Metrics
    log: FilteringBoundLogger
    ignored: IgnoredFields

    def lost(self, loss: Loss) -> None:
        """Notes a loss of the engine's processes, which restart. After a final loss `engine.state` says so."""
        if not loss.final:
            self.metrics.engine_restarts.labels(loss.reason).inc()
            self.log.error("engine lost", reason=loss.reason, detail=loss.detail, in_a_row=loss.unanswered)

    def failed(self, event: Failed, request_id: str) -> ApiError:
        """The error for a client. Details of an internal failure go to the log only."""
        if event.outcome == "error":
            self.log.error("engine", request_id=request_id, message=event.message, code=event.code)
        return failure(event, request_id)


async def service_of(request: Request) -> Service:
    """The service of a request's application. It is a coroutine, since FastAPI runs a plain function in a thread."""
    return cast(Service, request.app.state.service)
