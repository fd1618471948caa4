"""A sample: one fill of one input, by sequences.

`append` keeps fills in part B of one sequence, as in GLM's training. `reencode` puts each fill into part A and encodes
the text again, like GLM-130B's generator. `parallel` gives each blank a sequence of its own.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass

from engine.answers import EchoedPrompt, FilledBlank, FillResult
from engine.jobs.beams import BeamSearch
from engine.jobs.blank_fill import BlankFill
from engine.jobs.choices import Choices, ChoiceSearch
from engine.jobs.fill_checks import LEAST_ROWS, per_blank
from engine.jobs.job import JobContext, Step, alternatives
from engine.jobs.prompts import Prompt
from engine.jobs.sampler import Sampler
from engine.jobs.search import Search, Wanted
from engine.regex.constraint import Constraint, Pattern
from engine.requests import Fill, Mask, Sampling, Segments, Tokens, member
from engine.schedule.batch import Result, Row, Scored
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Output, Sequence
from model.layout import Blank, Layout
from model.tokenizer import Decoder

_BORDER_SLOTS = 64  # slots that two beginnings at block borders can cost


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a `Fill`: its number, its prompt and layout, and the choices or the pattern of each blank."""

    number: int
    prompt: Prompt
    laid: Layout
    choices: Items[Choices | None]
    patterns: Items[Pattern | None]


