"""Filling blanks: a `Fill` as sequences, one sample of one input at a time.

`append` keeps fills in part B of one sequence, as GLM was trained; `reencode` splices each fill into part A and
encodes that anew, as GLM-130B's generator does; `parallel` gives each blank a sequence of its own.
"""

import random
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.batch import Scored
from engine.beams import BeamSearch
from engine.blank_fill import BlankFill
from engine.choices import Choices, ChoiceSearch
from engine.constraint import Constraint, Pattern
from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event, ModelCard, ResultDone
from engine.fitting import fitted
from engine.job import Counts, Host, World, top_objects
from engine.prompts import Prompt, read_prompt
from engine.requests import Fill, Mask, RequestError, Sampling, Segments, Tokens
from engine.sampler import Sampler
from engine.search import Search
from engine.sequence import Sequence
from model.layout import Blank, Layout

Result = Tensor | list[Scored | None]

MAX_ALTERNATIVES = 1_000_000

# Rows of a blank that gets one token, and what beginning at a block's border can cost, twice.
_LEAST_ROWS, _BORDER_SLOTS = 2, 64
ORDERS = ("left_to_right", "right_to_left", "random", "confident")


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
        limits, floors = _per_blank(fill.max_tokens, count), _per_blank(fill.min_tokens, count)
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
            Sampler(fill.sampling, world.never, None if self.seed is None else self.seed + i) for i in range(count)
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
            return [], self._echo(sequence, result)
        return self._draw(host, sequence, result)

    def _echo(self, sequence: Sequence, scored: list[Scored | None]) -> list[BlankFill]:
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

    def _draw(self, host: Host, sequence: Sequence, logprobs: Tensor) -> tuple[list[Sequence], list[BlankFill]]:
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

    def wire(self, number: int = 0) -> dict[str, Any]:
        """The object of `results[]` for one of the answers."""
        blanks = [self.wire_blank(b) for b in self.answers[number]]
        filled = iter(blanks)
        result = {
            "index": self.index + number,
            "input_index": self.input_index,
            "text": "".join(next(filled)["text"] if isinstance(s, Mask) else self._shown(s) for s in self.segments),
            "logprob": sum(b["logprob"] for b in blanks),
            "blanks": blanks,
        }
        if self.fill.echo:
            result["echo"] = self.wire_echo()
        if self.fill.fit:
            result["fitted"] = self.prompt.fitted
        return result

    def wire_echo(self) -> dict[str, Any]:
        """The prompt's tokens; those that only its context has no log-probabilities for."""
        echo, scored = self.prompt.echo, self.echoed or []
        assert echo is not None
        tokenizer = self.world.tokenizer
        unknown = [None] * echo.num_context
        return {
            "token_ids": list(echo.ids),
            "tokens": [tokenizer.piece(i) for i in echo.ids],
            "token_logprobs": [*unknown, *(t.logprob for t in scored)],
            "top_logprobs": [*unknown, *top_objects([t.top for t in scored], tokenizer)],
            "text_offsets": list(echo.starts),
        }

    def wire_blank(self, blank: BlankFill) -> dict[str, Any]:
        at, seen = 0, 0
        for segment in self.segments:
            if isinstance(segment, Mask):
                if seen == blank.index:
                    break
                seen += 1
                at += len(segment.name)
            else:
                at += len(self._shown(segment))
        return blank.wire(at, at + len(blank.blank.mask), self.world, self.fill.logprobs is not None)

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

    def _probed(self, host: Host, sequence: Sequence, logprobs: Tensor) -> list[Sequence]:
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

    def _sureness(self, logprobs: Tensor, index: int) -> float:
        """The log-probability of the best token that may be drawn."""
        choices = self._choices_of(index)
        if choices is not None:
            return float(logprobs[choices.first].max())
        constraint = self.constraints[index]
        allowed = None if constraint is None else constraint.allowed()
        return Sampler(Sampling(), self.world.never, 0).draw(logprobs, (), (), 0, allowed).logprob

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
        later = _LEAST_ROWS * len(self.queue) if self.strategy == "append" else 0
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


