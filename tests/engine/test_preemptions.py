"""A cache that is too small for all: what was preempted comes to the bits that it comes to alone, in a large one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Event, ResultDone
from engine.loading import load_runner
from engine.ranks import Channel, follow
from engine.requests import Fill, Request, Sampling, Score
from model.checkpoint import load
from model.parallel import Ranks
from tests.engine.test_engine import TWO, segments
from tests.ranks import on_ranks

LINES = [f"{'the old river ' * n}[MASK] under the bridge" for n in range(1, 6)]
CHOICES = ("red boat on the river", "red boat under the hill", "red cat", "blue")
SCORES = [Score(text=segments(TWO), spans=tuple((f"{'runs ' * (n + 9)}", f"{'birds ' * k}") for k in range(4, 7)))
          for n in range(4)]  # fmt: skip
KINDS: dict[str, list[Request]] = {
    "greedy": [Fill((segments(line),), (40,), (40,)) for line in LINES],
    "sampled": [Fill((segments(line),), (30,), (30,), Sampling(1.2, top_p=0.9, seed=n), n=2)
                for n, line in enumerate(LINES)],
    "several blanks": [Fill((segments(TWO),), (25,), (25,), Sampling(0.9, seed=n), strategy=strategy)  # type: ignore[arg-type]
                       for n, strategy in enumerate(("append", "reencode", "parallel", "append"))],
    "beams": [Fill((segments(line),), (20,), (20,), num_beams=4, n=2) for line in LINES[:3]],
    "choices": [Fill((segments(f"{'so ' * n}{TWO}"),), (30,), choices=(CHOICES, None)) for n in range(6)],
}  # fmt: skip
# A score is computed in the step that it starts in: it makes others go, and comes back to contexts that are gone.
KINDS["scores"] = [*KINDS["sampled"][:3], *(replace(score, tenant="other") for score in SCORES)]
KINDS["all"] = [request for kind in list(KINDS.values()) for request in kind[-2:]]


def served(engine: Engine, requests: list[Request]) -> dict[str, list[Any]]:
    """The results of requests that are all under way at once."""
    for number, request in enumerate(requests):
        engine.add(engine.prepare(request, str(number)), request)
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
        engine.scheduler.check()
    assert engine.scheduler.usage() == 0
    found: dict[str, list[Any]] = {str(number): [] for number in range(len(requests))}
    for event in events:
        if isinstance(event, ResultDone):
            found[event.id].append(event.result)
    return {number: sorted(results, key=lambda result: result.index) for number, results in found.items()}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.mark.parametrize(("kind", "quant"), [*((kind, "none") for kind in KINDS), ("all", "int8")])
def test_preempted_requests_give_the_bits_that_they_give_alone(folder: Path, kind: str, quant: str) -> None:
    requests = KINDS[kind]
    config = EngineConfig(str(folder), quant=quant, kv_cache_gb=0.0002, threads=1)
    small, roomy = Engine(config), Engine(config.model_copy(update={"kv_cache_gb": 0.01}))
    together = served(small, requests)
    assert small.scheduler.preemptions > 0
    for number, request in enumerate(requests):
        assert together[str(number)] == served(roomy, [request])["0"]
        assert together[str(number)]
    assert roomy.scheduler.preemptions == 0


def test_preempted_requests_of_two_ranks_too(folder: Path) -> None:
    requests = KINDS["all"]

    def work(ranks: Ranks) -> list[Any]:
        found: list[Any] = []
        for kv_cache_gb, groups in ((0.00013, [requests]), (0.005, [[request] for request in requests])):
            loaded = load_runner(EngineConfig(kv_cache_gb=kv_cache_gb), load(folder, ranks=ranks), ranks)
            assert ranks.group is not None
            channel = Channel(ranks, ranks.group)
            if ranks.rank > 0:
                follow(loaded.runner, channel)
                continue
            engine = Engine(EngineConfig(kv_cache_gb=kv_cache_gb), loaded=loaded, channel=channel)
            found.append(([results for group in groups for results in served(engine, group).values()],
                          engine.scheduler.preemptions))  # fmt: skip
            channel.stop()
        return found

    (together, preemptions), (alone, none) = on_ranks(2, work)[0]
    assert preemptions > 0
    assert none == 0
    assert together == alone
