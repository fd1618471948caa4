"""The engines of all replicas as one engine, for the server's application."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deploy.ray.context import context_key
from deploy.ray.replica import NOT_READY
from engine.client import EngineOverloaded, EngineUnavailable, ignore
from engine.events import TERMINAL, AdapterCard, Event, Failed, Loss, ModelCard, StepStats
from engine.processes.messages import (
    EVENTS,
    FROM_REPLICA,
    REQUESTS,
    TO_REPLICA,
    Detokenize,
    Read,
    Refused,
    Reply,
    Report,
    Spell,
    TextQuestion,
    Tokenize,
    Unavailable,
    Value,
)  # fmt: skip
from engine.readings import Piece, Reading
from engine.requests import Fill, Request, RequestError

REPORT_S = 1.0
REPORT_TIMEOUT_S = 5.0
# Replicas that are asked before a client hears that none is ready.
ATTEMPTS = 3
# An engine keeps its deadlines itself; so much later nobody waits for it any more.
GRACE_S = 5.0
_MAX_STATS = 10_000
# Replicas come and go, and a new one would not have what another was told to load.
FIXED = "replicas have the adapters that they are started with: the setting adapters"


class ReplicaLost(Exception):
    """A replica or its machine has died with a request in flight."""


class Engines:
    """An `EngineClient` over the replicas of a deployment.

    A request goes to the replica with its context (`deploy.ray.router`). If the replica is lost, a request of which the
    client has seen nothing goes to another replica once; a stream that has begun ends with an error.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle
        self._reports: list[Report] = []
        self._card: ModelCard | None = None
        self._adapters: list[AdapterCard] = []
        self._stats: list[StepStats] = []
        self._watcher: asyncio.Task[None] | None = None
        self._lose: Callable[[Loss], None] = ignore

    async def start(self, lose: Callable[[Loss], None] = ignore) -> None:
        self._lose = lose
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher

    def state(self) -> tuple[str, str]:
        ready = sum(report.ready for report in self._reports)
        if ready:
            return "ready", f"{ready} replicas ready" if ready > 1 else "1 replica ready"
        return ("loading" if self._card is None else "restarting"), "no replica is ready"

    @property
    def is_given_up(self) -> bool:
        """Always false: Ray replaces the replicas, and a gateway has no engine of its own."""
        return False

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise EngineUnavailable("no replica is ready")
        return self._card

    @property
    def ranks_alive(self) -> int:
        return sum(report.ranks_alive for report in self._reports)

    async def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        streams = isinstance(request, Fill) and request.stream
        began, seconds = time.monotonic(), request.timeout_s
        for attempt in range(ATTEMPTS):
            is_last = attempt == ATTEMPTS - 1
            if seconds is not None:
                request = replace(request, timeout_s=max(seconds - (time.monotonic() - began), 0.001))
            held: list[Event] = []
            seen = False
            try:
                async with aclosing(self._ask(request, request_id, attempt)) as events:
                    async for event in events:
                        if isinstance(event, Failed) and event.code == NOT_READY:
                            if is_last:
                                raise EngineUnavailable(event.message)
                            break
                        held.append(event)
                        # What is not streamed is worth nothing to a client before its end.
                        if streams or isinstance(event, TERMINAL):
                            for ready in held:
                                seen = True
                                yield ready
                            held = []
                    else:
                        return
            except ReplicaLost:
                # A second replica, but not a third: it may be the request that ends them.
                if seen or attempt > 0:
                    yield Failed(request_id, "overloaded", "the replica was lost", code="engine_lost")
                    return

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        return cast(list[int], await self._answer(Tokenize("", text, special, masks)))

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        text = await self._answer(Detokenize("", token_ids, special, finished, sentence))
        assert isinstance(text, str)
        return text

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        return cast(list[Reading], await self._answer(Read("", fill, scored)))

    async def pieces(self, token_ids: list[int]) -> list[Piece]:
        return cast(list[Piece], await self._answer(Spell("", token_ids)))

    @property
    def adapters(self) -> list[AdapterCard]:
        return self._adapters

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        raise RequestError(FIXED, "name", "unsupported")

    async def unload_adapter(self, name: str) -> None:
        raise RequestError(FIXED, "name", "unsupported")

    def stats(self) -> list[StepStats]:
        taken, self._stats = self._stats, []
        return taken

    async def _ask(self, request: Request, request_id: str, attempt: int) -> AsyncGenerator[Event, None]:
        """The events from one replica. Raises ReplicaLost, EngineOverloaded and EngineUnavailable."""
        until = None if request.timeout_s is None else asyncio.get_running_loop().time() + request.timeout_s + GRACE_S
        caller = self.handle.options(stream=True, session_id=context_key(request))
        response: Any = caller.submit.remote(REQUESTS.encode(request), request_id, attempt=attempt)
        ended = False
        try:
            while not ended:
                event = await _next(response, until)
                ended = isinstance(event, TERMINAL)
                yield event
        except TimeoutError:
            yield Failed(request_id, "deadline", "the deadline has passed", code="deadline")
        except BackPressureError as error:
            ended = True
            raise EngineOverloaded(f"{error.args[0]} requests wait for a replica already") from None
        except DeploymentUnavailableError as error:
            ended = True
            raise EngineUnavailable(str(error)) from None
        except (RayActorError, StopAsyncIteration):
            ended = True
            raise ReplicaLost from None
        finally:
            if not ended:
                response.cancel()

    async def _answer(self, question: TextQuestion) -> Value:
        try:
            data: bytes = await self.handle.ask.remote(TO_REPLICA.encode(question))
        except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
            raise EngineUnavailable(str(error).splitlines()[0]) from None
        match FROM_REPLICA.decode(data):
            case Reply(value=value):
                return value
            case Refused(_, message, param, code):
                raise RequestError(message, param, code)
            case Unavailable(_, detail):
                raise EngineUnavailable(detail)
            case Report():
                raise TypeError("a report is no answer")

    async def _watch(self) -> None:
        """Asks all replicas how they are, again and again."""
        while True:
            try:
                reports = await self.handle.broadcast("report").results_async(
                    timeout_s=REPORT_TIMEOUT_S, return_exceptions=True
                )
            except (DeploymentUnavailableError, TimeoutError, RayActorError):
                reports = []
            decoded = [FROM_REPLICA.decode(report) for report in reports if isinstance(report, bytes)]
            self._take([report for report in decoded if isinstance(report, Report)])
            # The first ones are waited for.
            await asyncio.sleep(REPORT_S if self._reports else REPORT_S / 10)

    def _take(self, reports: list[Report]) -> None:
        self._reports = reports
        for report in reports:
            self._card = self._card or report.card
            self._adapters = report.adapters
            for loss in report.losses:
                self._lose(loss)
        last = [report.stats[-1] for report in reports if report.stats]
        if not last:
            return
        # A gauge is of all replicas; one without a step since the last report has nothing to do.
        running, waiting = sum(step.running for step in last), sum(step.waiting for step in last)
        usage = sum(step.kv_cache_usage for step in last) / len(last)
        self._stats += [
            replace(step, running=running, waiting=waiting, kv_cache_usage=usage)
            for report in reports
            for step in report.stats
        ]
        del self._stats[: len(self._stats) - _MAX_STATS]


async def _next(response: AsyncIterator[bytes], until: float | None) -> Event:
    """The next event. Raises TimeoutError when there is none until then."""
    async with asyncio.timeout_at(until):
        return EVENTS.decode(await anext(response))
