"""Fault 12: memory runs out in a step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Event, Failed, ResultDone
from engine.ranks import BroadcastingRunner
from engine.requests import Fill, Request, Score
from engine.runner import LOGIT_ROWS
from tests.answers import wire
from tests.engine.test_engine import TWO, segments


class Short:
    """A runner without the memory for a step of more than some rows."""

    def __init__(self, runner: Any, most: int, error: Exception) -> None:
        self.runner, self.most, self.error = runner, most, error
        self.failures = 0

    def run(self, batch: Any, num_top: int) -> Any:
        if batch.num_rows > self.most:
            self.failures += 1
            raise self.error
        return self.runner.run(batch, num_top)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
]


def results(events: list[Event]) -> dict[str, Any]:
    return {e.id: wire(e.result) for e in events if isinstance(e, ResultDone)}


HUGE: dict[str, Request] = {
    "candidates": Score(text=segments("[MASK] near the hill"), spans=tuple((f"{n} " * 20,) for n in range(12))),
    "context": Score(context=segments("hill " * 200 + "[MASK]"), targets=(" bird",)),
}


@pytest.mark.parametrize("huge", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_largest_request_ends_and_the_others_come_to_the_same(
    tiny_checkpoint: Callable[..., Path], error: Exception, huge: Request
) -> None:
    engine = Engine(EngineConfig(str(tiny_checkpoint(max_sequence_length=1024)), kv_cache_gb=0.02))
    small: dict[str, Request] = {
        "fill": Fill((segments(TWO),), (6,)),
        "score": Score(context=segments("the old"), targets=(" cat", " bird")),
    }
    alone = {name: results(engine.run(request, name))[name] for name, request in small.items()}
    engine.runner = short = Short(engine.runner, 150, error)  # type: ignore[assignment]
    requests = {**small, "huge": huge}
    for name, request in requests.items():
        engine.add(engine.prepare(request, name), request)
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
        engine.scheduler.check()
    assert short.failures == 1
    (failed,) = (e for e in events if isinstance(e, Failed))
    assert (failed.id, failed.outcome, failed.code) == ("huge", "overloaded", "insufficient_memory")
    assert results(events) == alone
    assert short.logit_chunk == LOGIT_ROWS // 2
    short.most = 10_000
    assert results(engine.run(huge, "again"))["again"]["num_tokens"]


def test_other_errors_are_not_taken_for_it(tiny_checkpoint: Callable[..., Path]) -> None:
    engine = Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01))
    engine.runner = Short(engine.runner, 0, RuntimeError("index out of range"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="index out of range"):
        engine.run(Fill((segments(TWO),), (2,)))


def test_among_several_ranks_it_ends_them_all(tiny_checkpoint: Callable[..., Path]) -> None:
    """Their supervisor starts them again: one alone cannot take a step back."""
    engine = Engine(EngineConfig(str(tiny_checkpoint()), kv_cache_gb=0.01))

    class Channel:
        def tell(self, batch: Any, num_top: int) -> None:
            pass

    engine.runner = BroadcastingRunner(Short(engine.runner, 0, MemoryError()), Channel())  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        engine.run(Fill((segments(TWO),), (2,)))
