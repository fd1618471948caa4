"""The scheduler with prefixes over random traces: a cache of what each slot holds, followed batch by batch."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.schedule.batch import Batch, Rows
from engine.schedule.blocks import BlockPool
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Prefix, Sequence
from model.attention import Span

Trace = list[tuple[int, int, int, int, int]]  # arrival step, context length, first rows, tokens to generate, adapter
Slot = tuple[object, ...]

TRACES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 12), st.integers(1, 4), st.integers(0, 8), st.integers(0, 4)),
    min_size=1,
    max_size=16,
)


class Cache:
    """What every slot was last written with: a token of a prefix, or one of a row's, whose past it saw."""

    def __init__(self, scheduler: Scheduler, prefixes: dict[int, Prefix]) -> None:
        self.scheduler = scheduler
        self.prefixes = prefixes
        self.slots: dict[int, Slot] = {}

    def run(self, batch: Batch) -> None:
        size = self.scheduler.pool.block_size
        for copy in batch.prefixes:
            length = self.prefixes[copy.adapter].length
            for number in range(copy.first, min(copy.first + len(copy.blocks) * size, length)):
                offset = number - copy.first
                self.slots[copy.blocks[offset // size] * size + offset % size] = ("prefix", copy.adapter, number)
        for rows in batch.rows:
            for index, (token, position) in enumerate(zip(rows.token_ids, rows.positions, strict=True)):
                self.slots[self._slot(rows.span, rows.span.start + index)] = ("token", rows.adapter, token, position)
        for rows in batch.rows:
            self._check(rows)

    def _slot(self, span: Span, number: int) -> int:
        size = self.scheduler.pool.block_size
        return span.blocks[number // size] * size + number % size

    def _check(self, rows: Rows) -> None:
        """All that a row sees before part B: its own prefix, whole and in order, and the tokens of one context."""
        seen = [self.slots[self._slot(rows.span, number)] for number in range(rows.span.context_len)]
        prefix = self.prefixes.get(rows.adapter)
        length, shift = (prefix.length, prefix.shift) if prefix is not None else (0, 0)
        assert seen[:length] == [("prefix", rows.adapter, number) for number in range(length)]
        assert seen[length:] == [("token", rows.adapter, n, n + shift) for n in range(len(seen) - length)]


def play(
    trace: Trace, budget: int, block_size: int, lengths: list[int], tenants: int, make: Callable[..., Sequence]
) -> None:
    # The largest: 20 tokens of prefix, 12 of context, 12 of part B, each from a block of its own on.
    scheduler = Scheduler(BlockPool(-(-48 // block_size) + 2, block_size), budget)
    prefixes = {n: Prefix(n, length, length * (n % 2)) for n, length in enumerate(lengths, 1) if length}
    for prefix in prefixes.values():
        scheduler.add_prefix(prefix)
    cache = Cache(scheduler, prefixes)
    left: dict[Sequence, int] = {}
    arrivals = sorted(trace)
    for step in range(1000):
        while arrivals and arrivals[0][0] <= step:
            _, context_len, rows, tokens, adapter = arrivals.pop(0)
            sequence = make(scheduler, context_len, rows, float(len(left)), str(len(left) % tenants), adapter)
            left[sequence] = 0 if sequence.whole else tokens
            scheduler.add(sequence)
        batch, chosen = scheduler.schedule()
        scheduler.check()
        assert batch.num_rows <= budget or len(chosen) == 1
        cache.run(batch)
        for sequence in chosen:
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
    for adapter in range(1, len(lengths) + 1):
        scheduler.forget(adapter)
    scheduler.clear_contexts()
    scheduler.check()
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def over_a_context(
    scheduler: Scheduler, context_len: int, rows: int, rank: float, tenant: str, adapter: int
) -> Sequence:
    sequence = Sequence(scheduler.context(tuple(range(context_len)), tenant, adapter), "token", rank)
    for block in range(rows):
        sequence.push(7, 1, block + 1)
    return sequence


def whole(scheduler: Scheduler, length: int, rows: int, rank: float, tenant: str, adapter: int) -> Sequence:
    """A masked language model's text."""
    sequence = Sequence(scheduler.context((), tenant, adapter), "token", rank, whole=True)
    for position in range(length):
        sequence.push(position, position, 0)
    return sequence


LENGTHS = st.lists(st.integers(0, 20), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(TRACES, st.integers(1, 40), st.sampled_from([1, 4, 16]), LENGTHS, st.integers(1, 3))
def test_everything_finishes_behind_its_own_prefix(
    trace: Trace, budget: int, block_size: int, lengths: list[int], tenants: int
) -> None:
    play(trace, budget, block_size, lengths, tenants, over_a_context)


@settings(max_examples=60, deadline=None)
@given(TRACES, st.integers(1, 40), st.sampled_from([1, 4, 16]), LENGTHS)
def test_texts_that_see_themselves_whole_too(trace: Trace, budget: int, block_size: int, lengths: list[int]) -> None:
    play(trace, budget, block_size, lengths, 1, whole)


def test_a_prefix_is_written_once_and_shared() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 1000)
    prefix = Prefix(3, 10, 0)
    scheduler.add_prefix(prefix)
    for number in range(5):
        scheduler.add(over_a_context(scheduler, 4 + number, 1, 0.0, "", 3))
    scheduler.add(over_a_context(scheduler, 9, 1, 0.0, "", 0))
    batch, chosen = scheduler.schedule()
    assert len(chosen) == 6
    assert [copy.first for copy in batch.prefixes] == [0, 8, 8, 8, 8, 8]  # whole blocks once, what is over each time
    assert prefix.blocks is not None
    assert scheduler.pool.holders(prefix.blocks[0]) == 1 + 5 + 5  # its own, contexts, sequences
    scheduler.check()


def test_contexts_of_adapters_are_apart() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 1000)
    contexts = [scheduler.context((1, 2, 3), tenant, adapter) for tenant in ("", "x") for adapter in (0, 1, 2)]
    assert len({id(context) for context in contexts}) == 6
    assert scheduler.context((1, 2, 3), "x", 2) is contexts[-1]