class Sample:
    """One sample of one input: its blanks, their order, and its running sequences."""

    def __init__(self, fill: Fill, index: int, given: Input, job_context: JobContext) -> None:
        self.fill = fill
        self.job_context = job_context
        self.index = index
        self.input_index = given.number
        self.prompt = prompt = given.prompt
        laid = given.laid
        self.segments = prompt.segments
        seed = fill.sampling.seed
        # Sample j of input i does not depend on n and on the other inputs.
        self.seed = None if seed is None else seed + 1_000_003 * (index % fill.n)
        count = len(laid.blanks)
        limits, floors = per_blank(fill.max_tokens, count), per_blank(fill.min_tokens, count)
        self.blanks = [
            BlankFill(
                i, b, limits[i], floors[i], fill.sampling, self._decoder(b), prompt.begun, fill.logprobs is not None
            )
            for i, b in enumerate(laid.blanks)
        ]
        self.echoed: list[Scored] | None = None
        self.is_echo_told = False
        self.strategy = fill.strategy or job_context.card.strategies[0]
        self.confident = fill.order == "confident"
        self.queue = _order(fill.order, count, random.Random(self.seed))
        self.searches: dict[int, Search] = {}  # those under way, by blank
        self.choices = given.choices
        ends, one_token = job_context.tokenizer.ends, job_context.card.masked
        self.constraints: list[Constraint | None] = []
        for number, (pattern, place) in enumerate(zip(given.patterns, laid.blanks, strict=True)):
            with member("blank", number, count):
                made = None if pattern is None else Constraint(pattern, place, ends, one_token)
            self.constraints.append(made)
        self.other_fills: dict[int, list[BlankFill]] = {}  # of each blank, by a search that finds several
        self.probes: list[Probe] = []
        self.rank = 0.0
        # A sampler a blank, so that a blank's draws do not depend on how its neighbours interleave.
        self.samplers = [
            Sampler(
                fill.sampling,
                job_context.logit_mask,
                None if self.seed is None else self.seed + i,
                fill.logprob_token_ids,
            )
            for i in range(count)
        ]
        for sampler, constraint in zip(self.samplers, self.constraints, strict=True):
            sampler.param = "regex" if constraint is None else constraint.param
        # The places of the blanks: in the first layout, or in the current text.
        self.places = list(laid.blanks)

    def _decoder(self, blank: Blank) -> Decoder:
        decoder = Decoder(self.job_context.tokenizer, blank.spaced, blank.continues)
        decoder.extend(self.prompt.before)
        decoder.forget()
        return decoder

    def start(self, view: SchedulerView, rank: float, step: Step) -> None:
        """Starts the first sequences."""
        self.rank = rank
        if self.strategy == "parallel":
            queue, self.queue = self.queue, []
            for index in queue:
                self._open(self._fresh(view, index, step), index)
        else:
            self._next(view, None, step)

    def take_echo(
        self, sequence: Sequence, blank: BlankFill, scored: list[Scored | None], step: Step
    ) -> list[BlankFill]:
        """Takes the scores of the blank's known tokens, and asks for the next token."""
        self.echoed = [token for token in scored if token is not None]
        if not blank.max_tokens:
            blank.finish_reason = "length"
            step.finish(sequence)
            return [blank]
        sequence.output, sequence.targets = "token", []
        sequence.push(blank.begun[-1], *self.places[blank.index].place(len(blank.begun)))
        self._seek(sequence, blank.index)
        return []

    def take_token(self, view: SchedulerView, sequence: Sequence, blank: BlankFill, logprobs: Row, step: Step) -> None:
        """Draws the blank's next token from log-probabilities [vocab_size]. After the last token it starts the next
        blank."""
        banned = blank.banned(self.job_context)
        constraint = self.constraints[blank.index]
        allowed = None if constraint is None else constraint.allowed()
        token = self.samplers[blank.index].draw(logprobs, blank.token_ids, banned, self.fill.logprobs or 0, allowed)
        blank.accept(token, self.job_context)
        if constraint is not None and blank.end is None:
            constraint.accept(token.token_id)
            if blank.stop_string is None and constraint.complete:
                blank.finish_reason = "regex"
        place = self.places[blank.index]
        number = len(blank.begun) + len(blank.tokens)
        if blank.finish_reason is None and not self._room(sequence, place, number):
            blank.finish_reason = "length"
        if blank.finish_reason is None:
            sequence.push(token.token_id, *place.place(number))
        else:
            self._go_on(view, sequence, blank, step)

    def take_search(self, view: SchedulerView, search: Search, step: Step) -> list[BlankFill]:
        """Takes the fills of a search that has ended. The best one is the blank's."""
        best, *self.other_fills[search.index] = search.blanks
        self.blanks[search.index] = best
        del self.searches[search.index]
        self._go_on(view, search.kept, best, step)
        return [best]

    def take_probe(self, view: SchedulerView, probe: "Probe", logprobs: Row, step: Step) -> None:
        """Takes a probe's most probable token. After the last probe it starts the surest blank."""
        probe.sureness = self._sureness(logprobs, probe.index)
        if any(p.sureness is None for p in self.probes):
            return
        # Of equal ones the leftmost goes first.
        surest = max(self.probes, key=lambda p: (p.sureness or 0.0, -p.index))
        self.probes = []
        self.queue.remove(surest.index)
        sequence = _copy(surest.sequence)
        step.started.append(sequence)
        self._begin(sequence, surest.index)

    def _go_on(self, view: SchedulerView, sequence: Sequence | None, blank: BlankFill, step: Step) -> None:
        """Starts the next work after a blank has ended, on its sequence if later blanks see that one."""
        if not self.queue or self.strategy == "reencode":
            if sequence is not None:
                step.finish(sequence)
            if self.queue:
                self._splice()
                self._next(view, None, step)
            return
        assert sequence is not None
        place, number = self.places[blank.index], len(blank.begun) + len(blank.tokens)
        if blank.end is None and self._room(sequence, place, number):
            # The last token of a blank that was cut short is not computed yet, but later blanks must see it.
            sequence.push(blank.tokens[-1].token_id, *place.place(number))
        self._next(view, sequence, step)

    @property
    def done(self) -> bool:
        """Whether all blanks are filled."""
        return all(b.finish_reason is not None for b in self.blanks)

    @property
    def answers(self) -> list[list[BlankFill]]:
        """The blanks of each result: one result, or the best results of searches, as many as each has found."""
        if self.fill.num_beams == 1 or self.fill.n == 1:
            return [self.blanks]
        found = [[blank, *self.other_fills.get(index, ())] for index, blank in enumerate(self.blanks)]
        return [list(blanks) for blanks in zip(*found, strict=False)][: self.fill.n]

    def result(self, number: int = 0) -> FillResult:
        """One of the results."""
        blanks = [self.filled(b) for b in self.answers[number]]
        fills = iter(blanks)
        return FillResult(
            index=self.index + number,
            input_index=self.input_index,
            text="".join(next(fills).text if isinstance(s, Mask) else self._shown(s) for s in self.segments),
            logprob=sum(b.logprob for b in blanks),
            blanks=blanks,
            echo=self.echo() if self.fill.echo else None,
            fitted=self.prompt.fitted if self.fill.fit else None,
        )

    def echo(self) -> EchoedPrompt:
        """The prompt's tokens. Tokens of its context have no log-probabilities."""
        echo, scored = self.prompt.echo, self.echoed or []
        assert echo is not None
        tokenizer = self.job_context.tokenizer
        unknown = [None] * echo.num_context
        return EchoedPrompt(
            token_ids=list(echo.ids),
            tokens=[tokenizer.piece(i) for i in echo.ids],
            token_logprobs=[*unknown, *(t.logprob for t in scored)],
            top_logprobs=[*unknown, *alternatives([t.top for t in scored], tokenizer)],
            text_offsets=list(echo.starts),
            ranks=[] if self.fill.prompt_logprobs is None else [*unknown, *(t.rank for t in scored)],
        )

    def filled(self, blank: BlankFill) -> FilledBlank:
        """The current state of a blank of the request's text."""
        at, seen = 0, 0
        for segment in self.segments:
            if isinstance(segment, Mask):
                if seen == blank.index:
                    break
                seen += 1
                at += len(segment.name)
            else:
                at += len(self._shown(segment))
        return blank.answer(at, self.job_context)

    def _shown(self, segment: str | Tokens) -> str:
        if isinstance(segment, str):
            return segment
        finished = bool(self.prompt.before and not self.prompt.begun)  # by the fill behind it
        return self.job_context.spelling.detokenize(segment.ids, finished)

    def _next(self, view: SchedulerView, sequence: Sequence | None, step: Step) -> None:
        """Opens the next blank on a sequence (None: on one of its own), or first asks every blank left how sure it is
        of its first token."""
        if not (self.confident and len(self.queue) > 1):
            index = self.queue.pop(0)
            self._open(sequence or self._fresh(view, index, step), index)
            return
        for index in self.queue:
            if sequence is None:
                probe = self._fresh(view, index, step)
            else:
                probe = _copy(sequence)
                step.started.append(probe)
            self._push_start(probe, index)
            probe.owner = Probe(self, index, probe)
            self.probes.append(probe.owner)
        if sequence is not None:
            step.finish(sequence)

    def _sureness(self, logprobs: Row, index: int) -> float:
        """The log-probability of the best token that may be drawn."""
        choices = self._choices_of(index)
        if choices is not None:
            return float(logprobs[choices.first].max())
        constraint = self.constraints[index]
        allowed = None if constraint is None else constraint.allowed()
        return Sampler(Sampling(), self.job_context.logit_mask, 0).draw(logprobs, (), (), 0, allowed).logprob

    def _fresh(self, view: SchedulerView, index: int, step: Step) -> Sequence:
        """A new sequence over a blank's context."""
        sequence = Sequence(view.context(self.places[index].context), "token", self.rank)
        step.started.append(sequence)
        return sequence

    def _open(self, sequence: Sequence, index: int) -> None:
        self._push_start(sequence, index)
        self._begin(sequence, index)

    def _begin(self, sequence: Sequence, index: int) -> None:
        """Fills a blank from its start, which the sequence has as its last row."""
        sampler = self.samplers[index]
        if sampler.has_rules:
            # Of a prompt that is scored the last token is not pushed yet.
            unread = self.blanks[index].begun[-1:] if sequence.targets else ()
            sampler.read((*sequence.context.token_ids, *sequence.token_ids, *unread))
        if sequence.targets:  # of what the blank begins with, before it is filled
            sequence.owner = Writing(self, self.blanks[index])
        else:
            self._seek(sequence, index)

    def _seek(self, sequence: Sequence, index: int) -> None:
        """Fills a blank from the last row of a sequence: token by token, or by a search."""
        search = self._search(index)
        if search is None:
            sequence.owner, sequence.output = Writing(self, self.blanks[index]), self._output(index)
            return
        self.searches[index] = search
        sequence.owner = Searching(self, search)
        search.start(sequence)

    def _search(self, index: int) -> Search | None:
        """The search for a blank's fill; None if it is written token by token."""
        choices = self._choices_of(index)
        if (choices is None and self.fill.num_beams == 1) or not self.blanks[index].max_tokens:
            return None
        keep = bool(self.queue) and self.strategy == "append"
        blank, place, sampler = self.blanks[index], self.places[index], self.samplers[index]
        wanted = Wanted(blank, place, sampler, self.fill.logprobs or 0, keep, self.job_context)
        if choices is not None:
            return ChoiceSearch(wanted, choices)
        return BeamSearch(wanted, self.fill.num_beams, self.fill.length_penalty)

    def _output(self, index: int) -> Output:
        """The output that the writing of a blank needs."""
        return "logits" if self.samplers[index].has_rules else "token"

    def _choices_of(self, index: int) -> Choices | None:
        """A blank's choices, with their tokens at its current place."""
        choices, place, blank = self.choices[index], self.places[index], self.blanks[index]
        if choices is None or place.spaced == choices.spaced:
            return choices
        return Choices.read(choices.given, place, (blank.min_tokens, blank.max_tokens), self.job_context)

    def _push_start(self, sequence: Sequence, index: int) -> None:
        place, begun = self.places[index], self.blanks[index].begun
        if self.fill.echo and begun:
            sequence.output = "scores" if self.fill.prompt_logprobs is None else "ranked"
            sequence.targets = list(begun)
            fed = begun[:-1]
        else:
            fed = begun
        for number, token in enumerate((place.start, *fed)):
            sequence.push(token, *place.place(number))

    def _room(self, sequence: Sequence, place: Blank, number: int) -> bool:
        """Whether the model has a position for a blank's row, and the cache a slot, with the blanks that are still to
        be written on the same sequence: a start and a token each."""
        card, (position, block) = self.job_context.card, place.place(number)
        later = LEAST_ROWS * len(self.queue) if self.strategy == "append" else 0
        slots = card.kv_cache_tokens - len(sequence.context) - _BORDER_SLOTS
        return max(position, block) < card.max_positions and len(sequence.token_ids) + later < slots

    def _splice(self) -> None:
        """Lays the text out anew with the fills so far in place of their masks."""
        masks = iter(self.blanks)
        segments: list[str | Tokens | Mask] = []
        for segment in self.segments:
            if isinstance(segment, Mask):
                blank = next(masks)
                segments.append(blank.text if blank.finish_reason else segment)
            else:
                segments.append(segment)
        laid = self.job_context.lay_out(_merged(segments), "text")
        left = [b.index for b in self.blanks if b.finish_reason is None]
        for index, place in zip(left, laid.blanks, strict=True):
            self.places[index] = place


