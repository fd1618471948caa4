"""Beam search: several hypotheses of one blank, of which it keeps the most probable.

The rules are those of transformers' `generate`. Each step takes the 2 · num_beams best continuations; one that ends is
set aside if it is among the first num_beams, and the others continue. The score of an ended hypothesis is its
log-probability divided by its length (with the end token) to the power of `length_penalty`. The search is over when
num_beams hypotheses have ended and no other can reach a higher score at its present length.

Hypotheses are forks: they share the cache blocks of their common beginning.
"""

import math
from dataclasses import dataclass, field

from engine.jobs.blank_fill import BlankFill
from engine.jobs.job import Step
from engine.jobs.sampler import best
from engine.jobs.search import Wanted
from engine.schedule.batch import Result, Row
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence


@dataclass(eq=False, slots=True)
class Hypothesis:
    """The beginning of a fill. `total` sums log-probabilities after penalties; hypotheses are compared by it."""

    sequence: Sequence
    fill: BlankFill
    total: float
    result: Row | None = None


@dataclass(order=True, slots=True)
class Ended:
    """A complete fill, its score, and a number that orders equal scores."""

    worth: float
    number: int  # below zero: the earlier, the larger
    fill: BlankFill = field(compare=False)
    sequence: Sequence | None = field(compare=False)


class BeamSearch:
    """A search with `num_beams` hypotheses of one blank."""

    def __init__(self, wanted: Wanted, num_beams: int, length_penalty: float) -> None:
        self.index = wanted.blank.index
        self.blanks: list[BlankFill] = []
        self.kept: Sequence | None = None
        self._wanted, self._num_beams, self._length_penalty = wanted, num_beams, length_penalty
        self._live: dict[Sequence, Hypothesis] = {}
        self._ended: list[Ended] = []
        self._count = 0

    def start(self, sequence: Sequence) -> None:
        self._live = {sequence: Hypothesis(sequence, self._wanted.blank, 0.0)}

    @property
    def reached(self) -> int:
        fills = [*(h.fill for h in self._live.values()), *(e.fill for e in self._ended)]
        return max(fill.num_tokens for fill in fills)

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> None:
        hypothesis = self._live[sequence]
        assert not isinstance(result, list)
        hypothesis.result = result
        if all(h.result is not None for h in self._live.values()):
            self._go_on(view, step)

    def _go_on(self, view: SchedulerView, step: Step) -> None:
        """Chooses the hypotheses that continue, after all have their next token's log-probabilities."""
        live, self._live = list(self._live.values()), {}
        children: list[tuple[Hypothesis, BlankFill, float]] = []
        num_going, ends = 0, {*self._wanted.job_context.tokenizer.ends, *self._wanted.sampler.sampling.stop_token_ids}
        for rank, (total, parent, token) in enumerate(self._candidates(live)):
            is_end = token in ends
            if rank >= self._num_beams if is_end else num_going == self._num_beams:
                continue
            num_going += not is_end
            fill = self._grown(parent, token)
            if fill.finish_reason is None and not self._has_room(parent.sequence, fill):
                fill.finish_reason = "length"
            if fill.finish_reason is None:
                children.append((parent, fill, total))
            else:
                self._set_aside(fill, total, _forked(view, parent, step) if self._wanted.keep else None, step)
        # The last child goes on in its parent's place, so that a hypothesis without rivals is never copied.
        last = {id(parent): number for number, (parent, _, _) in enumerate(children)}
        sequences = [
            parent.sequence if last[id(parent)] == number else _forked(view, parent, step)
            for number, (parent, _, _) in enumerate(children)
        ]
        for sequence, (_, fill, total) in zip(sequences, children, strict=True):
            number = len(fill.begun) + len(fill.tokens)
            sequence.push(fill.tokens[-1].token_id, *self._wanted.place.place(number))
            self._live[sequence] = Hypothesis(sequence, fill, total)
        for parent in live:
            if id(parent) not in last:
                step.finish(parent.sequence)
        if self._is_over():
            self._finish(step)

    def _candidates(self, live: list[Hypothesis]) -> list[tuple[float, Hypothesis, int]]:
        """The 2 · num_beams best continuations, the best first; among equals the earlier hypothesis and token."""
        found: list[tuple[float, int, int]] = []
        for number, hypothesis in enumerate(live):
            assert hypothesis.result is not None
            fill = hypothesis.fill
            scores = self._wanted.sampler.weighed(
                hypothesis.result, fill.token_ids, fill.banned(self._wanted.job_context)
            )
            found += [
                (hypothesis.total + value, -number, -token)
                for token, value in best(scores, 2 * self._num_beams)
                if value > -math.inf
            ]
        found.sort(reverse=True)
        return [(total, live[-number], -token) for total, number, token in found[: 2 * self._num_beams]]

    def _grown(self, parent: Hypothesis, token: int) -> BlankFill:
        """The parent's fill with one token more."""
        assert parent.result is not None
        fill = parent.fill.copy()
        fill.accept(self._wanted.sampler.told(parent.result, token, self._wanted.num_top), self._wanted.job_context)
        return fill

    def _has_room(self, sequence: Sequence, fill: BlankFill) -> bool:
        card, number = self._wanted.job_context.card, len(fill.begun) + len(fill.tokens)
        return max(self._wanted.place.place(number)) < card.max_positions and len(sequence.token_ids) < card.max_span

    def _set_aside(self, fill: BlankFill, total: float, sequence: Sequence | None, step: Step) -> None:
        """Keeps the best num_beams fills that have ended, and their sequences."""
        worth = _worth(total, fill.num_tokens, self._length_penalty)
        self._ended.append(Ended(worth, -self._count, fill, sequence))
        self._count += 1
        self._ended.sort(reverse=True)
        for dropped in self._ended[self._num_beams :]:
            if dropped.sequence is not None:
                step.finish(dropped.sequence)
        del self._ended[self._num_beams :]

    def _is_over(self) -> bool:
        if not self._live:
            return True
        if len(self._ended) < self._num_beams:
            return False
        ahead = max(self._live.values(), key=lambda h: h.total)
        return self._ended[-1].worth >= _worth(ahead.total, len(ahead.fill.tokens), self._length_penalty)

    def _finish(self, step: Step) -> None:
        """Sets the result, and finishes all sequences except the best fill's."""
        self.blanks = [ended.fill for ended in self._ended]
        self.kept = self._ended[0].sequence
        for sequence in [*self._live, *(e.sequence for e in self._ended[1:] if e.sequence is not None)]:
            step.finish(sequence)
        self._live = {}


def _forked(view: SchedulerView, parent: Hypothesis, step: Step) -> Sequence:
    fork = view.fork(parent.sequence)
    step.started.append(fork)
    return fork


def _worth(total: float, length: int, penalty: float) -> float:
    """The score by which hypotheses of different lengths are compared."""
    return total / math.pow(length, penalty)
