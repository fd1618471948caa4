"""Choices: a blank that is one of some known strings.

Their tokens make a trie. What several choices begin with is computed once: a sequence runs down a branch until it
divides, and is forked there, so that their cache blocks are shared too. What a choice is worth is the log-probability
of its tokens and of the end behind them, which is `Score` with `include_end`, to the bit.
"""

import math
from dataclasses import dataclass, field

from engine.jobs.blank_fill import BlankFill
from engine.jobs.job import JobContext, Step
from engine.jobs.search import Wanted
from engine.requests import RequestError, Tokens, member
from engine.schedule.batch import Result, Row, Scored
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence
from model.layout import Blank, end_of, span_ids


@dataclass(slots=True)
class Node:
    """A place in the trie: what may follow, and which choice may end here (−1: none)."""

    children: dict[int, "Node"] = field(default_factory=dict)
    choice: int = -1

    def chain(self) -> tuple[list[int], "Node"]:
        """The tokens from here that are forced, and where they lead: to an end or a division."""
        tokens, node = [], self
        while len(node.children) == 1 and node.choice < 0:
            ((token, node),) = node.children.items()
            tokens.append(token)
        return tokens, node


@dataclass(frozen=True, slots=True)
class Choices:
    """Strings that may stand in a blank, with their tokens in a place that has a space before it or none; `given` is
    how they came."""

    given: tuple[str | Tokens, ...]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    spaced: bool

    @classmethod
    def read(
        cls, given: tuple[str | Tokens, ...], place: Blank, lengths: tuple[int, int], job_context: JobContext
    ) -> "Choices":
        """Raises RequestError for a choice with fewer or more tokens than `lengths` allow, or for which there is no
        room."""
        if not given:
            raise RequestError("choices holds an empty list", "choices")
        texts = tuple(_text(choice, job_context) for choice in given)
        ids = tuple(_ids(choice, place, job_context) for choice in given)
        least, most = lengths
        for number, (text, own) in enumerate(zip(texts, ids, strict=True)):
            with member("choice", number, len(texts)):
                if not own:
                    raise RequestError(f"the choice {text!r} has no tokens", "choices")
                if job_context.card.masked and len(own) > 1:
                    message = f"the choice {text!r} has {len(own)} tokens, this model writes one into a blank"
                    raise RequestError(message, "choices")
                if len(own) > most:
                    raise RequestError(f"the choice {text!r} has {len(own)} tokens, max_tokens is {most}", "choices")
                if len(own) < least:
                    raise RequestError(f"the choice {text!r} has {len(own)} tokens, min_tokens is {least}", "choices")
        job_context.check_span(max(map(len, ids)), place, "choices")
        return cls(given, texts, ids, place.spaced)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest choice."""
        return max(map(len, self.ids))

    @property
    def first(self) -> list[int]:
        """The first token of each choice."""
        return [own[0] for own in self.ids]

    def trie(self) -> Node:
        """Of those with the same tokens the first counts."""
        root = Node()
        for number, own in enumerate(self.ids):
            node = root
            for token in own:
                node = node.children.setdefault(token, Node())
            if node.choice < 0:
                node.choice = number
        return root


def _text(choice: str | Tokens, job_context: JobContext) -> str:
    return choice if isinstance(choice, str) else job_context.spelling.detokenize(choice.ids)


def _ids(choice: str | Tokens, place: Blank, job_context: JobContext) -> tuple[int, ...]:
    if isinstance(choice, Tokens):
        job_context.check_ids(choice.ids, "choices")
        return choice.ids
    return tuple(span_ids(choice, place, job_context.tokenizer)) if choice else ()


@dataclass(frozen=True, slots=True)
class Run:
    """A sequence on its way down: the tokens known behind it, those that its rows predict, where it will be."""

    path: list[Scored]
    forced: list[int]
    node: Node


class ChoiceSearch:
    """Finds the best choice, or draws one by its probability among them."""

    def __init__(self, wanted: Wanted, choices: Choices) -> None:
        self.index = wanted.blank.index
        self.blanks: list[BlankFill] = []
        self.kept: Sequence | None = None
        self._wanted, self._choices = wanted, choices
        self._end = end_of(wanted.place, wanted.job_context.tokenizer)
        self._runs: dict[Sequence, Run] = {}
        self._found: dict[int, tuple[list[Scored], Scored]] = {}
        self._count = len(set(choices.ids))
        self._forced = 0  # tokens that all choices begin with, on the first sequence from the start

    def start(self, sequence: Sequence) -> None:
        if self._wanted.keep:
            self.kept = sequence
        forced, node = self._choices.trie().chain()
        self._forced = len(forced)
        self._push(sequence, forced, 1)
        self._expect(sequence, Run([], forced, node))

    @property
    def reached(self) -> int:
        under_way = (len(run.path) for run in self._runs.values())
        return max([*under_way, *(len(path) + 1 for path, _ in self._found.values())])

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> None:
        run = self._runs.pop(sequence)
        if isinstance(result, list):
            *tokens, end = (token for token in result if token is not None)
            self._found[run.node.choice] = [*run.path, *tokens], end
        else:
            step.started += self._divide(view, sequence, run, result.reshape(len(run.forced) + 1, -1))
        if not run.node.children and sequence is not self.kept:
            step.finish(sequence)
        if len(self._found) == self._count:
            self._decide()

    def _divide(self, view: SchedulerView, sequence: Sequence, run: Run, logprobs: Row) -> list[Sequence]:
        """Goes on with a fork for each child, the last one on the sequence itself; gives the forks."""
        forced, told = zip(logprobs[:-1], run.forced, strict=True), self._wanted.sampler.told
        path = [*run.path, *(told(row, token, self._wanted.num_top) for row, token in forced)]
        if run.node.choice >= 0:
            self._found[run.node.choice] = path, told(logprobs[-1], self._end, self._wanted.num_top)
        children = list(run.node.children.items())
        forks = [view.fork(sequence) for _ in children[sequence is not self.kept :]]
        sequences = [*forks, sequence][: len(children)]
        for (token, child), own in zip(children, sequences, strict=True):
            behind, node = child.chain()
            self._push(own, [token, *behind], len(path) + 1)
            self._expect(own, Run([*path, told(logprobs[-1], token, self._wanted.num_top)], behind, node))
        return forks

    def _push(self, sequence: Sequence, tokens: list[int], number: int) -> None:
        """Adds tokens of the blank from its number-th on."""
        for offset, token in enumerate(tokens):
            sequence.push(token, *self._wanted.place.place(number + offset))

    def _expect(self, sequence: Sequence, run: Run) -> None:
        """Asks the last rows for what they predict: forced tokens and an end, or also all that may come behind, or be
        told of beside them."""
        self._runs[sequence] = run
        rows = len(run.forced) + 1
        if run.node.children or self._wanted.sampler.told_ids:
            sequence.output, sequence.logit_rows, sequence.targets = "token", tuple(range(-rows, 0)), []
        else:
            before = [-1] * (len(sequence.token_ids) - rows)
            sequence.output, sequence.targets = "scores", [*before, *run.forced, self._end]

    def _decide(self) -> None:
        worth = {n: math.fsum([*(t.logprob for t in path), end.logprob]) for n, (path, end) in self._found.items()}
        by_ids = {self._choices.ids[n]: value for n, value in worth.items()}
        chosen = self._wanted.sampler.pick(worth)
        path, end = self._found[chosen]
        logprobs = [by_ids[ids] for ids in self._choices.ids]
        self._wanted.blank.choice_ids = self._choices.ids
        self._wanted.blank.choose(self._choices.texts[chosen], path, end, logprobs, self._wanted.job_context)
        self.blanks = [self._wanted.blank]
        if self.kept is not None:
            self.kept.output, self.kept.logit_rows, self.kept.targets = "token", (-1,), []
            self._push(self.kept, [t.token_id for t in path[self._forced :]], self._forced + 1)
