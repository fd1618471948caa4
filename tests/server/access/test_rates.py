"""Token buckets, by a clock that the test sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.rates import Bucket, Rates
from server.wire.errors import ApiError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_bucket_gives_a_minute_s_worth_at_once_and_then_evenly():
    clock = Clock()
    bucket = Bucket(60, clock)
    assert [bucket.take(20) for _ in range(4)] == [0, 0, 0, 20]
    clock.now = 20
    assert [bucket.take(20), bucket.take(20)] == [0, 20]
    clock.now = 1000
    assert [bucket.take(60), bucket.take(1)] == [0, 1]


def test_more_than_a_full_bucket_needs_a_full_one_and_is_paid_off():
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.take(180) == 0
    assert bucket.take(1) == 121
    clock.now = 121
    assert bucket.take(1) == 0


def test_what_was_not_needed_comes_back_but_never_more_than_full():
    bucket = Bucket(60, Clock())
    assert bucket.take(50) == 0
    bucket.give(45)
    assert bucket.take(55) == 0
    bucket.give(1000)
    assert [bucket.take(60), bucket.take(1)] == [0, 1]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 200)), max_size=50))
def test_never_more_than_the_rate_and_one_bucket(asked):
    clock = Clock()
    bucket = Bucket(60, clock)
    given_out = 0.0
    for seconds, amount in asked:
        clock.now += seconds
        wait = bucket.take(amount)
        assert wait >= 0
        if wait == 0:
            # What exceeds a bucket is owed, and owed first.
            assert given_out <= 60 + clock.now + 1e-6
            given_out += amount
    assert given_out <= 60 + clock.now + 200 + 1e-6


def test_none_is_no_limit():
    rates = Rates()
    for _ in range(1000):
        rates.take_request()
        rates.take_tokens(10**9)
    rates.give_tokens(1)


def test_what_is_over_is_429_and_says_when_to_come_back():
    rates = Rates(Bucket(2, Clock()))
    rates.take_request()
    rates.take_request()
    with pytest.raises(ApiError) as caught:
        rates.take_request()
    assert (caught.value.status, caught.value.retry_s) == (429, 30)
