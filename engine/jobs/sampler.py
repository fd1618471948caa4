"""The sampler: it draws the next token of one sequence from its log-probabilities.

A request's parameters act in one order, that of transformers and vLLM: `logit_bias`; the rules (scale, shift, forbid);
ids that are not allowed now or ever; a pattern; temperature; then `top_k`, `top_p` and `min_p`. Reported
log-probabilities are those before all of these.

It draws one row at a time, so that other rows cannot change a draw; by a kernel, or by numpy without kernels.
"""

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.logit_rule import History
from engine.logit_rules import active_rules
from engine.requests import RequestError, Sampling
from engine.schedule.batch import Row, Scored
from quant.operators.draw import drawing

Weights = NDArray[np.float32] | NDArray[np.float64]

_CHUNK = 512  # weights per partial sum of the search
_COLDEST = 1e-30  # a lower temperature would be zero in float32
_LEAST_SHARE = 1e-30  # float32 takes smaller ones for zero


class Sampler:
    """The sampler of one sequence: its parameters, its random numbers, and the ids that are never drawn."""

    def __init__(self, sampling: Sampling, logit_mask: Row, seed: int | None, told_ids: tuple[int, ...] = ()) -> None:
        """`logit_mask` has −∞ for ids that are never drawn, else 0. `told_ids` replace the best tokens as alternatives.
        Raises ValueError for a rule that there is not."""
        self.sampling = sampling
        self.told_ids = told_ids
        self.param = "regex"  # the field that a pattern stands in
        self._logit_mask = logit_mask
        self._rules = active_rules(sampling.rules)
        self._context: Sequence[int] = ()
        self._context_set: frozenset[int] = frozenset()
        self._is_unweighed = not self._rules and not sampling.logit_bias
        self._sharpness = 1 / max(sampling.temperature, _COLDEST)
        self._is_truncated = bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)
        self._draw = drawing(logit_mask)
        self._random = random.Random(seed)

    @property
    def has_rules(self) -> bool:
        """Whether logit rules are active. They need logits and the context's tokens."""
        return bool(self._rules)

    def read(self, token_ids: Sequence[int]) -> None:
        """Sets the tokens that the model reads before the blank, for the rules."""
        self._context, self._context_set = token_ids, frozenset(token_ids)

    def draw(
        self,
        row: Row,
        history: Sequence[int],
        banned: Collection[int],
        num_top: int,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Scored:
        """Draws a token of a row [vocab_size]; returns it with its raw log-probability.

        The row holds log-probabilities; with rules it is [vocab_size + 1], see `engine.schedule.batch`. `history` are
        the blank's tokens so far. `banned` are further ids that are not allowed now, such as the end token before
        `min_tokens`. `allowed` [vocab_size] bool are the ids that a regex allows; it overrides `banned`. Raises
        RequestError if no token is left.
        """
        logprobs = self._logprobs(row)
        # No share at all leaves the most probable token.
        is_drawn = self.sampling.temperature > 0 and self.sampling.top_p > _LEAST_SHARE
        is_plain = self._is_unweighed and allowed is None
        if is_plain and not is_drawn:
            token = int(logprobs.argmax())
            if self._logit_mask[token] == 0 and token not in banned:
                return self._told(logprobs, token, num_top)
        if is_plain and is_drawn and not banned:
            return self._told(logprobs, self._drawn(logprobs), num_top)
        scores = self.weighed(row, history, banned)
        if allowed is not None:
            scores[~allowed] = -np.inf
            if banned and scores.max() == -np.inf:
                scores = np.where(allowed, self.weighed(row, history, ()), np.float32(-np.inf))
            if scores.max() == -np.inf:
                raise RequestError("no token can continue a text that matches the pattern", self.param)
        return self._told(logprobs, self._drawn(scores) if is_drawn else int(scores.argmax()), num_top)

    def pick(self, worth: Mapping[int, float]) -> int:
        """One of the keys of `worth`, their log-probabilities: the best one (the first if equal), or one drawn."""
        if self.sampling.temperature == 0:
            return max(worth, key=lambda key: (worth[key], -key))
        keys = sorted(worth)
        weights = self._weights(np.array([worth[key] for key in keys], np.float64))
        return keys[_index(weights, self._random.random())[0]]

    def told(self, row: Row, token: int, num_top: int) -> Scored:
        """A token of a row with its raw log-probability and alternatives."""
        return self._told(self._logprobs(row), token, num_top)

    def _told(self, logprobs: Row, token: int, num_top: int) -> Scored:
        top = [(i, float(logprobs[i])) for i in self.told_ids] if self.told_ids else best(logprobs, num_top)
        return Scored(token, float(logprobs[token]), tuple(top))

    def weighed(self, row: Row, history: Sequence[int], banned: Collection[int]) -> Row:
        """The row's scores [vocab_size] after biases and rules: log-probabilities, or logits if it has them.

        Ids that are not allowed have −∞.
        """
        logprobs = self._logprobs(row)
        scores: Row = logprobs + row[-1] if len(row) > len(logprobs) else logprobs.copy()
        if not self._is_unweighed:
            self._weigh(scores, history)
        scores += self._logit_mask
        if banned:
            scores[list(banned)] = -np.inf
        return scores

    def _weigh(self, scores: Row, history: Sequence[int]) -> None:
        for token_id, bias in self.sampling.logit_bias.items():
            scores[token_id] += bias
        if self._rules:
            past = History(self._context, history, self.sampling.repeat_last_n, self._context_set)
            for rule, values in self._rules:
                rule.apply(scores, past, values)

    def _logprobs(self, row: Row) -> Row:
        return row[: len(self._logit_mask)]

    def _drawn(self, scores: Row) -> int:
        """Draws an id by its weight, among the ids inside top-k, top-p and min-p; equal ones count in order.

        It does rejection sampling without a sort: it redraws among the ids that outrank the draw, until the draw is
        inside. The result has the same distribution as a draw among the inside ids alone.
        """
        s, state = self.sampling, self._random.getrandbits(64)
        limit = s.top_k or len(scores)
        if self._draw is not None:
            return self._draw(scores, self._sharpness, limit, s.top_p, s.min_p, state)
        uniforms = splitmix64(state)
        weights = self._weights(scores + self._logit_mask)
        at, total = _index(weights, next(uniforms))
        if not self._is_truncated:
            return at
        held = s.top_p * total if s.top_p < 1 else math.inf
        ids: NDArray[np.intp] | None = None
        while True:
            is_before = weights > weights[at]
            is_before[:at] |= weights[:at] == weights[at]
            before = weights[is_before]
            if weights[at] >= s.min_p and len(before) < limit and before.sum() < held:
                return at if ids is None else int(ids[at])
            ids, weights = np.flatnonzero(is_before) if ids is None else ids[is_before], before
            at, _ = _index(weights, next(uniforms))

    def _weights(self, scores: Weights) -> Weights:
        """Scores, in place, as probabilities at the temperature but for a factor: the best has 1."""
        scores -= scores.max()
        scores *= self._sharpness
        return np.exp(scores, out=scores)


def splitmix64(state: int) -> Iterator[float]:
    """Random numbers in [0, 1), by splitmix64 (Steele, Lea and Flood 2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield ((z ^ z >> 31) >> 11) * 2.0**-53


def _index(weights: Weights, uniform: float) -> tuple[int, float]:
    """An index, each by its weight, and the sum of all: first a chunk of them, then one within it."""
    held = np.add.reduceat(weights, np.arange(0, len(weights), _CHUNK)).cumsum(dtype=np.float64)
    point = uniform * held[-1]
    chunk = _first_over(held, point)
    inside = weights[chunk * _CHUNK : (chunk + 1) * _CHUNK].cumsum(dtype=np.float64)
    return chunk * _CHUNK + _first_over(inside, point - (held[chunk - 1] if chunk else 0)), float(held[-1])


def _first_over(held: NDArray[np.float64], point: float) -> int:
    """Where a running sum first exceeds a point; never where nothing is added, nor behind its end."""
    return int(min(held.searchsorted(point, side="right"), held.searchsorted(held[-1])))


def best(scores: Row, count: int) -> list[tuple[int, float]]:
    """The `count` highest numbers with their ids, the highest first."""
    if not count:
        return []
    count = min(count, len(scores))
    ids = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    ids = ids[np.argsort(-scores[ids], kind="stable")][:count]
    return list(zip(ids.tolist(), scores[ids].tolist(), strict=True))
