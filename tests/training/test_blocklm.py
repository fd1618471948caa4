"""The pretraining objective: worked examples, properties for every text, and its statistics."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.blocklm import (
    Mixture,
    Sample,
    Span,
    SpecialIds,
    continuation,
    corrupt,
    document_span,
    sample,
    sentence_spans,
    span_lengths,
    token_spans,
)

CLS, EOS, SOP, EOP, MASK, SMASK, GMASK = range(100, 107)
SPECIAL = SpecialIds(cls=CLS, eos=EOS, sop=SOP, eop=EOP, mask=MASK, smask=SMASK, gmask=GMASK)
MIXTURE = Mixture()


def text(num_tokens: int) -> NDArray[np.int64]:
    """x1, x2, … as 1, 2, …"""
    return np.arange(1, num_tokens + 1)


def poisson(length: int, mean: float = 3.0, longest: int = 39) -> float:
    """The probability of a length in a Poisson distribution cut to 1 … longest."""

    def weight(k: int) -> float:
        return mean**k / math.factorial(k)

    return weight(length) / sum(weight(k) for k in range(1, longest + 1))


def check_spans(spans: list[Span], num_tokens: int, gap: int) -> None:
    assert spans
    assert all(0 <= start < end <= num_tokens for start, end in spans)
    assert all(after[0] - before[1] >= gap for before, after in pairwise(spans))


def restored(result: Sample, num_spans: int) -> list[int]:
    """The text that part A and the targets of part B make, by reading the sample alone."""
    part_a = result.token_ids[: result.context_len].tolist()
    fills: dict[int, list[int]] = {}
    for target, position in zip(
        result.targets[result.context_len :], result.positions[result.context_len :], strict=True
    ):
        fills.setdefault(int(position), []).append(int(target))
    assert len(fills) == num_spans
    out: list[int] = []
    for index, token in enumerate(part_a):
        out += fills.get(index, [token])
    return [token for token in out if token < 100]


# Worked examples


def test_figure_2_of_the_paper() -> None:
    """x1…x6 with [x3] and [x5, x6] masked, the second span first; [CLS] and the end token as the code adds."""
    result = corrupt(text(6), [(2, 3), (4, 6)], MASK, SPECIAL, np.array([1, 0]))
    #      part A                                      span 2            span 1
    # fmt: off
    assert result.token_ids.tolist() == \
        [CLS, 1, 2, MASK, 4, MASK, EOS,                SOP, 5, 6,        SOP, 3]
    assert result.positions.tolist() == \
        [0,   1, 2, 3,    4, 5,    6,                  5,   5, 5,        3,   3]
    assert result.block_positions.tolist() == \
        [0,   0, 0, 0,    0, 0,    0,                  1,   2, 3,        1,   2]
    assert result.targets.tolist() == \
        [-1, -1, -1, -1, -1, -1,  -1,                  5,   6, EOP,      3,   EOP]
    # fmt: on
    assert result.context_len == 7


def test_gmask_at_the_end_has_no_end_token_in_part_a() -> None:
    result = corrupt(text(5), [(2, 5)], GMASK, SPECIAL, np.array([0]))
    assert result.token_ids.tolist() == [CLS, 1, 2, GMASK, SOP, 3, 4, 5]
    assert result.positions.tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert result.block_positions.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert result.targets.tolist() == [-1, -1, -1, -1, 3, 4, 5, EOP]
    assert result.context_len == 4


def test_gmask_inside_keeps_the_end_token() -> None:
    result = corrupt(text(5), [(1, 4)], GMASK, SPECIAL, np.array([0]))
    assert result.token_ids.tolist() == [CLS, 1, GMASK, 5, EOS, SOP, 2, 3, 4]
    assert result.targets.tolist() == [-1] * 5 + [2, 3, 4, EOP]


def test_mask_at_the_end_keeps_the_end_token() -> None:
    result = corrupt(text(3), [(2, 3)], MASK, SPECIAL, np.array([0]))
    assert result.token_ids.tolist() == [CLS, 1, 2, MASK, EOS, SOP, 3]


def test_neighbouring_sentences_are_two_blanks() -> None:
    result = corrupt(text(4), [(0, 2), (2, 4)], SMASK, SPECIAL, np.array([0, 1]))
    assert result.token_ids.tolist() == [CLS, SMASK, SMASK, EOS, SOP, 1, 2, SOP, 3, 4]
    assert result.positions[4:].tolist() == [1, 1, 1, 2, 2, 2]


def test_continuation_learns_no_end() -> None:
    result = continuation(text(5), 3, SPECIAL)
    assert result.token_ids.tolist() == [CLS, 1, 2, GMASK, SOP, 3, 4]
    assert result.positions.tolist() == [0, 1, 2, 3, 3, 3, 3]
    assert result.block_positions.tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert result.targets.tolist() == [-1, -1, -1, -1, 3, 4, 5]
    assert result.context_len == 4


# Properties


@given(num_tokens=st.integers(1, 300), seed=st.integers(0, 2**32), ratio=st.floats(0.01, 0.9))
def test_token_spans_of_every_text(num_tokens: int, seed: int, ratio: float) -> None:
    mixture = Mixture(mask_ratio=ratio)
    check_spans(token_spans(num_tokens, mixture, np.random.default_rng(seed)), num_tokens, gap=1)


@given(data=st.data(), num_tokens=st.integers(2, 120), seed=st.integers(0, 2**32))
def test_every_sample_restores_its_text(data: st.DataObject, num_tokens: int, seed: int) -> None:
    borders = sorted(data.draw(st.sets(st.integers(1, num_tokens - 1), max_size=8)))
    sentences = list(zip([0, *borders], [*borders, num_tokens], strict=True))
    result = sample(text(num_tokens) % 100, sentences, MIXTURE, SPECIAL, np.random.default_rng(seed))
    length = result.context_len
    part_a, part_b = result.token_ids[:length], result.token_ids[length:]
    kinds = {MASK, SMASK, GMASK} & set(part_a.tolist())
    assert len(kinds) == 1
    mask_indices = np.flatnonzero(np.isin(part_a, list(kinds)))

    # Part A counts up, is not learned from, and has no start token; part B starts with one.
    assert result.positions[:length].tolist() == list(range(length))
    assert not result.block_positions[:length].any()
    assert (result.targets[:length] == -1).all()
    assert SOP not in part_a
    assert part_b[0] == SOP
    assert EOP not in part_b

    # Each span stands at its mask, counts its blocks from 1, and its targets are its inputs shifted by one.
    starts = [int(i) for i in np.flatnonzero(part_b == SOP)]
    seen = []
    for start, end in zip(starts, [*starts[1:], len(part_b)], strict=True):
        span, targets = part_b[start:end], result.targets[length + start : length + end]
        (position,) = set(result.positions[length + start : length + end].tolist())
        seen.append(position)
        assert result.block_positions[length + start : length + end].tolist() == list(range(1, len(span) + 1))
        assert targets[:-1].tolist() == span[1:].tolist()
        assert targets[-1] == EOP or kinds == {GMASK}
    assert sorted(seen) == mask_indices.tolist()
    assert restored(result, len(starts)) == (text(num_tokens) % 100).tolist()


@given(num_tokens=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_document_span_stays_in_its_bounds(num_tokens: int, seed: int) -> None:
    start, end = document_span(num_tokens, MIXTURE, np.random.default_rng(seed))
    assert 0 <= start < end <= num_tokens
    if num_tokens >= 4:
        assert num_tokens // 4 <= end - start <= num_tokens - 2


# Statistics: fixed seeds, so that they either hold or do not


def test_span_lengths_are_poisson_cut_to_1_and_39() -> None:
    """Pooled over texts: drawing until a sum is reached does not bend the lengths' frequencies (Wald)."""
    rng = np.random.default_rng(0)
    counts = Counter(n for _ in range(4000) for n in span_lengths(200, MIXTURE, rng))
    total = counts.total()
    assert total > 30_000
    for length in range(1, 10):
        expected = poisson(length)
        assert counts[length] / total == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / total))
    assert min(counts) == 1


