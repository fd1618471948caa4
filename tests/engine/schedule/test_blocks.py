from hypothesis import given
from hypothesis import strategies as st

from engine.schedule.blocks import BlockPool


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 5)), max_size=60))
def test_no_block_is_lost_or_handed_out_twice(steps: list[tuple[str, int]]) -> None:
    pool = BlockPool(12, 4)
    held: list[list[int]] = []
    for action, number in steps:
        if action == "allocate":
            free = pool.num_free
            blocks = pool.allocate(number)
            assert (blocks is None) == (number > free)
            if blocks is not None:
                assert not {b for group in held for b in group} & set(blocks)
                held.append(blocks)
        elif held:
            group = held[number % len(held)]
            if action == "share":
                pool.share(group)
                held.append(group)
            else:
                held.remove(group)
                pool.release(group)
        pool.check()
    for group in held:
        pool.release(group)
    assert pool.num_free == 12


def test_blocks_for_rounds_up() -> None:
    assert [BlockPool(1, 4).blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
