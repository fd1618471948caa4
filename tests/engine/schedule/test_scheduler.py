"""The scheduler over random traces, without a model: integers in, integers out."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.schedule.blocks import BlockPool
from engine.schedule.fair_queue import FairQueue
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Sequence

Trace = list[tuple[int, int, int, int]]  # arrival step, context length, first rows, tokens to generate

TRACES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 20), st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=20
)


def new_sequence(scheduler: Scheduler, context_len: int, rows: int, rank: float, tenant: str = "") -> Sequence:
    sequence = Sequence(scheduler.context(tuple(range(context_len)), tenant), "token", rank)
    for block in range(rows):
        sequence.push(7, 1, block + 1)
    return sequence


@settings(max_examples=150, deadline=None)
@given(TRACES, st.integers(1, 40), st.sampled_from([1, 4]), st.integers(1, 3))
def test_everything_finishes_and_no_block_is_lost(trace: Trace, budget: int, block_size: int, tenants: int) -> None:
    # 40 tokens of room: the largest item (20 + 18) fits, two seldom do, so contexts are dropped and work preempted.
    pool = BlockPool(-(-44 // block_size), block_size)
    scheduler = Scheduler(pool, budget)
    left: dict[Sequence, int] = {}
    arrivals = sorted(trace)
    fair_queue = FairQueue()
    for step in range(1000):
        while arrivals and arrivals[0][0] <= step:
            _, context_len, rows, tokens = arrivals.pop(0)
            tenant = str(len(left) % tenants)
            rank = fair_queue.take((tenant, ""), context_len + rows + tokens)
            sequence = new_sequence(scheduler, context_len, rows, rank, tenant)
            left[sequence] = tokens
            scheduler.add(sequence)
        batch, chosen = scheduler.schedule()
        scheduler.check()
        assert len(set(chosen)) == len(chosen)
        assert batch.num_rows <= budget or len(chosen) == 1
        written = [
            r.span.blocks[slot // block_size] * block_size + slot % block_size
            for r in batch.rows
            for slot in range(r.span.start, r.span.start + r.span.num_rows)
        ]
        assert len(set(written)) == len(written), "two rows write to one slot"
        for sequence in chosen:
            fair_queue.served(int(sequence.rank))
            assert sequence.pending == 0
            if left[sequence] == 0:
                scheduler.remove(sequence)
                del left[sequence]
            else:
                left[sequence] -= 1
                sequence.push(7, 1, len(sequence.token_ids) + 1)
        scheduler.check()
        if not left and not arrivals:
            break
        assert chosen or not left, "something waits and nothing runs"
    assert not left
    assert not arrivals


FAMILIES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 16), st.lists(st.integers(1, 3), min_size=1, max_size=7)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(FAMILIES, st.integers(1, 40), st.sampled_from([1, 4]), st.integers(1, 3), st.randoms(use_true_random=False))
def test_forks_that_wait_for_each_other_end_and_lose_no_block(
    trace: list[tuple[int, int, list[int]]], budget: int, block_size: int, tenants: int, draw: random.Random
) -> None:
    """Families as beams are: when all of a family have run, some go on, some are forked and some end. Every row is
    written once where its sequence will read it, by its own step or by a copy of a block."""
    pool = BlockPool(-(-48 // block_size), block_size)
    scheduler = Scheduler(pool, budget)
    kept: dict[int, tuple[object, ...]] = {}  # what each slot holds: the rows up to it
    families: dict[int, tuple[list[Sequence], list[int]]] = {}
    arrivals = sorted(trace)
    for step in range(2000):
        while arrivals and arrivals[0][0] <= step:
            _, context_len, sizes = arrivals.pop(0)
            first = new_sequence(scheduler, context_len, 1, float(step), str(len(arrivals) % tenants))
            families[len(arrivals)] = [first], list(sizes)
            scheduler.add(first)
        batch, chosen = scheduler.schedule()
        scheduler.check()
        for source, target in batch.copies:
            for offset in range(block_size):
                kept[target * block_size + offset] = kept.get(source * block_size + offset, ())
        for rows, sequence in zip(batch.rows[len(batch.rows) - len(chosen) :], chosen, strict=True):
            done = len(sequence.token_ids) - rows.span.num_rows
            slots = [
                rows.span.blocks[slot // block_size] * block_size + slot % block_size
                for slot in range(rows.span.start - done, rows.span.start + rows.span.num_rows)
            ]
            for number, slot in enumerate(slots):
                if number >= done:
                    kept[slot] = tuple(sequence.token_ids[: number + 1])
                assert kept[slot] == tuple(sequence.token_ids[: number + 1]), "a row is not where it is read"
        for number, (members, sizes) in list(families.items()):
            if not all(s.is_idle for s in members):
                continue
            size = sizes.pop(0) if sizes else 0
            going = [draw.choice(members) for _ in range(size)]
            children = []
            for place, parent in enumerate(going):
                last = parent not in going[place + 1 :]
                children.append(parent if last else scheduler.fork(parent))
            for ended in members:
                if ended not in children:
                    scheduler.remove(ended)
            for label, child in enumerate(children):
                child.push(label, 1, len(child.token_ids) + 1)
                if child not in members:
                    scheduler.add(child)
            if children:
                families[number] = children, sizes
            else:
                del families[number]
            scheduler.check()
        if not families and not arrivals:
            break
        assert chosen or not families, "something waits and nothing runs"
    assert not families
    assert pool.num_free + sum(len(c.blocks or ()) for c in scheduler.contexts.cached) == pool.num_blocks


def test_sequences_over_one_context_share_its_encoding_in_one_step() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 100)
    sequences = [new_sequence(scheduler, 10, 2, 0.0) for _ in range(5)]
    for sequence in sequences:
        scheduler.add(sequence)
    batch, chosen = scheduler.schedule()
    assert chosen == sequences
    assert batch.num_rows == 10 + 5 * 2
    assert len({s.context_blocks for s in sequences}) == 1


def test_a_later_request_finds_the_context_cached() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 100)
    first = new_sequence(scheduler, 10, 1, 0.0)
    scheduler.add(first)
    scheduler.schedule()
    scheduler.remove(first)
    scheduler.add(new_sequence(scheduler, 10, 1, 1.0))
    batch, _ = scheduler.schedule()
    assert batch.num_rows == 1
    assert scheduler.context_hits == 1


def test_smaller_rank_goes_first_and_equals_in_order_of_arrival() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 1)
    late, first, second = (new_sequence(scheduler, 1, 1, rank) for rank in (5.0, 1.0, 1.0))
    for sequence in (late, first, second):
        scheduler.add(sequence)
    assert list(scheduler.waiting) == [first, second, late]


def test_an_item_over_the_budget_runs_alone() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4)
    big = new_sequence(scheduler, 30, 3, 0.0)
    scheduler.add(big)
    scheduler.add(new_sequence(scheduler, 2, 1, 1.0))
    assert scheduler.schedule()[1] == [big]


def fill_up(scheduler: Scheduler, count: int, tenant: str) -> list[Sequence]:
    """As many waiting sequences, the first few of which run."""
    sequences = [new_sequence(scheduler, 3, 1, float(number), tenant) for number in range(count)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.schedule()
    return sequences


@pytest.mark.parametrize("short_of", ["blocks", "rows"])
def test_a_tenant_that_holds_all_makes_way_for_another_s_single_sequence(short_of: str) -> None:
    pool, budget = (BlockPool(20, 1), 1000) if short_of == "blocks" else (BlockPool(1000, 1), 20)
    scheduler = Scheduler(pool, budget)
    many = fill_up(scheduler, 100, "many")
    for sequence in scheduler.running:
        sequence.push(7, 1, 2)
    running = len(scheduler.running)
    assert 10 < running < 100
    one = new_sequence(scheduler, 2, 1, many[running - 1].rank, "one")
    scheduler.add(one)
    _, chosen = scheduler.schedule()
    scheduler.check()
    assert one in chosen
    assert many[0] in chosen
    # Nor is it preempted for the blocks that the others need, as long as it holds less than half.
    for _ in range(5):
        for sequence in scheduler.running:
            sequence.push(7, 1, 2)
        _, chosen = scheduler.schedule()
        scheduler.check()
        assert one in chosen


def test_two_that_hold_as_much_do_not_preempt_each_other() -> None:
    scheduler = Scheduler(BlockPool(20, 4), 1000)
    for tenant in ("a", "b"):
        for number in range(50):
            scheduler.add(new_sequence(scheduler, 2, 1, float(number), tenant))
    scheduler.schedule()
    running = list(scheduler.running)
    assert len({s.context.tenant for s in running}) == 2
    for _ in range(3):
        for sequence in running:
            sequence.push(7, 1, 2)
        scheduler.schedule()
    assert list(scheduler.running) == running
    assert scheduler.preemptions == 0


def test_small_ones_of_a_tenant_that_holds_more_do_not_pass_a_large_one() -> None:
    scheduler = Scheduler(BlockPool(20, 1), 1000)
    for _ in range(3):
        scheduler.add(new_sequence(scheduler, 3, 1, 0.0, "small"))
    scheduler.schedule()
    large = new_sequence(scheduler, 15, 1, 1.0, "large")
    scheduler.add(large)
    late = [new_sequence(scheduler, 3, 1, 2.0, "small") for _ in range(10)]
    for sequence in late:
        scheduler.add(sequence)
    for sequence in scheduler.running:
        sequence.push(7, 1, 2)
    for sequence in scheduler.schedule()[1] + list(scheduler.running):
        scheduler.remove(sequence)
    assert not any(s in scheduler.running for s in late)
    assert scheduler.schedule()[1][0] is large


def test_tenants_share_no_context() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 100)
    mine, theirs, again = (new_sequence(scheduler, 10, 1, 0.0, tenant) for tenant in ("a", "b", "a"))
    assert mine.context is again.context
    assert mine.context is not theirs.context
    for sequence in (mine, theirs):
        scheduler.add(sequence)
        assert scheduler.schedule()[0].num_rows == 11
        scheduler.remove(sequence)
    assert scheduler.context_hits == 0
    scheduler.context(tuple(range(10)), "c")
    assert scheduler.context_hits == 0
    scheduler.context(tuple(range(10)), "b")
    assert scheduler.context_hits == 1