@dataclass(slots=True, eq=False)
class Task(ABC):
    """The purpose of a sequence for a sample: it owns the sequence."""

    sample: Sample

    @abstractmethod
    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> list[BlankFill]:
        """Takes a result of the sequence, and adds started and finished sequences to the step. Returns the changed
        blanks."""


@dataclass(slots=True, eq=False)
class Writing(Task):
    """A sequence that writes one blank, token by token."""

    blank: BlankFill

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> list[BlankFill]:
        if isinstance(result, list):
            return self.sample.take_echo(sequence, self.blank, result, step)
        if not self.blank.max_tokens:  # an empty prompt was to be scored, and nothing to follow
            return self.sample.take_echo(sequence, self.blank, [], step)
        self.sample.take_token(view, sequence, self.blank, result, step)
        return [self.blank]


@dataclass(slots=True, eq=False)
class Probe(Task):
    """A sequence that asks for the probability of a blank's first token; None: no answer yet."""

    index: int
    sequence: Sequence
    sureness: float | None = None

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> list[BlankFill]:
        assert not isinstance(result, list)
        step.finish(sequence)
        self.sample.take_probe(view, self, result, step)
        return []


@dataclass(slots=True, eq=False)
class Searching(Task):
    """Several sequences that search for the fill of one blank."""

    search: Search

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> list[BlankFill]:
        self.search.advance(view, sequence, result, step)
        return self.sample.take_search(view, self.search, step) if self.search.blanks else []


def _merged(segments: Items[str | Tokens | Mask]) -> Segments:
    """Neighbouring strings joined, so that a spliced text is tokenized as the text it now is."""
    merged: list[str | Tokens | Mask] = []
    for segment in segments:
        last = merged[-1] if merged else None
        if isinstance(segment, str) and isinstance(last, str):
            merged[-1] = last + segment
        else:
            merged.append(segment)
    return tuple(merged)


def _copy(sequence: Sequence) -> Sequence:
    """Another sequence with the same rows, to be computed on its own."""
    copy = Sequence(sequence.context, sequence.output, sequence.rank)
    for row in zip(sequence.token_ids, sequence.positions, sequence.block_positions, strict=True):
        copy.push(*row)
    return copy


def _order(order: str | tuple[int, ...], count: int, rng: random.Random) -> list[int]:
    if not isinstance(order, str):
        return list(order)
    indices = list(range(count))
    if order == "right_to_left":
        indices.reverse()
    elif order == "random":
        rng.shuffle(indices)
    return indices
