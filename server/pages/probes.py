"""The probes: whether the process lives, whether it is ready for work, and its metrics."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.exchange.service import Service, service_of
from server.wire.answer import Answer

router = APIRouter(tags=["probes"])


@router.get("/live")
async def live(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """200 while the process responds and its engine is not given up, whatever the load.

    The engine is given up after five losses without an answer, or a minute of readiness, between them.
    """
    if service.engine.is_given_up:
        detail = f"the engine was lost again and again without an answer; now: {service.engine.state()[1]}"
        return Answer({"status": "given_up", "detail": detail}, 503)
    return Answer({"status": "live"})


@router.get("/ready")
async def ready(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """200 if new work is welcome; 503 while loading, draining or after a loss. The body says which."""
    return _readiness(service, "ready")


@router.get("/health")
async def health(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Like /ready, with llama.cpp's body: its editors accept only "ok" as healthy."""
    return _readiness(service, "ok")


def _readiness(service: Service, word: str) -> Answer:
    status, detail = _state(service)
    is_ready = status == "ready"
    shown = word if is_ready else status
    body = {"status": shown, "detail": detail, "ranks_alive": service.engine.ranks_alive}
    return Answer(body, 200 if is_ready else 503)


def _state(service: Service) -> tuple[str, str]:
    """The state in one word, and in detail."""
    if service.gate.draining:
        return "draining", f"{service.gate.inside} requests in flight"
    return service.engine.state()


@router.get("/metrics")
async def metrics(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """The metrics in Prometheus' text format, or in OpenMetrics 1.0 if the client prefers that."""
    accept = ",".join(request.headers.getlist("accept"))
    text, media_type = service.metrics.expose(service.engine, _state(service)[0] == "ready", accept)
    return Response(text, media_type=media_type, headers={"vary": "accept"})
