"""The application: routes, middleware and error handling around one engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.middleware import Middleware

from engine.client import EngineClient
from server.access.authentication import Authentication
from server.access.gate import Admission, Gate
from server.access.keyring import Keyring
from server.access.origin import Origin
from server.exchange.protocol import paths_of
from server.exchange.service import Service
from server.pages import openapi, playground, probes
from server.protocols import protocols
from server.settings import Settings
from server.telemetry.ignored import IgnoredFields
from server.telemetry.logs import make_log
from server.telemetry.metrics import Metrics
from server.telemetry.observer import Observer
from server.wire.body import BodyLimit
from server.wire.error_bodies import ErrorBodies
from server.wire.errors import HANDLED, answer_error
from server.wire.head import Head
from server.wire.headers_only import HeadersOnly
from server.wire.path_aliases import PathAliases
from server.wire.signpost import Signpost

PAGES = (probes.router, openapi.router, playground.router)
ROUTERS = (*(protocol.router for protocol in protocols()), *PAGES)
# The framework answers /openapi.json itself.
ROUTES = frozenset({"/openapi.json"}).union(*map(paths_of, ROUTERS))
# What tells nothing of the model, of requests or of clients: the probes, and pages that are the same on every server.
# They are read without a key; what a page's script then asks for is not.
OPEN = frozenset({"/live", "/ready", "/health", "/docs", "/openapi.json", *playground.PATHS})
WORK = frozenset[str]().union(*(protocol.work for protocol in protocols()))
BODIES = tuple(body for protocol in protocols() for body in protocol.bodies)
CHATS = frozenset[str]().union(*(protocol.chats for protocol in protocols()))
ERROR_BODIES = {path: p.error_body for p in protocols() if p.error_body is not None for path in p.paths | p.chats}
ERRORS_BELOW = {p.below: p.error_body for p in protocols() if p.error_body is not None and p.below is not None}


def create_app(settings: Settings, engine: EngineClient, is_local: bool = False) -> FastAPI:
    """The application, which starts and stops the engine. `is_local`: only this machine can reach it.

    `app.state.drain()` refuses new work; `app.state.reread_keys()` reads the key file again.
    """
    log = make_log(settings.log_level)
    gate = Gate(settings.max_queue, settings.max_queue_tokens)
    keyring = Keyring(settings, log)
    service = Service(settings, engine, gate, Metrics(settings.vllm_metrics), log, IgnoredFields(log))
    open_paths = OPEN | {"/metrics"} if settings.open_metrics or keyring.is_open else OPEN
    signpost = Signpost.before(ROUTERS, CHATS)
    spans = None
    if settings.otlp_endpoint is not None:
        from server.telemetry.spans import Spans

        spans = Spans(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start(service.lost)
        try:
            yield
        finally:
            gate.drain()
            await engine.stop()
            if spans is not None:
                await asyncio.to_thread(spans.close)

    app = FastAPI(
        title="glm-infill",
        version=_version(),
        description="Fills the blanks of a text, and scores what could stand there.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(PathAliases, routes=settings.path_aliases),
            Middleware(ErrorBodies, shapes=ERROR_BODIES, below=ERRORS_BELOW, pages=playground.PATHS),
            Middleware(Observer, metrics=service.metrics, log=service.log, routes=ROUTES, spans=spans),
            Middleware(Head),
            Middleware(
                Origin,
                hosts=frozenset(settings.allowed_hosts),
                checks_host=bool(settings.allowed_hosts) or (is_local and keyring.is_open),
                checks_page=keyring.is_open,
            ),
            Middleware(Authentication, keyring=keyring, open_paths=open_paths),
            Middleware(Admission, gate=gate, work=WORK),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
            Middleware(HeadersOnly),
        ],
        exception_handlers={**dict.fromkeys(HANDLED, answer_error), **dict.fromkeys((404, 405), signpost.answer)},
    )
    app.state.service = service
    app.state.drain = gate.drain
    app.state.reread_keys = keyring.reread
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: openapi.describe(app, BODIES)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return version("glm-infill")
    except PackageNotFoundError:
        return "0+source"
