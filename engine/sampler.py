"""The sampler: draws the next token of one sequence from its log-probabilities."""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.batch import Scored
from engine.requests import RequestError, Sampling

_COLDEST = 1e-30  # colder ones would divide by what float32 takes for zero


class Sampler:
    """One sequence's way of drawing: its settings, its random numbers, and the ids that are never drawn."""

    def __init__(self, sampling: Sampling, never: Tensor, seed: int | None) -> None:
        self.sampling = sampling
        self._never = never
        self._bar = _bar(never)
        self._is_plain = replace(sampling, stop=(), seed=None) == Sampling()
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def draw(
        self,
        logprobs: Tensor,
        history: Sequence[int],
        banned: Collection[int],
        num_top: int,
        allowed: Tensor | None = None,
    ) -> Scored:
        """The drawn token with its raw log-probability, before penalties, temperature and truncation.

        `history` are the blank's tokens so far, `banned` further ids that may not come now (such as the end token
        before `min_tokens`), `allowed` [vocab_size] bool those that a regex lets come. All on the CPU in float32, one
        row at a time: neighbours cannot change a draw. Raises RequestError if no token is left.
        """
        raw = logprobs.float().cpu()
        s = self.sampling
        if self._is_plain and allowed is None:
            # The same as below: most draws are of this kind, and torch takes longer to be called.
            barred = np.add(raw.numpy(), self._bar)
            barred[list(banned)] = -np.inf
            return scored(raw, int(barred.argmax()), num_top)
        scores = self.weighed(raw, history, banned)
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
            if scores.max() == -torch.inf:
                raise RequestError("no token can go on with a text that matches the pattern", "regex")
        token = int(scores.argmax()) if s.temperature == 0 else self._random(scores / max(s.temperature, _COLDEST))
        return scored(raw, token, num_top)

    def pick(self, worth: Mapping[int, float]) -> int:
        """One of the keys, by log-probabilities: the first of the best, or one drawn at the temperature."""
        if self.sampling.temperature == 0:
            return max(worth, key=lambda key: (worth[key], -key))
        keys = sorted(worth)
        scores = torch.tensor([worth[key] for key in keys], dtype=torch.float64)
        scores /= max(self.sampling.temperature, _COLDEST)
        return keys[int(torch.multinomial(torch.softmax(scores, -1), 1, generator=self._generator))]

    def weighed(self, raw: Tensor, history: Sequence[int], banned: Collection[int]) -> Tensor:
        """Log-probabilities [vocab_size] after penalties and biases, those that may not come at −∞."""
        s = self.sampling
        scores = raw.clone()
        if s.repetition_penalty != 1.0 and history:
            seen = torch.tensor(sorted(set(history)))
            # Log-probabilities are negative, so dividing by 1/penalty lowers them, as CTRL's rule does.
            scores[seen] *= s.repetition_penalty
        if s.presence_penalty or s.frequency_penalty:
            for token_id, count in Counter(history).items():
                scores[token_id] -= s.presence_penalty + s.frequency_penalty * count
        for token_id, bias in s.logit_bias.items():
            scores[token_id] += bias
        scores[self._never] = -torch.inf
        for token_id in (*banned, *_repeats(history, s.no_repeat_ngram_size)):
            scores[token_id] = -torch.inf
        return scores

    def _random(self, scores: Tensor) -> int:
        s = self.sampling
        probabilities, order = torch.softmax(scores, dim=-1).sort(descending=True, stable=True)
        keep = probabilities > 0
        if s.top_k:
            keep[s.top_k :] = False
        if s.top_p < 1:
            # A token stays while those before it hold less than top_p.
            keep &= probabilities.cumsum(0) - probabilities < s.top_p
        if s.min_p:
            keep &= probabilities >= s.min_p * probabilities[0]
        keep[0] = True
        return int(order[torch.multinomial(probabilities * keep, 1, generator=self._generator)])


@functools.lru_cache(maxsize=4)
def _bar(never: Tensor) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """[vocab_size] what to add to log-probabilities so that some ids are never the best."""
    return np.where(never.numpy(), np.float32(-np.inf), np.float32(0))


def scored(logprobs: Tensor, token: int, num_top: int) -> Scored:
    """A token with its log-probability of [vocab_size], and the best tokens beside it."""
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        best = logprobs.topk(num_top)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Scored(token, float(logprobs[token]), top)


def _repeats(history: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram that the history already holds."""
    if not size or len(history) < size:
        return set()
    tail = tuple(history[len(history) - size + 1 :])
    starts = range(len(history) - size + 1)
    return {history[i + size - 1] for i in starts if tuple(history[i : i + size - 1]) == tail}
