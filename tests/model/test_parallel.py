"""Collectives and layers of several ranks against the undivided ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.parallel import ALONE, Ranks, Vocabulary
from quant.usage import UsageError
from tests.ranks import on_ranks

SIZES = [1, 2, 4, 8]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 7), (300, 256)])
def test_a_sum_adds_up_from_the_first_rank_on(size: int, shape: tuple[int, ...]) -> None:
    expected = drawn(0, *shape)
    for rank in range(1, size):
        expected = expected + drawn(rank, *shape)
    for found in on_ranks(size, lambda ranks: ranks.all_reduce(drawn(ranks.rank, *shape))):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_bits_of_a_sum_do_not_depend_on_what_is_beside_it(size: int) -> None:
    rows = [drawn(rank, 513, 256) for rank in range(size)]
    whole = on_ranks(size, lambda ranks: ranks.all_reduce(rows[ranks.rank].clone()))[0]
    alone = on_ranks(size, lambda ranks: ranks.all_reduce(rows[ranks.rank][300:301].clone()))[0]
    assert torch.equal(whole[300:301], alone)


@pytest.mark.parametrize("size", SIZES)
def test_the_greatest_of_all_ranks(size: int) -> None:
    found = on_ranks(size, lambda ranks: ranks.all_reduce_max(drawn(ranks.rank, 4, 3)))
    expected = torch.stack([drawn(rank, 4, 3) for rank in range(size)]).amax(0)
    assert all(torch.equal(one, expected) for one in found)


@settings(max_examples=12, deadline=None)
@given(size=st.sampled_from(SIZES), ids=st.integers(16, 90), rows=st.integers(1, 5), count=st.integers(1, 12))
def test_a_divided_vocabulary_has_the_whole_one_s_distribution(size: int, ids: int, rows: int, count: int) -> None:
    logits = drawn(ids, rows, ids) * 5
    targets = torch.arange(rows) * 7 % ids
    whole = Vocabulary(ids, ALONE)
    expected = whole.log_softmax(logits)

    def work(ranks: Ranks) -> None:
        own = Vocabulary(ids, ranks)
        first, length = own.span
        logprobs = own.log_softmax(logits[:, first : first + length])
        torch.testing.assert_close(logprobs, expected[:, first : first + length])
        torch.testing.assert_close(
            own.picked(logprobs, torch.arange(rows), targets), expected.gather(1, targets[:, None])[:, 0]
        )
        values = expected.gather(1, targets[:, None]) - 0.5  # between two: a sum that rounds otherwise counts alike
        assert (
            own.num_above(logprobs, torch.arange(rows), values[:, 0]).tolist() == (expected > values).sum(-1).tolist()
        )
        values, found = own.top(logprobs, count)
        torch.testing.assert_close(values, expected.topk(count).values)
        torch.testing.assert_close(expected.gather(1, found), values)
        joined = own.whole(logprobs)
        if ranks.rank == 0:
            torch.testing.assert_close(joined, expected)

    on_ranks(size, work)


def test_a_row_that_is_not_finite_on_one_rank_is_not_finite_on_any() -> None:
    def work(ranks: Ranks) -> torch.Tensor:
        logits = drawn(ranks.rank, 2, 10)
        if ranks.rank == 1:
            logits[1, 3] = torch.nan
        return Vocabulary(20, ranks).log_softmax(logits)

    for logprobs in on_ranks(2, work):
        assert torch.isfinite(logprobs[0]).all()
        assert logprobs[1].isnan().all()


def test_what_ranks_do_not_divide_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="num_attention_heads 12 is not divisible by 8 ranks"):
        Ranks(0, 8).share(12, "num_attention_heads")
    assert Ranks(0, 8).share_or_copy(2, "num_key_value_heads") == 1
    with pytest.raises(UsageError, match="num_key_value_heads 3 is not divisible by 2 ranks"):
        Ranks(0, 2).share_or_copy(3, "num_key_value_heads")