def test_lengths_above_the_maximum_are_drawn_again() -> None:
    mixture = Mixture(mean_span=3.0, max_span=2)
    rng = np.random.default_rng(0)
    counts = Counter(n for _ in range(2000) for n in span_lengths(100, mixture, rng))
    assert set(counts) == {1, 2}
    assert counts[1] / counts.total() == pytest.approx(poisson(1, longest=2), abs=0.02)


def test_masked_share_reaches_15_percent_and_passes_it_by_less_than_a_span() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(1000):
        lengths = span_lengths(400, MIXTURE, rng)
        assert sum(lengths) >= 60 > sum(lengths[:-1])
        shares.append(sum(lengths) / 400)
    assert 0.15 <= np.mean(shares) < 0.16


def test_last_span_is_not_cut_to_the_ratio() -> None:
    """With one token wanted, the only span still has a Poisson length."""
    rng = np.random.default_rng(0)
    counts = Counter(b - a for _ in range(4000) for a, b in token_spans(100, Mixture(mask_ratio=0.01), rng))
    assert counts[1] / counts.total() == pytest.approx(poisson(1), abs=0.03)


def test_short_text_is_masked_whole_at_most() -> None:
    rng = np.random.default_rng(0)
    assert {tuple(token_spans(1, MIXTURE, rng)) for _ in range(20)} == {((0, 1),)}
    assert all(b <= 3 for _ in range(200) for _, b in token_spans(3, MIXTURE, rng))


