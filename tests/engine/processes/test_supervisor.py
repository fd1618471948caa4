"""The supervisor over processes that start, fail and end in every way: each loss is told once, none in silence."""

import asyncio
import os
import resource
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.events import Done, Failed, Loss
from engine.processes.process import EngineProcess
from engine.processes.supervisor import GIVEN_UP
from engine.requests import Score

ROOT = Path(__file__).parents[3]
ASKED = Score(text=("a",))


class World:
    """Engines whose ranks live as they are told, and what was told of their losses."""

    def __init__(self, count: Path) -> None:
        self.count = count
        self.losses: list[Loss] = []

    @property
    def lives(self) -> int:
        return self.count.stat().st_size if self.count.exists() else 0

    @asynccontextmanager
    async def engine(self, tp: int = 1, **options: float) -> AsyncGenerator[EngineProcess, None]:
        odd: dict[str, Any] = {"worker": "tests.engine.processes.odd_rank", "backoff_s": (0.01,), **options}
        engine = EngineProcess(EngineConfig(tp=tp), **odd)
        await engine.start(self.losses.append)
        try:
            async with asyncio.timeout(60):
                yield engine
        finally:
            await engine.stop()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """`world("exit:3,serves")`: what becomes of the processes, one after the other."""

    def make(lives: str) -> World:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("ODD_LIVES", lives)
        monkeypatch.setenv("ODD_COUNT", str(tmp_path / "count"))
        return World(tmp_path / "count")

    return make


async def until(engine: EngineProcess, status: str) -> None:
    while engine.state()[0] != status:
        await asyncio.sleep(0.005)


async def ask(engine: EngineProcess) -> Done | Failed:
    await until(engine, "ready")
    ended = [event async for event in engine.submit(ASKED, "a")][-1]
    assert isinstance(ended, Done | Failed)
    return ended


@pytest.mark.parametrize(
    ("life", "reason", "detail"),
    [
        ("exit:3", "exit", "the engine process exited with code 3 before it was ready"),
        ("exit:0", "exit", "the engine process exited with code 0 before it was ready"),
        ("signal:9", "signal", "the engine process was killed by SIGKILL before it was ready; the system does that"),
        ("signal:35", "signal", "the engine process was killed by signal 35 before it was ready"),
        ("fails:no such folder", "load", "no such folder"),
    ],
)
def test_a_first_start_that_fails_is_told_once_and_not_tried_again(
    world: Callable[[str], World], life: str, reason: str, detail: str
) -> None:
    w = world(life)

    async def work() -> None:
        async with w.engine() as engine:
            await until(engine, "failed")
            assert engine.state()[1].startswith(detail)
            assert engine.is_given_up
            await asyncio.sleep(0.1)

    asyncio.run(work())
    (loss,) = w.losses
    assert (loss.reason, loss.final) == (reason, True)
    assert w.lives == 1


def test_each_loss_is_told_with_its_reason_until_an_answer_comes(world: Callable[[str], World]) -> None:
    w = world("serves-exit:3,exit:4,signal:11,fails:gone,serves")

    async def work() -> None:
        async with w.engine() as engine:
            failed = await ask(engine)
            assert isinstance(failed, Failed)
            assert failed.code == "engine_lost"
            assert "the engine process exited with code 3" in failed.message
            assert not engine.is_given_up
            assert isinstance(await ask(engine), Done)

    asyncio.run(work())
    assert [(loss.reason, loss.unanswered, loss.final) for loss in w.losses] == [
        ("exit", 1, False),
        ("exit", 2, False),
        ("signal", 3, False),
        ("load", 4, False),
    ]
    assert [loss.detail for loss in w.losses] == [
        "the engine process exited with code 3",
        "the engine process exited with code 4",
        "the engine process was killed by SIGSEGV",
        "gone",
    ]


def test_losses_without_an_answer_in_between_give_the_process_up_until_one_comes(
    world: Callable[[str], World],
) -> None:
    w = world(",".join(["serves-exit:3"] * GIVEN_UP) + ",serves")

    async def work() -> None:
        async with w.engine() as engine:
            for number in range(GIVEN_UP):
                assert not engine.is_given_up
                assert isinstance(await ask(engine), Failed)
                assert len(w.losses) == number + 1
            assert engine.is_given_up
            assert isinstance(await ask(engine), Done)
            assert not engine.is_given_up

    asyncio.run(work())


def test_so_does_being_ready_for_long(world: Callable[[str], World]) -> None:
    w = world(",".join(["serves-exit:3"] * GIVEN_UP) + ",serves")

    async def work() -> None:
        async with w.engine(well_s=0.5) as engine:
            for _ in range(GIVEN_UP):
                assert isinstance(await ask(engine), Failed)
            assert engine.is_given_up
            while engine.is_given_up:
                await asyncio.sleep(0.01)
            assert engine.state()[0] == "ready"

    asyncio.run(work())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None


def test_a_restart_that_cannot_be_made_is_told_and_tried_again(world: Callable[[str], World], folder: Path) -> None:
    """Ranks meet in a temporary folder: here it is gone, and comes back."""
    w = world("serves")

    async def work() -> None:
        async with w.engine(tp=2) as engine:
            await until(engine, "ready")
            # The first ranks have taken theirs along.
            folder.rename(folder.with_name("elsewhere"))
            os.kill(engine.pids[0], signal.SIGKILL)
            while len(w.losses) < 4:
                await asyncio.sleep(0.005)
            status, detail = engine.state()
            assert status == "restarting"
            assert "could not be started" in detail
            assert "No such file or directory" in detail
            folder.mkdir()
            assert isinstance(await ask(engine), Done)

    asyncio.run(work())
    assert [loss.reason for loss in w.losses[:3]] == ["signal", "start", "start"]


def test_without_descriptors_the_restart_waits_for_some(world: Callable[[str], World]) -> None:
    w = world("serves")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def work() -> None:
        async with w.engine() as engine:
            await until(engine, "ready")
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, hard))
            held = [os.open("/dev/null", os.O_RDONLY) for _ in free_descriptors()]
            os.kill(engine.pids[0], signal.SIGKILL)
            while len(w.losses) < 3:
                await asyncio.sleep(0.005)
            assert "Too many open files" in engine.state()[1]
            for descriptor in held:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert isinstance(await ask(engine), Done)

    try:
        asyncio.run(work())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [loss.reason for loss in w.losses[:2]] == ["signal", "start"]


def free_descriptors() -> Iterator[int]:
    """A number for each descriptor that may still be opened."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = {int(name) for name in os.listdir("/proc/self/fd")}
    yield from [number for number in range(soft) if number not in opened][1:]


def test_a_first_start_without_a_folder_for_the_ranks_fails_in_one_line(
    world: Callable[[str], World], folder: Path
) -> None:
    w = world("serves")
    folder.rmdir()
    tempfile.tempdir = str(folder)

    async def work() -> None:
        async with w.engine(tp=2) as engine:
            await until(engine, "failed")
            assert "the engine process could not be started" in engine.state()[1]
        async with w.engine() as engine:  # alone, a rank needs none
            assert isinstance(await ask(engine), Done)

    asyncio.run(work())


def test_what_the_supervisor_cannot_read_is_a_loss_like_others(world: Callable[[str], World]) -> None:
    """Were its task to end by it, everybody would wait for ever."""
    w = world("serves-babbles,serves")

    async def work() -> None:
        async with w.engine() as engine:
            assert isinstance(await ask(engine), Failed)
            assert isinstance(await ask(engine), Done)

    asyncio.run(work())
    (loss,) = w.losses
    assert loss.reason == "supervisor"
    assert "1 validation error" in loss.detail
