"""A sample: one way of filling one input, as sequences.

`append` keeps fills in part B of one sequence, as GLM was trained; `reencode` splices each fill into part A and
encodes that anew, as GLM-130B's generator does; `parallel` gives each blank a sequence of its own.
"""

import random
from collections.abc import Sequence as Items

from engine.answers import EchoedPrompt, FilledBlank, FillResult
from engine.batch import Result, Row, Scored
from engine.beams import BeamSearch
from engine.blank_fill import BlankFill
from engine.choices import Choices, ChoiceSearch
from engine.constraint import Constraint, Pattern
from engine.fill_checks import LEAST_ROWS, per_blank
from engine.job import Host, World, alternatives
from engine.prompts import Prompt
from engine.requests import Fill, Mask, Sampling, Segments, Tokens
from engine.sampler import Sampler
from engine.search import Search
from engine.sequence import Sequence
from model.layout import Blank, Layout

_BORDER_SLOTS = 64  # what beginning at a block's border can cost, twice


class Sample:
    """One sample of one input: its blanks, the order they are filled in, and its running sequences."""

    def __init__(
        self,
        fill: Fill,
        index: int,
        input_index: int,
        prompt: Prompt,
        laid: Layout,
        choices: Items[Choices | None],
        patterns: Items[Pattern | None],
        world: World,
    ) -> None:
        self.fill = fill
        self.world = world
        self.index = index
        self.input_index = input_index
        self.prompt = prompt
        self.segments = prompt.segments
        seed = fill.sampling.seed
        # Sample j of input i is the same whatever n and the other inputs are.
        self.seed = None if seed is None else seed + 1_000_003 * (index % fill.n)
        count = len(laid.blanks)
        limits, floors = per_blank(fill.max_tokens, count), per_blank(fill.min_tokens, count)
        self.blanks = [
            BlankFill(i, b, limits[i], floors[i], fill.sampling.stop, prompt.begun) for i, b in enumerate(laid.blanks)
        ]
        self.echoed: list[Scored] | None = None
        self.strategy = fill.strategy or world.card.strategies[0]
        self.confident = fill.order == "confident"
        self.queue = _order(fill.order, count, random.Random(self.seed))
        self.active: dict[Sequence, BlankFill] = {}
        self.searches: dict[Sequence, Search] = {}
        self.choices = choices
        ends, one_token = world.tokenizer.ends, world.card.masked
        self.constraints = [
            None if pattern is None else Constraint(pattern, blank.spaced, ends, one_token)
            for pattern, blank in zip(patterns, laid.blanks, strict=True)
        ]
        self.other_fills: list[BlankFill] = []  # of the last blank, by a search that finds several
        self.probes: dict[Sequence, tuple[int, float | None]] = {}
        self.rank = 0.0
        # A sampler a blank, so that a blank's draws do not depend on how its neighbours interleave.
        self.samplers = [
            Sampler(fill.sampling, world.bar, None if self.seed is None else self.seed + i) for i in range(count)
        ]
        # Where each blank is written: as first laid out, or as the text is by now.
        self.places = list(laid.blanks)

    def start(self, host: Host, rank: float) -> list[Sequence]:
        self.rank = rank
        if self.strategy == "parallel":
            queue, self.queue = self.queue, []
            return [s for i in queue for s in self._open(host, self._fresh(host, i), i)]
        return self._next(host, None)

    def advance(self, host: Host, sequence: Sequence, result: Result) -> tuple[list[Sequence], list[BlankFill]]:
        """Draws a token; gives new sequences, others that are finished, and the blanks that moved."""
        if sequence in self.searches:
            return self._search(host, sequence, result)
        if isinstance(result, list):
            return [], self._take_echo(sequence, result)
        return self._draw(host, sequence, result)

    def _take_echo(self, sequence: Sequence, scored: list[Scored | None]) -> list[BlankFill]:
        """Takes the scores of what the blank began with, and asks for what follows."""
        self.echoed = [token for token in scored if token is not None]
        blank = self.active[sequence]
        if not blank.max_tokens:
            blank.finish_reason = "length"
            sequence.finished = True
            del self.active[sequence]
            return [blank]
        sequence.want, sequence.targets = "token", []
        sequence.push(blank.begun[-1], *self.places[blank.index].place(len(blank.begun)))
        return []

    def _draw(self, host: Host, sequence: Sequence, logprobs: Row) -> tuple[list[Sequence], list[BlankFill]]:
        if sequence in self.probes:
            return self._probed(host, sequence, logprobs), []
        blank = self.active[sequence]
        banned = self.world.tokenizer.ends if len(blank.tokens) < blank.min_tokens else ()
        constraint = self.constraints[blank.index]
        allowed = None if constraint is None else constraint.allowed()
        token = self.samplers[blank.index].draw(logprobs, blank.token_ids, banned, self.fill.logprobs or 0, allowed)
        blank.accept(token, self.world)
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
            return [], [blank]
        del self.active[sequence]
        return self._go_on(host, sequence, blank), [blank]

    def _search(self, host: Host, sequence: Sequence, result: Result) -> tuple[list[Sequence], list[BlankFill]]:
        """Lets a search take its result; when it has ended its best fill is the blank's."""
        search = self.searches[sequence]
        moved = search.advance(host, sequence, result)
        self.searches |= dict.fromkeys(moved, search)
        for ended in (s for s in (sequence, *moved) if s.finished):
            self.searches.pop(ended, None)
        if not search.blanks:
            return moved, []
        best, *self.other_fills = search.blanks
        self.blanks[search.index] = best
        if search.kept is not None:
            del self.searches[search.kept]
        return [*moved, *self._go_on(host, search.kept, best)], [best]

    def _go_on(self, host: Host, sequence: Sequence | None, blank: BlankFill) -> list[Sequence]:
        """What runs behind a blank that has ended, on its sequence if the later blanks see that."""
        if not self.queue or self.strategy == "reencode":
            if sequence is not None:
                sequence.finished = True
            if not self.queue:
                return []
            self._splice()
            return self._next(host, None)
        assert sequence is not None
        place, number = self.places[blank.index], len(blank.begun) + len(blank.tokens)
        if blank.end is None and self._room(sequence, place, number):
            # The last token of a blank that was cut short has not been fed, but later blanks are to see it.
            sequence.push(blank.tokens[-1].token_id, *place.place(number))
        return self._next(host, sequence)

    @property
    def done(self) -> bool:
        return all(b.finish_reason is not None for b in self.blanks)

    @property
    def answers(self) -> list[list[BlankFill]]:
        """The blanks of each result: one, or of a search the best so many."""
        others = self.other_fills[: self.fill.n - 1] if self.fill.num_beams > 1 else []
        return [self.blanks, *([*self.blanks[:-1], fill] for fill in others)]

    def result(self, number: int = 0) -> FillResult:
        """One of the answers."""
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
        """The prompt's tokens; those that only its context has no log-probabilities for."""
        echo, scored = self.prompt.echo, self.echoed or []
        assert echo is not None
        tokenizer = self.world.tokenizer
        unknown = [None] * echo.num_context
        return EchoedPrompt(
            token_ids=list(echo.ids),
            tokens=[tokenizer.piece(i) for i in echo.ids],
            token_logprobs=[*unknown, *(t.logprob for t in scored)],
            top_logprobs=[*unknown, *alternatives([t.top for t in scored], tokenizer)],
            text_offsets=list(echo.starts),
        )

    def filled(self, blank: BlankFill) -> FilledBlank:
        """A blank of the request's text as it is now."""
        at, seen = 0, 0
        for segment in self.segments:
            if isinstance(segment, Mask):
                if seen == blank.index:
                    break
                seen += 1
                at += len(segment.name)
            else:
                at += len(self._shown(segment))
        return blank.answer(at, self.world, self.fill.logprobs is not None)

    def _shown(self, segment: str | Tokens) -> str:
        return segment if isinstance(segment, str) else self.world.spelling.detokenize(segment.ids)

    def _next(self, host: Host, sequence: Sequence | None) -> list[Sequence]:
        """Opens the next blank on a sequence (None: on one of its own), or first asks every blank left how sure it is
        of its first token."""
        if not (self.confident and len(self.queue) > 1):
            index = self.queue.pop(0)
            return self._open(host, sequence or self._fresh(host, index), index)
        for index in self.queue:
            probe = self._fresh(host, index) if sequence is None else _copy(sequence)
            self._start(probe, index)
            self.probes[probe] = index, None
        if sequence is not None:
            sequence.finished = True
        return list(self.probes)

    def _probed(self, host: Host, sequence: Sequence, logprobs: Row) -> list[Sequence]:
        """Notes a probe's surest token; when all are in, goes on with the surest blank."""
        index, _ = self.probes[sequence]
        self.probes[sequence] = index, self._sureness(logprobs, index)
        sequence.finished = True
        if any(p is None for _, p in self.probes.values()):
            return []
        # Among equals the leftmost goes first.
        probe, (index, _) = max(self.probes.items(), key=lambda item: (item[1][1] or 0.0, -item[1][0]))
        self.probes.clear()
        self.queue.remove(index)
        return self._begin(host, _copy(probe), index)

    def _sureness(self, logprobs: Row, index: int) -> float:
        """The log-probability of the best token that may be drawn."""
        choices = self._choices_of(index)
        if choices is not None:
            return float(logprobs[choices.first].max())
        constraint = self.constraints[index]
        allowed = None if constraint is None else constraint.allowed()
        return Sampler(Sampling(), self.world.bar, 0).draw(logprobs, (), (), 0, allowed).logprob

    def _fresh(self, host: Host, index: int) -> Sequence:
        return Sequence(host.context(self.places[index].context), "token", self.rank)

    def _open(self, host: Host, sequence: Sequence, index: int) -> list[Sequence]:
        self._start(sequence, index)
        return self._begin(host, sequence, index)

    def _begin(self, host: Host, sequence: Sequence, index: int) -> list[Sequence]:
        """Fills a blank from its start, which the sequence has as its last row."""
        blank, place, sampler = self.blanks[index], self.places[index], self.samplers[index]
        num_top, keep = self.fill.logprobs or 0, bool(self.queue) and self.strategy == "append"
        choices = self._choices_of(index)
        search: Search
        if choices is not None:
            search = ChoiceSearch(blank, choices, place, sampler, num_top, keep, self.world)
        elif self.fill.num_beams > 1:
            beams, penalty = self.fill.num_beams, self.fill.length_penalty
            search = BeamSearch(blank, beams, penalty, place, sampler, num_top, keep, self.world)
        else:
            self.active[sequence] = blank
            return [sequence]
        begun = search.start(host, sequence)
        self.searches |= dict.fromkeys(begun, search)
        return begun

    def _choices_of(self, index: int) -> Choices | None:
        """A blank's choices, by the tokens that they have in its place as it is now."""
        choices, place, blank = self.choices[index], self.places[index], self.blanks[index]
        if choices is None or place.spaced == choices.spaced:
            return choices
        return Choices.read(choices.texts, place, (blank.min_tokens, blank.max_tokens), self.world)

    def _start(self, sequence: Sequence, index: int) -> None:
        place, begun = self.places[index], self.blanks[index].begun
        if self.fill.echo and begun:
            sequence.want, sequence.targets = "scores", list(begun)
            fed = begun[:-1]
        else:
            fed = begun
        for number, token in enumerate((place.start, *fed)):
            sequence.push(token, *place.place(number))

    def _room(self, sequence: Sequence, place: Blank, number: int) -> bool:
        """Whether the model has a position for a blank's row, and the cache a slot, with the blanks that are still to
        be written on the same sequence: a start and a token each."""
        card, (position, block) = self.world.card, place.place(number)
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
        laid = self.world.lay_out(_merged(segments), "text")
        left = [b.index for b in self.blanks if b.finish_reason is None]
        for index, place in zip(left, laid.blanks, strict=True):
            self.places[index] = place


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
    copy = Sequence(sequence.context, sequence.want, sequence.rank)
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