class FillJob:
    """All samples of a `Fill`."""

    sample = Sample

    def __init__(self, request_id: str, fill: Fill, world: World) -> None:
        self.id = request_id
        self.fill = fill
        self.world = world
        self.num_top = (fill.logprobs or 0) if fill.echo or fill.choices else 0
        self.counts = Counts()
        self.begun = False
        self.samples: list[Sample] = []
        self._of: dict[Sequence, Sample] = {}
        compiled = world.patterns.get(text for text in fill.regex if text is not None)
        for number, given in enumerate(fill.inputs):
            prompt = read_prompt(given, fill.echo, world)
            if fill.fit:
                segments, shorter = fitted(prompt.segments, fill.max_tokens[0], world)
                prompt = replace(prompt, segments=segments, fitted=shorter)
            # Scored, a text has no end token where the family's evaluation has none.
            laid = world.lay_out(prompt.segments, "text", scored=fill.echo)
            check_fill(fill, laid, world.card)
            check_begun(fill, prompt, laid, world)
            self.counts.prompt_tokens += len(laid) + len(prompt.begun)
            choices, patterns = read_choices(fill, laid, world), read_patterns(fill, len(laid.blanks), compiled)
            self.samples += [
                self.sample(fill, number * fill.n + j, number, prompt, laid, choices, patterns, world)
                for j in range(fill.n if fill.num_beams == 1 else 1)
            ]
        check_echo(fill, self.samples)

    def start(self, host: Host, rank: float) -> list[Sequence]:
        return [self._own(s, sample) for sample in self.samples for s in sample.start(host, rank)]

    def advance(
        self, host: Host, sequence: Sequence, result: Tensor | list[Scored | None]
    ) -> tuple[list[Sequence], list[Event]]:
        sample = self._of[sequence]
        new, moved = sample.advance(host, sequence, result)
        events: list[Event] = []
        if self.fill.stream and not self.begun:
            self.begun = True
            events.append(Begun(self.id, self.counts.usage(), any(s.prompt.fitted for s in self.samples)))
        if self.fill.stream and self.fill.echo and isinstance(result, list):
            events.append(Echoed(self.id, sample.index, sample.input_index, sample.wire_echo()))
        for blank in moved:
            if self.fill.stream:
                events += self._stream(sample, blank)
            if blank.finish_reason is not None:
                self.counts.blanks += 1
        if sample.done and moved:
            for number, blanks in enumerate(sample.answers):
                self.counts.generated_tokens += sum(len(b.tokens) for b in blanks)
                events.append(ResultDone(self.id, sample.wire(number)))
        if self.done and moved:
            events.append(Done(self.id, self.counts.usage()))
        for ended in (s for s in (sequence, *new) if s.finished):
            self._of.pop(ended, None)
        return [s if s.finished else self._own(s, sample) for s in new], events

    @property
    def done(self) -> bool:
        return all(s.done for s in self.samples)

    def _own(self, sequence: Sequence, sample: Sample) -> Sequence:
        self._of[sequence] = sample
        return sequence

    def _stream(self, sample: Sample, blank: BlankFill) -> list[Event]:
        events: list[Event] = []
        text = blank.fresh_text()
        if text:
            events.append(self._delta(sample, blank, text))
        if blank.finish_reason is not None:
            events.append(BlankDone(self.id, sample.index, sample.input_index, sample.wire_blank(blank)))
        return events

    def _delta(self, sample: Sample, blank: BlankFill, text: str) -> BlankDelta:
        fresh, tokenizer = blank.tokens[blank.sent_tokens :], self.world.tokenizer
        delta = BlankDelta(
            self.id,
            sample.index,
            sample.input_index,
            blank.index,
            text,
            [t.token_id for t in fresh],
            [t.logprob for t in fresh],
            [tokenizer.piece(t.token_id) for t in fresh],
            top_objects([t.top for t in fresh], tokenizer) if self.fill.logprobs is not None else None,
            blank.offsets[blank.sent_tokens :],
        )
        blank.sent_tokens = len(blank.tokens)
        return delta


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


