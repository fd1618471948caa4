"""The sampler against what its settings promise."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.jobs.sampler import Sampler, splitmix64
from engine.requests import Sampling
from quant import cpu
from tests.quant.conftest import running

LOGPROBS = torch.log_softmax(torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, 3.0]), 0)
ROW = LOGPROBS.numpy()
BAR = np.array([0, 0, 0, 0, 0, -np.inf], np.float32)


class Drawn(random.Random):
    """Random numbers of which the kernels' first one is as told: splitmix64 run backwards."""

    def __init__(self, uniform: float) -> None:
        z = int(uniform * 2**53) << 11
        for factor, shift in ((0x94D049BB133111EB, 31), (0xBF58476D1CE4E5B9, 27), (1, 30)):
            for by in (shift, 2 * shift):
                z ^= z >> by
            z = z * pow(factor, -1, 2**64) % 2**64
        self.state = (z - 0x9E3779B97F4A7C15) % 2**64

    def getrandbits(self, k: int, /) -> int:
        return self.state


def drawn(
    count: int = 400, history: tuple[int, ...] = (), banned: tuple[int, ...] = (), **settings: Any
) -> Counter[int]:
    sampler = Sampler(Sampling(**{"temperature": 1.0, **settings}), BAR, seed=0)
    return Counter(sampler.draw(ROW, history, banned, 0).token_id for _ in range(count))


def test_greedy_takes_the_best_allowed_token_and_reports_the_raw_logprob() -> None:
    token = Sampler(Sampling(), BAR, 0).draw(ROW, (), (), 2)
    assert token.token_id == 0
    assert token.logprob == float(LOGPROBS[0])
    assert [i for i, _ in token.top] == [5, 0]


def test_draws_follow_the_distribution_without_the_tokens_never_drawn() -> None:
    counts = drawn(4000)
    expected = torch.softmax(LOGPROBS[:5], 0)
    assert 5 not in counts
    for token in range(5):
        assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 1e-6}, {0}),
        *(({"top_p": share}, {0}) for share in (0.0, 1e-40, 1e-320)),
        ({"min_p": 0.5}, {0, 1}),
        ({"banned": (0, 1, 2)}, {3, 4}),
        ({"logit_bias": {4: 100.0}}, {4}),
        ({"history": (0, 1, 0), "rules": {"no_repeat_ngram_size": 2}}, {0, 2, 3, 4}),
        ({"history": (0, 1), "rules": {"repetition_penalty": 100.0}}, {2, 3, 4}),
    ],
)
def test_each_setting_leaves_just_the_tokens_it_should(settings: dict[str, Any], allowed: set[int]) -> None:
    assert set(drawn(**settings)) == allowed


def test_random_numbers_are_those_of_the_paper() -> None:
    """The first outputs of the authors' program from the state 0."""
    numbers = splitmix64(0)
    for expected in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F):
        assert next(numbers) == (expected >> 11) / 2**53


def test_one_seed_gives_one_sequence_and_another_seed_another() -> None:
    def sequence(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0), BAR, seed)
        return [sampler.draw(ROW, (), (), 0).token_id for _ in range(50)]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)


