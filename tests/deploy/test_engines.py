"""The engines of all replicas as one, over a handle whose replicas do as they are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deploy.ray.engines import Engines
from engine.answers import Usage
from engine.client import EngineOverloaded, EngineUnavailable
from engine.events import AdapterCard, BlankDelta, Done, Event, Failed, ModelCard, ResultDone, StepStats
from engine.processes.messages import EVENTS, FROM_REPLICA, REQUESTS, Refused, Reply, Report, Unavailable
from engine.requests import Fill, RequestError
from tests.answers import blank, filled

FILL = Fill((("a",),), timeout_s=5.0)
STREAM = Fill((("a",),), stream=True)
RESULT, DONE = ResultDone("r", filled([blank(text="b")])), Done("r", Usage(total_tokens=3))
DELTA = BlankDelta("r", 0, 0, 0, "b", [7], [-0.5])
NOT_READY = Failed("r", "overloaded", "loading", code="not_ready")
CARD = ModelCard("m", "glm", "int8", "int8", 1, ["[MASK]"], 9, 9, 9, 9, ["append"], 9, "k", 0, "float32", 99)
Script = list[Event | Exception | None]


class Response:
    """The events of a replica; an exception is raised, at None it waits for ever."""

    def __init__(self, script: Script) -> None:
        self.script = list(script)
        self.cancelled = False

    async def __anext__(self) -> bytes:
        event = self.script.pop(0)
        if event is None:
            await asyncio.Event().wait()
        if isinstance(event, Exception):
            raise event
        assert event is not None
        return EVENTS.encode(event)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment handle: each call of `submit` takes the next script."""

    def __init__(self, *scripts: Script, answer: Any = None, reports: Any = ()) -> None:
        self.responses = [Response(script) for script in scripts]
        self.calls: list[dict[str, Any]] = []
        self.answer, self.reports = answer, reports
        self.submit = self.ask = self

    def options(self, **options: Any) -> "Handle":
        self.calls.append(options)
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        if self.answer is not None:
            return _later(self.answer)
        self.calls[-1] |= kwargs | {"request": REQUESTS.decode(args[0])}
        return self.responses[len(self.calls) - 1]

    def broadcast(self, method: str) -> "Handle":
        assert method == "report"
        return self

    async def results_async(self, **_: Any) -> Any:
        if isinstance(self.reports, Exception):
            raise self.reports
        return self.reports


async def _later(value: Any) -> Any:
    return value


def events_of(handle: Handle, request: Fill) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in Engines(handle).submit(request, "r")]  # type: ignore[arg-type]

    return asyncio.run(collect())


def test_events_pass_and_the_context_s_key_goes_with_the_request() -> None:
    handle = Handle([DELTA, RESULT, DONE])
    assert events_of(handle, STREAM) == [DELTA, RESULT, DONE]
    (call,) = handle.calls
    assert (call["stream"], call["attempt"], len(call["session_id"])) == (True, 0, 32)
    assert not handle.responses[0].cancelled


def test_a_request_of_which_nothing_was_seen_is_asked_again_elsewhere() -> None:
    handle = Handle([RESULT, RayActorError()], [RESULT, DONE])
    assert events_of(handle, FILL) == [RESULT, DONE]
    assert [call["attempt"] for call in handle.calls] == [0, 1]
    assert handle.calls[0]["session_id"] == handle.calls[1]["session_id"]
    assert 0 < handle.calls[1]["request"].timeout_s <= 5.0


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    handle = Handle([DELTA, RayActorError()])
    delta, failed = events_of(handle, STREAM)
    assert delta == DELTA
    assert isinstance(failed, Failed)
    assert (failed.outcome, failed.code) == ("overloaded", "engine_lost")


def test_a_request_that_ends_two_replicas_gets_no_third() -> None:
    handle = Handle([RayActorError()], [RayActorError()])
    (failed,) = events_of(handle, FILL)
    assert isinstance(failed, Failed)
    assert failed.code == "engine_lost"


def test_a_replica_that_is_not_ready_is_passed_over() -> None:
    assert events_of(Handle([NOT_READY], [RESULT, DONE]), FILL) == [RESULT, DONE]
    with pytest.raises(EngineUnavailable, match="loading"):
        events_of(Handle([NOT_READY], [NOT_READY], [NOT_READY]), FILL)


def test_what_ray_refuses_the_server_refuses_in_its_words() -> None:
    with pytest.raises(EngineOverloaded, match="9 requests"):
        events_of(Handle([BackPressureError(9, 9)]), FILL)
    with pytest.raises(EngineUnavailable):
        events_of(Handle([DeploymentUnavailableError("replica")]), FILL)  # type: ignore[arg-type]


def test_closing_the_events_cancels_the_request() -> None:
    handle = Handle([DELTA, None])

    async def leave() -> None:
        events = Engines(handle).submit(STREAM, "r")  # type: ignore[arg-type]
        assert await anext(events) == DELTA
        await events.aclose()

    asyncio.run(leave())
    assert handle.responses[0].cancelled


def test_a_deadline_also_ends_a_request_that_no_replica_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.ray.engines.GRACE_S", 0.0)
    handle = Handle([None])
    (failed,) = events_of(handle, Fill((("a",),), timeout_s=0.01))
    assert isinstance(failed, Failed)
    assert failed.outcome == "deadline"
    assert handle.responses[0].cancelled


def test_tokens_and_their_refusals() -> None:
    def ask(answer: Any, call: Callable[[Engines], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await call(Engines(Handle(answer=FROM_REPLICA.encode(answer))))  # type: ignore[arg-type]

        return asyncio.run(run())

    assert ask(Reply("", [1, 2]), lambda engines: engines.tokenize("a")) == [1, 2]
    with pytest.raises(RequestError, match="too large") as refused:
        ask(Refused("", "too large", "tokens"), lambda engines: engines.detokenize([9]))
    assert refused.value.param == "tokens"
    with pytest.raises(EngineUnavailable, match="loading"):
        ask(Unavailable("", "loading"), lambda engines: engines.tokenize("a"))


def test_reports_make_one_state_and_one_set_of_gauges() -> None:
    def report(ready: bool, *running: int) -> bytes:
        steps = [StepStats(0.1, 1, number, 0, 0.5) for number in running]
        adapters = [AdapterCard("a", "lora", 1)]
        return FROM_REPLICA.encode(Report(ready, "", 2 * ready, CARD, adapters, [], steps))

    async def watched(reports: Any) -> tuple[Engines, str]:
        engines = Engines(Handle(reports=reports))  # type: ignore[arg-type]
        assert engines.state()[0] == "loading"
        await engines.start()
        await asyncio.sleep(0.05)
        await engines.stop()
        return engines, engines.state()[0]

    engines, state = asyncio.run(watched([report(True, 3, 2), report(False, 1), RayActorError()]))
    assert (state, engines.ranks_alive, engines.card) == ("ready", 2, CARD)
    assert [step.running for step in engines.stats()] == [3, 3, 3]
    assert engines.stats() == []
    assert asyncio.run(watched([report(False)]))[1] == "restarting"
    engines, state = asyncio.run(watched(DeploymentUnavailableError("replica")))  # type: ignore[arg-type]
    assert (state, engines.ranks_alive) == ("loading", 0)
    with pytest.raises(EngineUnavailable):
        _ = engines.card