def _per_blank(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values * count if len(values) == 1 else values


def _order(order: str | tuple[int, ...], count: int, rng: random.Random) -> list[int]:
    if not isinstance(order, str):
        return list(order)
    indices = list(range(count))
    if order == "right_to_left":
        indices.reverse()
    elif order == "random":
        rng.shuffle(indices)
    return indices


def check_fill(fill: Fill, laid: Layout, card: ModelCard) -> None:
    """Raises RequestError for what does not fit the number of blanks, the family or the model's limits."""
    count = len(laid.blanks)
    if fill.strategy is not None and fill.strategy not in card.strategies:
        known = ", ".join(card.strategies)
        raise RequestError(f"this model cannot fill by {fill.strategy}, only by {known}", "strategy", "unsupported")
    for name, values in (("max_tokens", fill.max_tokens), ("min_tokens", fill.min_tokens)):
        if len(values) not in (1, count):
            raise RequestError(f"{name} has {len(values)} numbers for {count} blanks", name)
        if max(values) > card.max_span:
            raise RequestError(f"{name} is {max(values)}, this model takes at most {card.max_span}", name)
    if fill.strategy in (None, "append") and _LEAST_ROWS * count > card.max_span:
        raise RequestError(
            f"{count} blanks are too many for this model's cache of {card.kv_cache_tokens} tokens", "text"
        )
    check_beams(fill, count, card)
    if any(a > b for a, b in zip(_per_blank(fill.min_tokens, count), _per_blank(fill.max_tokens, count), strict=True)):
        raise RequestError("min_tokens is larger than max_tokens", "min_tokens")
    if isinstance(fill.order, str):
        if fill.order not in ORDERS:
            raise RequestError(f"order must be one of {', '.join(ORDERS)} or a list of blank indices", "order")
    elif sorted(fill.order) != list(range(count)):
        raise RequestError(f"order must hold each of the {count} blank indices 0 … {count - 1} once", "order")


def read_choices(fill: Fill, laid: Layout, world: World) -> list[Choices | None]:
    """Each blank's choices. Raises RequestError for what does not fit the number of blanks or the model's limits."""
    count = len(laid.blanks)
    texts = fill.choices * count if len(fill.choices) == 1 else fill.choices or (None,) * count
    if len(texts) != count:
        raise RequestError(f"choices has {len(texts)} lists for {count} blanks", "choices")
    lengths = zip(_per_blank(fill.min_tokens, count), _per_blank(fill.max_tokens, count), strict=True)
    choices = [
        None if own is None else Choices.read(own, place, between, world)
        for own, place, between in zip(texts, laid.blanks, lengths, strict=True)
    ]
    rows = sum(_LEAST_ROWS if own is None else own.longest + 1 for own in choices)
    if fill.choices and rows > world.card.max_span:
        raise RequestError(f"choices need {rows} tokens, this model takes at most {world.card.max_span}", "choices")
    return choices


def read_patterns(fill: Fill, count: int, compiled: Mapping[str, Pattern]) -> list[Pattern | None]:
    """Each blank's pattern. Raises RequestError for what does not fit the blanks."""
    texts = fill.regex * count if len(fill.regex) == 1 else fill.regex or (None,) * count
    if len(texts) != count:
        raise RequestError(f"regex has {len(texts)} patterns for {count} blanks", "regex")
    choices = fill.choices * count if len(fill.choices) == 1 else fill.choices or (None,) * count
    if any(own is not None and text is not None for own, text in zip(choices, texts, strict=True)):
        raise RequestError("a blank has choices or a regex, not both", "regex")
    if fill.num_beams > 1 and any(text is not None for text in texts):
        raise RequestError("beam search knows no regex; num_beams must be 1", "regex")
    return [None if text is None else compiled[text] for text in texts]


def check_beams(fill: Fill, count: int, card: ModelCard) -> None:
    """Raises RequestError for what a beam search cannot do."""
    if fill.num_beams == 1:
        return
    if card.masked:
        raise RequestError("this model fills each blank by one token; there are no beams", "num_beams", "unsupported")
    if fill.sampling.temperature:
        raise RequestError("beam search draws nothing: temperature must be 0", "num_beams")
    if fill.n > fill.num_beams:
        raise RequestError(f"n is {fill.n}, more than num_beams, {fill.num_beams}", "n")
    if fill.n > 1 and count > 1:
        raise RequestError(f"the text has {count} blanks; several answers by beam search need one blank", "n")
    if count == 1 and fill.choices[:1] not in ((), (None,)):
        raise RequestError("all choices are compared anyway; num_beams must be 1", "num_beams")


def check_begun(fill: Fill, prompt: Prompt, laid: Layout, world: World) -> None:
    """Raises RequestError if the model has no positions for what a blank begins with, or nothing is to be done."""
    if prompt.begun:
        if any(text is not None for text in fill.regex):
            raise RequestError("a blank with a regex cannot begin with tokens", "regex")
        more = min(fill.max_tokens[0], 1)
        world.check_span(len(prompt.begun) + more, laid.blanks[0], "text")
    elif not min(fill.max_tokens):
        raise RequestError("max_tokens is 0 and there is nothing to score", "max_tokens")


def check_echo(fill: Fill, samples: Items[Sample]) -> None:
    """Raises RequestError for prompts whose alternatives would fill the memory of whoever holds the answer."""
    count = sum(len(s.prompt.echo.ids) for s in samples if s.prompt.echo is not None) * (fill.logprobs or 0)
    if count > MAX_ALTERNATIVES:
        message = f"{count} alternatives of scored tokens are too many for one request; the limit is {MAX_ALTERNATIVES}"
        raise RequestError(message, "logprobs")
