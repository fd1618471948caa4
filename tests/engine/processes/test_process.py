"""The engine behind its process boundary: real workers, killed and stopped for real."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import Done, Event, Failed, ResultDone, StepStats
from engine.processes.process import EngineProcess
from engine.requests import Fill, Mask, Request, RequestError, Score

ROOT = Path(__file__).parents[3]
LONG = Fill((("the ", Mask("[MASK]")),), max_tokens=(250,), min_tokens=(250,), n=8, stream=True)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@asynccontextmanager
async def ready_engine(folder: str, tp: int = 1, **options: Any) -> AsyncGenerator[EngineProcess, None]:
    engine = EngineProcess(EngineConfig(folder, threads=1, tp=tp), **options)
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


async def under_way(engine: EngineProcess) -> list[asyncio.Task[list[Event]]]:
    """Three long requests, of which a step has run."""
    flying = [asyncio.create_task(events(engine, LONG, str(i))) for i in range(3)]
    while not engine.stats():
        await asyncio.sleep(0.002)
    return flying


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
            assert await engine.detokenize(await engine.tokenize("a[MASK]\n")) == "a[MASK]\n"
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
            last: StepStats | None = None
            while last is None or last.running:
                await asyncio.sleep(0.05)
                last = [last, *engine.stats()][-1]
            assert last.kv_cache_usage == 0

    run(work())


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_fails_what_is_in_flight_and_comes_back(folder: str, way: signal.Signals) -> None:
    async def work() -> None:
        async with ready_engine(folder, silence_s=3.0) as engine:
            flying = await under_way(engine)
            os.kill(engine.pids[0], way)
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


class TestRanks:
    """Two ranks: whichever is lost, everything in flight ends, and the engine comes back by itself."""

    @staticmethod
    async def loses_and_returns(engine: EngineProcess, reason: str, break_it: Callable[[], None]) -> None:
        assert engine.ranks_alive == 2
        pids = engine.pids
        flying = await under_way(engine)
        began = asyncio.get_running_loop().time()
        break_it()
        for ended in await asyncio.gather(*flying):
            assert isinstance(ended[-1], Failed)
            assert (ended[-1].outcome, ended[-1].code) == ("overloaded", "engine_lost")
            assert reason in ended[-1].message
            assert "/" not in ended[-1].message
            assert "0x" not in ended[-1].message
        assert asyncio.get_running_loop().time() - began < 10
        assert engine.state()[0] == "restarting"
        await until_ready(engine)
        assert engine.ranks_alive == 2
        assert not set(pids) & set(engine.pids)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        again = await events(engine, Fill((("a ", Mask("[MASK]")),), max_tokens=(3,)), "again")
        assert isinstance(again[-1], Done)

    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize(
        ("way", "reason"),
        [(signal.SIGKILL, "rank {} was killed by SIGKILL"), (signal.SIGSTOP, "rank {} was silent for")],
    )
    def test_one_is_killed_or_stopped(self, folder: str, rank: int, way: signal.Signals, reason: str) -> None:
        async def work() -> None:
            async with ready_engine(folder, tp=2, silence_s=3.0) as engine:
                await self.loses_and_returns(engine, reason.format(rank), lambda: os.kill(engine.pids[rank], way))

        run(work())

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ("raise:1:3", "rank 1 raised RuntimeError"),
            ("raise:0:3", "rank 0 raised RuntimeError"),
            ("skip:0:3", "rank 1 raised Diverged"),
            ("hang:1:3", "a step took more than 2 s"),
        ],
    )
    def test_one_goes_wrong(
        self, folder: str, fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the worker, which is no part of the package
        monkeypatch.setenv("GLM_TEST_FAULT", fault)
        monkeypatch.setenv("GLM_TEST_ONCE", str(tmp_path / "once"))

        async def work() -> None:
            async with ready_engine(folder, tp=2, step_s=2.0, worker="tests.engine.processes.faulty_worker") as engine:
                await self.loses_and_returns(engine, reason, lambda: None)

        run(work())

    def test_listening_sockets_are_on_loopback_and_nothing_is_left(self, folder: str, tmp_path: Path) -> None:
        left = set(Path(tempfile.gettempdir()).glob("glm-infill-*")) | set(Path("/dev/shm").iterdir())

        async def work() -> list[int]:
            async with ready_engine(folder, tp=2) as engine:
                listening = [address for pid in engine.pids for address in listens(pid)]
                assert listening
                assert set(listening) <= {"127.0.0.1", "::1"}
                return engine.pids

        pids = asyncio.run(asyncio.wait_for(work(), 60))
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert set(Path(tempfile.gettempdir()).glob("glm-infill-*")) | set(Path("/dev/shm").iterdir()) <= left

    def test_no_rank_outlives_its_supervisor(self, folder: str) -> None:
        program = (
            "import asyncio, sys\n"
            "from engine.config import EngineConfig\n"
            "from engine.processes.process import EngineProcess\n"
            "async def main():\n"
            f"    engine = EngineProcess(EngineConfig({folder!r}, threads=1, tp=2))\n"
            "    await engine.start()\n"
            "    while engine.state()[0] != 'ready': await asyncio.sleep(0.05)\n"
            "    print(*engine.pids, flush=True)\n"
            "    await asyncio.sleep(600)\n"
            "asyncio.run(main())\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 2
            process.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def listens(pid: int) -> list[str]:
    """The addresses on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table, size in (("tcp", 8), ("tcp6", 32)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # listening
                raw = bytes.fromhex(fields[1][:size])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.append(str(ipaddress.ip_address(words)))
    return found