def test_token_spans_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    hits = np.zeros(60)
    for _ in range(4000):
        spans = token_spans(60, MIXTURE, rng)
        check_spans(spans, 60, gap=1)
        for start, end in spans:
            hits[start:end] += 1
    assert hits.min() > 0  # the first and last tokens stand in fewer spans, as in GLM's code
    assert hits[5:-5].min() > 0.85 * hits[5:-5].max()
    assert hits[:30].sum() / hits.sum() == pytest.approx(0.5, abs=0.02)


def test_sentence_spans_are_whole_sentences_until_15_percent() -> None:
    sentences = [(0, 5), (5, 9), (9, 20), (20, 22), (22, 40), (40, 60)]
    sizes = {s: s[1] - s[0] for s in sentences}
    rng = np.random.default_rng(0)
    first: Counter[Span] = Counter()
    for _ in range(3000):
        spans = sentence_spans(sentences, 60, MIXTURE, rng)
        assert set(spans) <= set(sentences)
        assert spans == sorted(set(spans))
        masked = sum(sizes[s] for s in spans)
        assert masked >= 9
        # The last one chosen was still wanted: without the largest of them it was not enough.
        assert masked - max(sizes[s] for s in spans) < 9
        first.update(spans)
    assert set(first) == set(sentences)


def test_document_span_is_uniform_in_length_and_place() -> None:
    rng = np.random.default_rng(0)
    spans = [document_span(20, MIXTURE, rng) for _ in range(14_000)]
    lengths = Counter(b - a for a, b in spans)
    assert set(lengths) == set(range(5, 19))
    assert all(count == pytest.approx(1000, abs=150) for count in lengths.values())
    starts = Counter(a for a, b in spans if b - a == 10)
    assert set(starts) == set(range(11))
    assert max(starts.values()) < 2 * min(starts.values())


def test_order_of_spans_is_uniform() -> None:
    mixture = Mixture(token=0, sentence=1, document=0, mask_ratio=1.0)
    rng = np.random.default_rng(0)
    orders: Counter[tuple[int, ...]] = Counter()
    for _ in range(3000):
        result = sample(text(9), [(0, 3), (3, 6), (6, 9)], mixture, SPECIAL, rng)
        positions = result.positions[result.context_len :].tolist()
        orders[tuple(dict.fromkeys(positions))] += 1
    assert len(orders) == 6
    assert all(count == pytest.approx(500, abs=110) for count in orders.values())


def test_shares_of_the_mixture() -> None:
    rng = np.random.default_rng(0)
    sentences = [(0, 10), (10, 25), (25, 40)]
    kinds: Counter[str] = Counter()
    for _ in range(6000):
        result = sample(text(40), sentences, MIXTURE, SPECIAL, rng)
        (mask,) = {MASK, SMASK, GMASK} & set(result.token_ids.tolist())
        ends = int(result.targets[-1]) == EOP
        kinds[{MASK: "token", SMASK: "sentence"}.get(mask, "document" if ends else "continuation")] += 1
    shares = {kind: count / kinds.total() for kind, count in kinds.items()}
    assert shares == {
        "token": pytest.approx(0.5, abs=0.03),
        "sentence": pytest.approx(0.3, abs=0.03),
        "document": pytest.approx(0.2 * 0.9, abs=0.03),
        "continuation": pytest.approx(0.2 * 0.1, abs=0.01),
    }


def test_one_sentence_alone_is_masked_by_tokens() -> None:
    mixture = Mixture(token=0, sentence=1, document=0)
    result = sample(text(40), [(0, 40)], mixture, SPECIAL, np.random.default_rng(0))
    assert MASK in result.token_ids
