"""FairQueue between tenants: ranks by start-time fair queueing."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.schedule.fair_queue import FairQueue

A, B = ("a", "interactive"), ("b", "interactive")


def test_a_newcomer_goes_before_all_but_the_first_of_a_long_queue() -> None:
    fair_queue = FairQueue()
    queue = [fair_queue.take(A, 10) for _ in range(500)]
    assert queue == list(range(0, 5000, 10))
    fair_queue.served(queue[0])
    fair_queue.served(queue[1])
    assert fair_queue.take(B, 1000) == queue[1]


def test_rows_taken_while_nobody_else_waited_are_not_held_against_a_flow() -> None:
    fair_queue = FairQueue()
    for _ in range(100):
        fair_queue.served(fair_queue.take(A, 10))
    assert fair_queue.take(B, 10) == fair_queue.now
    assert fair_queue.take(A, 10) == fair_queue.now + 10
    fair_queue.rest()
    assert fair_queue.take(A, 10) == fair_queue.take(B, 10)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=60), st.integers(0, 60))
def test_flows_that_wait_together_get_equal_shares(queued: list[tuple[str, int]], num_served: int) -> None:
    fair_queue = FairQueue()
    items = [(fair_queue.take((name, ""), rows), number, name, rows) for number, (name, rows) in enumerate(queued)]
    assert all(x[0] < y[0] for x, y in itertools.pairwise(items) if x[2] == y[2])
    items.sort()
    for served in items[:num_served]:
        fair_queue.served(served[0])
    waiting = {name for _, _, name, _ in items[num_served:]}
    shares = [sum(rows for _, _, n, rows in items[:num_served] if n == name) for name in waiting]
    if shares:
        # Start-time fair queueing: no two that wait are further apart than one request of each.
        assert max(shares) - min(shares) <= 2 * 50
