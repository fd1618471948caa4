"""The engine behind its process boundary: real workers, killed and stopped for real."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import Done, Event, Failed, ResultDone
from engine.process import EngineProcess
from engine.requests import Fill, Mask, Request, RequestError, Score

LONG = Fill((("the ", Mask("[MASK]")),), max_tokens=(250,), min_tokens=(250,), n=8, stream=True)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@asynccontextmanager
async def ready_engine(folder: str, **timing: float) -> AsyncGenerator[EngineProcess, None]:
    engine = EngineProcess(EngineConfig(folder, threads=1), **timing)
    await engine.start()
    try:
        await until_ready(engine)
        yield engine
    finally:
        await engine.stop()


async def until_ready(engine: EngineProcess) -> None:
    while engine.state()[0] != "ready":
        assert engine.state()[0] != "failed", engine.state()
        await asyncio.sleep(0.01)


async def events(engine: EngineProcess, request: Request, name: str) -> list[Event]:
    return [event async for event in engine.submit(request, name)]


def test_fills_scores_and_refusals_cross_the_boundary(folder: str) -> None:
    async def work() -> None:
        async with ready_engine(folder) as engine:
            filled = await events(engine, Fill((("a ", Mask("[MASK]")),), max_tokens=(3,)), "fill")
            assert [type(e) for e in filled] == [ResultDone, Done]
            scored = await events(engine, Score(context=("a",), targets=(" b", " c"), orders=2), "score")
            assert [type(e) for e in scored] == [ResultDone, ResultDone, Done]
            (refused,) = await events(engine, Score(text=("a ", Mask("[MASK]")), spans=(("b", "c"),)), "bad")
            assert isinstance(refused, Failed)
            assert (refused.outcome, refused.param) == ("invalid", "spans")
            assert await engine.detokenize(await engine.tokenize("a [MASK]\n")) == "a [MASK]\n"
            with pytest.raises(RequestError):
                await engine.detokenize([10**8])
            assert sum(s.blanks for s in engine.stats()) == 1

    run(work())


def test_closing_the_stream_cancels_the_request(folder: str) -> None:
    async def work() -> None:
        async with ready_engine(folder) as engine:
            stream = engine.submit(LONG, "long")
            await anext(stream)
            while not engine.stats():
                await asyncio.sleep(0.01)
            await stream.aclose()
            last = None
            while last is None or last.running:
                await asyncio.sleep(0.05)
                last = (engine.stats() or [last])[-1]
            assert last.kv_cache_usage == 0

    run(work())


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_fails_what_is_in_flight_and_comes_back(folder: str, way: signal.Signals) -> None:
    async def work() -> None:
        async with ready_engine(folder, silence_s=3.0) as engine:
            flying = [asyncio.create_task(events(engine, LONG, str(i))) for i in range(3)]
            await asyncio.sleep(0.3)
            assert engine.pid is not None
            os.kill(engine.pid, way)
            for ended in await asyncio.gather(*flying):
                assert isinstance(ended[-1], Failed)
                assert ended[-1].code == "engine_lost"
            with pytest.raises(EngineUnavailable):
                await events(engine, LONG, "too early")
            await until_ready(engine)
            again = await events(engine, Fill((("a ", Mask("[MASK]")),), max_tokens=(3,)), "again")
            assert isinstance(again[-1], Done)

    run(work())


def test_a_checkpoint_that_cannot_be_loaded_fails_for_good_in_one_line(tmp_path: Path) -> None:
    async def work() -> None:
        engine = EngineProcess(EngineConfig(str(tmp_path / "none")))
        await engine.start()
        while engine.state()[0] == "loading":
            await asyncio.sleep(0.01)
        assert engine.state()[0] == "failed"
        assert "no such folder" in engine.state()[1]
        assert "\n" not in engine.state()[1]
        await engine.stop()

    run(work())
