"""The scheduler against the plain one: the same choices in random plays, down to the blocks."""

import random
from collections import Counter
from typing import Any

import pytest

from engine.schedule.blocks import BlockPool
from engine.schedule.fair_queue import FairQueue
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Prefix, Sequence
from tests.engine.schedule.plain_scheduler import PlainScheduler

PLAYS = 250  # of each seed
Pair = tuple[Sequence, Sequence]


class Play:
    """Both schedulers, and the sequences of each under one number."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.block_size = draw.choice((1, 2, 4))
        blocks, budget = draw.randint(30, 60) // self.block_size + 12, draw.choice((1, 6, 20, 60))
        self.fast = Scheduler(BlockPool(blocks, self.block_size), budget)
        self.plain = PlainScheduler(BlockPool(blocks, self.block_size), budget)
        self.both: tuple[Any, Any] = self.fast, self.plain
        self.fair_queue = FairQueue()
        self.tenants = draw.choice((1, 2, 3, 5, 8))
        self.adapters = draw.choice((0, 0, 2))
        for adapter in range(1, self.adapters + 1):
            length, shift = draw.randint(0, 6), draw.randint(0, 2)
            for scheduler in self.both:
                scheduler.add_prefix(Prefix(adapter, length, shift))
        self.alive: dict[Pair, int] = {}  # tokens left
        self.number: dict[Sequence, int] = {}
        self.seen: Counter[str] = Counter()

    def _known(self, pair: Pair, left: int) -> None:
        self.alive[pair] = left
        self.number |= dict.fromkeys(pair, len(self.number))

    def add(self) -> None:
        draw = self.draw
        tenant, adapter = f"tenant {draw.randrange(self.tenants)}", draw.randint(0, self.adapters)
        whole, length, rows = draw.random() < 0.1, draw.choice((1, 3, 8, 10)), draw.randint(1, 3)
        tokens = () if whole else (draw.randrange(2), *range(1, length))
        rank = self.fair_queue.take((tenant, ""), length + rows) + 1000 * (draw.random() < 0.1)
        made = []
        for scheduler in self.both:
            sequence = Sequence(scheduler.context(tokens, tenant, adapter), "token", rank, whole=whole)
            for row in range(length if whole else rows):
                sequence.push(row, row, 0)
            scheduler.add(sequence)
            made.append(sequence)
        self._known((made[0], made[1]), 0 if whole else draw.choice((0, 1, 3, 9, 14)))

    def fork(self, pair: Pair) -> None:
        """As beams do: one more with the same rows, which goes on with another token."""
        forks = []
        for scheduler, sequence in zip(self.both, pair, strict=True):
            fork = scheduler.fork(sequence)
            fork.push(99, 1, 1)
            scheduler.add(fork)
            forks.append(fork)
        self._known((forks[0], forks[1]), self.alive[pair])
        self.seen["forks"] += 1

    def end(self, pair: Pair) -> None:
        for scheduler, sequence in zip(self.both, pair, strict=True):
            scheduler.remove(sequence)
        del self.alive[pair]

    def step(self) -> None:
        (batch, chosen), (expected, plain_chosen) = (scheduler.schedule() for scheduler in self.both)
        assert [self.number[s] for s in chosen] == [self.number[s] for s in plain_chosen]
        assert batch == expected
        self.fast.check()
        assert self.fast.counts() == self.plain.counts()
        assert self.fast.usage() == self.plain.usage()
        for mine, theirs in ((self.fast.running, self.plain.running), (self.fast.waiting, self.plain.waiting)):
            assert [(self.number[s], s.rank) for s in mine] == [(self.number[s], s.rank) for s in theirs]
        if self.draw.random() < 0.02:  # memory ran out: the step is taken back
            self.fast.recall(chosen)
            self.plain.recall(plain_chosen)
            return
        for pair in [pair for pair in self.alive if pair[0] in set(chosen)]:
            self.fair_queue.served(int(pair[0].rank) % 1000)
            self.follow(pair)

    def follow(self, pair: Pair) -> None:
        """What a job does with a result: ends, waits for its siblings, or goes on, maybe twice."""
        if not self.alive[pair]:
            self.end(pair)
            return
        self.alive[pair] -= 1
        if self.draw.random() < 0.15:
            return  # idle, until `wake`
        if self.draw.random() < 0.1 and not pair[0].whole:
            self.fork(pair)
        self.push(pair)

    def push(self, pair: Pair) -> None:
        for sequence in pair:
            sequence.push(7, 1, len(sequence.token_ids) + 1)

    def turn(self) -> None:
        """Something that comes between two steps."""
        draw = self.draw
        for _ in range(draw.choice((0, 0, 1, 1, 3))):
            self.add()
        for pair in list(self.alive):
            chance = draw.random()
            if chance < 0.02:
                self.end(pair)  # cancelled
                self.seen["cancels"] += 1
            elif chance < 0.04:
                rank = float(draw.randrange(100))
                for scheduler, sequence in zip(self.both, pair, strict=True):
                    scheduler.rerank(sequence, rank)
            elif chance < 0.5 and pair[0].is_idle:
                self.push(pair)

    def close(self) -> None:
        for pair in list(self.alive):
            self.end(pair)
        for adapter in range(1, self.adapters + 1):
            for scheduler in self.both:
                scheduler.forget(adapter)
        for scheduler in self.both:
            scheduler.clear_contexts()
            scheduler.check()
            assert scheduler.pool.num_free == scheduler.pool.num_blocks


@pytest.mark.parametrize("seed", range(4))
def test_it_chooses_what_the_plain_one_chooses(seed: int) -> None:
    seen: Counter[str] = Counter()
    for number in range(PLAYS):
        play = Play(random.Random(seed * PLAYS + number))
        for _ in range(30):
            play.turn()
            play.step()
        seen += play.seen + Counter(preemptions=play.fast.preemptions, hits=play.fast.context_hits)
        play.close()
    assert min(seen[name] for name in ("forks", "cancels", "preemptions", "hits")) > PLAYS, seen