def test_penalties_come_off_the_logits_once_or_as_often_as_the_token_came() -> None:
    history = (0, 0, 0, 1)
    for penalties, taken in (
        ({"presence_penalty": 1.5}, {0: 1.5, 1: 1.5}),
        ({"frequency_penalty": 0.5}, {0: 1.5, 1: 0.5}),
        ({"presence_penalty": -2.0, "frequency_penalty": 1.0}, {0: 1.0, 1: -1.0}),
    ):
        scores = LOGPROBS[:5].clone()
        for token, value in taken.items():
            scores[token] -= value
        counts = drawn(4000, history=history, rules=penalties)
        expected = torch.softmax(scores, 0)
        for token in range(5):
            assert counts[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


@given(
    st.lists(st.floats(-50, 0, width=32), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6).filter(lambda never: not all(never)),
    st.sets(st.integers(0, 5), max_size=3),
)
def test_a_plain_draw_is_that_of_the_weighed_row(values: list[float], never: list[bool], banned: set[int]) -> None:
    sampler = Sampler(Sampling(), np.where(never, np.float32(-np.inf), np.float32(0)), 0)
    row = np.array(values, np.float32)
    weighed = sampler.weighed(row, (), tuple(banned))
    if weighed.max() == -np.inf:
        return
    token = sampler.draw(row, (), tuple(banned), 2)
    assert token.token_id == int(weighed.argmax())
    assert token.logprob == float(row[token.token_id])


@given(
    st.lists(st.sampled_from([-0.5, -1.0, -1.5, -2.0, -3.0, -9.0, -20.0]), min_size=2, max_size=60),
    st.sampled_from([0, 1, 2, 3, 12, 70]),
    st.sampled_from([1e-6, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.2, 0.9, 1.0]),
    st.sampled_from([0.3, 1.0, 1.7]),
)
def test_truncation_leaves_what_a_sorted_row_does(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """The plain way: sort all, cut."""
    row = torch.log_softmax(torch.tensor(values), 0)
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p), np.zeros(len(values), np.float32), 0)
    probabilities, order = torch.softmax(row / temperature, 0).double().sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    if (abs(before - top_p) < 1e-5).any() or (abs(probabilities - min_p * probabilities[0]) < 1e-5).any():
        return  # on the edge either is right
    keep = (before < top_p) & (probabilities >= min_p * probabilities[0])
    keep[top_k or len(values) :] = False
    allowed = set(order[keep].tolist())
    counts = Counter(sampler.draw(row.numpy(), (), (), 0).token_id for _ in range(150))
    assert set(counts) <= allowed
    for token in allowed:
        share = float(probabilities[order.tolist().index(token)] / probabilities[keep].sum())
        assert abs(counts[token] - 150 * share) < 6.5 * (150 * share * (1 - share)) ** 0.5 + 4
    # A point in a token's own weight gives that token, if it stays and only then.
    weights = torch.softmax(row / temperature, 0).double()
    middles = ((weights.cumsum(0) - weights / 2) / weights.sum()).tolist()
    for variant in ("torch", *cpu.kernels().supported()):
        with running(variant):
            sampler = Sampler(Sampling(temperature, top_k, top_p, min_p), np.zeros(len(values), np.float32), 0)
        for token, middle in enumerate(middles):
            if weights[token] > 1e-5:
                sampler._random = Drawn(middle)
                assert (sampler.draw(row.numpy(), (), (), 0).token_id == token) == (token in allowed)


@given(
    st.integers(1, 700),
    st.floats(0, 6),
    st.sampled_from([0, 1, 5, 800]),
    st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_kernel_draws_what_numpy_does(
    size: int, spread: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    row = torch.log_softmax(torch.from_numpy(rng.normal(0, spread, size).astype(np.float32)), 0).numpy()
    logit_mask = np.where(rng.random(size) < 0.1, -np.inf, 0).astype(np.float32)
    logit_mask[rng.integers(size)] = 0

    def draws(variant: str) -> list[int]:
        with running(variant):
            sampler = Sampler(Sampling(0.8, top_k, top_p, min_p), logit_mask, seed)
            return [sampler.draw(row, (), (), 0).token_id for _ in range(30)]

    plain = draws("torch")
    assert all(logit_mask[token] == 0 for token in plain)
    for variant in cpu.kernels().supported():
        # Rounding may decide at an edge.
        assert sum(a != b for a, b in zip(plain, draws(variant), strict=True)) <= 2


@pytest.mark.parametrize("variant", ["torch", *cpu.kernels().supported()])
def test_what_has_no_weight_is_never_drawn(variant: str) -> None:
    row = np.full(3000, -np.inf, np.float32)
    row[[0, 2500]] = np.log([0.4, 0.6])
    with running(variant):
        sampler = Sampler(Sampling(temperature=1.0), np.zeros(3000, np.float32), 0)
        counts = Counter(sampler.draw(row, (), (), 0).token_id for _ in range(2000))
    assert set(counts) == {0, 2500}
    assert counts[0] / 2000 == pytest.approx(0.4, abs=0.04)


@pytest.mark.parametrize("temperature", [1e-12, 1e-45, 1.3e-150, 5e-324])
def test_the_coldest_draw_is_the_greedy_one(temperature: float) -> None:
    for variant in ("torch", *cpu.kernels().supported()):
        with running(variant):
            assert set(drawn(20, temperature=temperature)) == {0}
    sampler = Sampler(Sampling(temperature=temperature), BAR, 0)
    assert sampler.pick({0: -2.0, 1: -1.0}) == 1
