"""The sampler: draws the next token of one sequence from its log-probabilities.

By numpy, one row at a time: neighbours cannot change a draw, and torch takes longer to be called than a row takes.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.batch import Row, Scored
from engine.requests import RequestError, Sampling

Weights = NDArray[np.float32] | NDArray[np.float64]

_LEAST_WEIGHTS = (2**-8, 2**-14, 0.0)  # from which one on a nucleus is looked for
_CHUNK = 1024  # weights summed before it is looked among them
_COLDEST = 1e-30  # colder ones would divide by what float32 takes for zero


class Sampler:
    """One sequence's way of drawing: its settings, its random numbers, and the ids that are never drawn."""

    def __init__(self, sampling: Sampling, bar: Row, seed: int | None) -> None:
        self.sampling = sampling
        """`bar` has −∞ for ids that are never drawn, else 0."""
        self._bar = bar
        self._is_unweighed = _is_unweighed(sampling)
        self._is_truncated = bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)
        self._random = random.Random(seed)

    def draw(
        self,
        logprobs: Row,
        history: Sequence[int],
        banned: Collection[int],
        num_top: int,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Scored:
        """The drawn token of [vocab_size] with its raw log-probability, before penalties, temperature and truncation.

        `history` are the blank's tokens so far, `banned` further ids that may not come now (such as the end token
        before `min_tokens`), `allowed` [vocab_size] bool those that a regex lets come. Raises RequestError if no token
        is left.
        """
        scores = self.weighed(logprobs, history, banned)
        if allowed is not None:
            scores[~allowed] = -np.inf
            if scores.max() == -np.inf:
                raise RequestError("no token can go on with a text that matches the pattern", "regex")
        token = self._drawn(scores) if self.sampling.temperature else int(scores.argmax())
        return scored(logprobs, token, num_top)

    def pick(self, worth: Mapping[int, float]) -> int:
        """One of the keys, by log-probabilities: the first of the best, or one drawn at the temperature."""
        if self.sampling.temperature == 0:
            return max(worth, key=lambda key: (worth[key], -key))
        keys = sorted(worth)
        return keys[self._index(self._weights(np.array([worth[key] for key in keys], np.float64)))]

    def weighed(self, logprobs: Row, history: Sequence[int], banned: Collection[int]) -> Row:
        """Log-probabilities after penalties and biases, those that may not come at −∞."""
        s = self.sampling
        scores: Row = logprobs + self._bar
        if banned:
            scores[list(banned)] = -np.inf
        if self._is_unweighed:
            return scores
        if s.repetition_penalty != 1.0 and history:
            # Log-probabilities are negative, so dividing by 1/penalty lowers them, as CTRL's rule does.
            scores[list(set(history))] *= s.repetition_penalty
        if s.presence_penalty or s.frequency_penalty:
            for token_id, count in Counter(history).items():
                scores[token_id] -= s.presence_penalty + s.frequency_penalty * count
        for token_id, bias in s.logit_bias.items():
            scores[token_id] += bias
        scores[list(_repeats(history, s.no_repeat_ngram_size))] = -np.inf
        return scores

    def _drawn(self, scores: Row) -> int:
        weights = self._weights(scores)
        if not self._is_truncated:
            return self._index(weights)
        ids = self._kept(weights)
        return int(ids[self._index(weights[ids])])

    def _weights(self, scores: Weights) -> Weights:
        """Scores, in place, as probabilities at the temperature but for a factor: the best has 1."""
        scores -= scores.max()
        scores *= 1 / max(self.sampling.temperature, _COLDEST)
        return np.exp(scores, out=scores)

    def _kept(self, weights: Weights) -> NDArray[np.intp]:
        """The ids that truncation leaves; of equals at its edge those that come first.

        Most tokens are out of the question at a glance, so that there is little to sort.
        """
        s = self.sampling
        floor = max(s.min_p, _among_best(weights, s.top_k))
        needed = s.top_p * float(weights.sum())
        for least in _LEAST_WEIGHTS if s.top_p < 1 else (0.0,):
            ids = np.flatnonzero(weights >= max(floor, least))
            left = weights[ids]
            if least <= floor or left.sum() >= needed:
                break
        ordered = np.sort(left)[::-1]
        count = min(s.top_k or len(ids), len(ids))
        if s.top_p < 1:
            # A token stays while those before it hold less than top_p.
            count = min(count, int(ordered.cumsum(dtype=np.float64).searchsorted(needed)) + 1)
        edge = ordered[count - 1]
        inside, equal = ids[left > edge], ids[left == edge]
        return np.concatenate([inside, equal[: count - len(inside)]])

    def _index(self, weights: Weights) -> int:
        """An index, each by its weight."""
        if len(weights) <= _CHUNK:
            held = weights.cumsum(dtype=np.float64)
            return _first_over(held, self._random.random() * held[-1])
        held = np.add.reduceat(weights, range(0, len(weights), _CHUNK)).cumsum(dtype=np.float64)
        point = self._random.random() * held[-1]
        chunk = _first_over(held, point)
        inside = weights[chunk * _CHUNK : (chunk + 1) * _CHUNK].cumsum(dtype=np.float64)
        return chunk * _CHUNK + _first_over(inside, point - (held[chunk - 1] if chunk else 0))


def _first_over(held: NDArray[np.float64], point: float) -> int:
    """Where a running sum first exceeds a point; never where nothing is added, nor behind its end."""
    return int(min(held.searchsorted(point, side="right"), held.searchsorted(held[-1])))


def _among_best(weights: Weights, count: int) -> float:
    """At most the count-th largest weight, and not much less; 0 where there are no more than `count`, or count is 0."""
    size = len(weights) // (8 * count) if count else 0
    if size < 2:
        return float(np.partition(weights, -count)[-count]) if 0 < count < len(weights) else 0.0
    # Of the largest of as many parts: so many weights at least are no smaller.
    largest = np.maximum.reduceat(weights, range(0, len(weights), size))
    return float(np.partition(largest, -count)[-count])


def scored(logprobs: Row, token: int, num_top: int) -> Scored:
    """A token with its log-probability, and the best tokens beside it."""
    return Scored(token, float(logprobs[token]), tuple(best(logprobs, num_top)))


def best(scores: Row, count: int) -> list[tuple[int, float]]:
    """The `count` highest, with their ids, the first one first."""
    if not count:
        return []
    count = min(count, len(scores))
    ids = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    ids = ids[np.argsort(-scores[ids], kind="stable")][:count]
    return list(zip(ids.tolist(), scores[ids].tolist(), strict=True))


def _is_unweighed(s: Sampling) -> bool:
    """Whether scores are the log-probabilities themselves."""
    plain = Sampling()
    drawing = {name: getattr(plain, name) for name in ("temperature", "top_k", "top_p", "min_p", "stop", "seed")}
    return replace(s, **drawing) == plain


def _repeats(history: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram that the history already holds."""
    if not size or len(history) < size:
        return set()
    tail = tuple(history[len(history) - size + 1 :])
    starts = range(len(history) - size + 1)
    return {history[i + size - 1] for i in starts if tuple(history[i : i + size - 1]) == tail}
