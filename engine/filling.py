"""Filling blanks: a `Fill` as sequences, one sample of one input at a time.

`append` keeps fills in part B of one sequence, as GLM was trained; `reencode` splices each fill into part A and
encodes that anew, as GLM-130B's generator does; `parallel` gives each blank a sequence of its own.
"""

import random
from collections.abc import Sequence as Items
from typing import Any

from torch import Tensor

from engine.batch import Scored
from engine.events import BlankDelta, BlankDone, Done, Event, ModelCard, ResultDone
from engine.job import Counts, Host, World, top_objects
from engine.requests import Fill, Mask, RequestError, Sampling, Segments
from engine.sampler import Sampler
from engine.sequence import Sequence
from model.layout import Blank, Layout, span_text

ORDERS = ("left_to_right", "right_to_left", "random", "confident")


class BlankFill:
    """One blank of one sample: its tokens so far and when it ends."""

    def __init__(self, index: int, blank: Blank, max_tokens: int, min_tokens: int, stop: tuple[str, ...]) -> None:
        self.index = index
        self.blank = blank
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.stop = stop
        self.tokens: list[Scored] = []
        self.text = ""
        self.end_logprob: float | None = None
        self.finish_reason: str | None = None
        self.sent_text = self.sent_tokens = 0

    @property
    def token_ids(self) -> list[int]:
        return [t.token_id for t in self.tokens]

    def accept(self, token: Scored, world: World) -> None:
        """Takes the next drawn token; sets `finish_reason` if it is the last."""
        if token.token_id in world.tokenizer.ends:
            self.end_logprob = token.logprob
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        self.text = span_text(self.token_ids, self.blank, world.tokenizer)
        found = [at for at in (self.text.find(s) for s in self.stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def fresh_text(self) -> str:
        """Text not sent yet that no later token can change: neither a part of a character nor of a stop string."""
        text = self.text
        if self.finish_reason is None:
            text = text.rstrip("\ufffd")
            held = max((len(s) for s in self.stop), default=1) - 1
            text = text[: len(text) - held] if held else text
        fresh = text[self.sent_text :]
        self.sent_text += len(fresh)
        return fresh

    def wire(self, start: int, end: int, world: World, alternatives: bool) -> dict[str, Any]:
        """The object of `blanks[]`; start and end are the mask's characters in the request's text."""
        return {
            "index": self.index,
            "mask": self.blank.mask,
            "start": start,
            "end": end,
            "text": self.text,
            "token_ids": self.token_ids,
            "tokens": [world.tokenizer.piece(i) for i in self.token_ids],
            "logprob": sum(t.logprob for t in self.tokens),
            "token_logprobs": [t.logprob for t in self.tokens],
            "top_logprobs": top_objects([t.top for t in self.tokens], world.tokenizer) if alternatives else None,
            "end_logprob": self.end_logprob,
            "finish_reason": self.finish_reason,
        }


class Sample:
    """One sample of one input: its blanks, the order they are filled in, and its running sequences."""

    def __init__(
        self, fill: Fill, index: int, input_index: int, segments: Segments, laid: Layout, world: World
    ) -> None:
        self.fill = fill
        self.world = world
        self.index = index
        self.input_index = input_index
        self.segments = segments
        seed = fill.sampling.seed
        # Sample j of input i is the same whatever n and the other inputs are.
        self.seed = None if seed is None else seed + 1_000_003 * (index % fill.n)
        count = len(laid.blanks)
        limits, floors = _per_blank(fill.max_tokens, count), _per_blank(fill.min_tokens, count)
        self.blanks = [BlankFill(i, b, limits[i], floors[i], fill.sampling.stop) for i, b in enumerate(laid.blanks)]
        self.strategy = fill.strategy or world.card.strategies[0]
        self.confident = fill.order == "confident"
        self.queue = _order(fill.order, count, random.Random(self.seed))
        self.active: dict[Sequence, BlankFill] = {}
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
            return [self._open(self._fresh(host, i), i) for i in queue]
        return self._next(host, None)

    def advance(self, host: Host, sequence: Sequence, logprobs: Tensor) -> tuple[list[Sequence], list[BlankFill]]:
        """Draws a token; gives new sequences, and the blanks that moved."""
        if sequence in self.probes:
            return self._probed(host, sequence, logprobs), []
        blank = self.active[sequence]
        banned = self.world.tokenizer.ends if len(blank.tokens) < blank.min_tokens else ()
        token = self.samplers[blank.index].draw(logprobs, blank.token_ids, banned, self.fill.logprobs or 0)
        blank.accept(token, self.world)
        place = self.places[blank.index]
        if blank.finish_reason is None and not self._room(place, len(blank.tokens)):
            blank.finish_reason = "length"
        if blank.finish_reason is None:
            sequence.push(token.token_id, *place.place(len(blank.tokens)))
            return [], [blank]
        del self.active[sequence]
        if not self.queue:
            sequence.finished = True
            return [], [blank]
        if self.strategy == "reencode":
            sequence.finished = True
            self._splice()
            return self._next(host, None), [blank]
        if (blank.finish_reason != "stop" or blank.end_logprob is None) and self._room(place, len(blank.tokens)):
            # The last token of a blank that was cut short has not been fed, but later blanks are to see it.
            sequence.push(token.token_id, *place.place(len(blank.tokens)))
        return self._next(host, sequence), [blank]

    @property
    def done(self) -> bool:
        return all(b.finish_reason is not None for b in self.blanks)

    def wire(self) -> dict[str, Any]:
        """The object of `results[]`."""
        blanks = [self.wire_blank(b) for b in self.blanks]
        filled = iter(blanks)
        return {
            "index": self.index,
            "input_index": self.input_index,
            "text": "".join(s if isinstance(s, str) else next(filled)["text"] for s in self.segments),
            "logprob": sum(b["logprob"] for b in blanks),
            "blanks": blanks,
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
                at += len(segment)
        return blank.wire(at, at + len(blank.blank.mask), self.world, self.fill.logprobs is not None)

    def _next(self, host: Host, sequence: Sequence | None) -> list[Sequence]:
        """Opens the next blank on a sequence (None: on one of its own), or first asks every blank left how sure it is
        of its first token."""
        if not (self.confident and len(self.queue) > 1):
            index = self.queue.pop(0)
            return [self._open(sequence or self._fresh(host, index), index)]
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
        self.probes[sequence] = index, self._sureness(logprobs)
        sequence.finished = True
        if any(p is None for _, p in self.probes.values()):
            return []
        # Among equals the leftmost goes first.
        probe, (index, _) = max(self.probes.items(), key=lambda item: (item[1][1] or 0.0, -item[1][0]))
        self.probes.clear()
        self.queue.remove(index)
        again = _copy(probe)
        self.active[again] = self.blanks[index]
        return [again]

    def _sureness(self, logprobs: Tensor) -> float:
        """The log-probability of the best token that may be drawn."""
        return Sampler(Sampling(), self.world.never, 0).draw(logprobs, (), (), 0).logprob

    def _fresh(self, host: Host, index: int) -> Sequence:
        return Sequence(host.context(self.places[index].context), "token", self.rank)

    def _open(self, sequence: Sequence, index: int) -> Sequence:
        self._start(sequence, index)
        self.active[sequence] = self.blanks[index]
        return sequence

    def _start(self, sequence: Sequence, index: int) -> None:
        sequence.push(self.places[index].start, *self.places[index].place(0))

    def _room(self, place: Blank, number: int) -> bool:
        """Whether the model has a position for a blank's row."""
        position, block = place.place(number)
        return max(position, block) < self.world.card.max_positions

    def _splice(self) -> None:
        """Lays the text out anew with the fills so far in place of their masks."""
        masks = iter(self.blanks)
        segments: list[str | Mask] = []
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
        self.num_top = 0
        self.counts = Counts()
        self.samples: list[Sample] = []
        self._of: dict[Sequence, Sample] = {}
        card = world.card
        for number, given in enumerate(fill.inputs):
            segments = _with_mask(given, card.masks)
            laid = world.lay_out(segments, "text")
            check_fill(fill, laid, card)
            self.counts.prompt_tokens += len(laid)
            self.samples += [
                self.sample(fill, number * fill.n + j, number, segments, laid, world) for j in range(fill.n)
            ]

    def start(self, host: Host, rank: float) -> list[Sequence]:
        return [self._own(s, sample) for sample in self.samples for s in sample.start(host, rank)]

    def advance(
        self, host: Host, sequence: Sequence, result: Tensor | list[Scored | None]
    ) -> tuple[list[Sequence], list[Event]]:
        assert isinstance(result, Tensor)
        sample = self._of[sequence]
        new, moved = sample.advance(host, sequence, result)
        events: list[Event] = []
        for blank in moved:
            if self.fill.stream:
                events += self._stream(sample, blank)
            if blank.finish_reason is not None:
                self.counts.blanks += 1
        if sequence.finished:
            del self._of[sequence]
        if sample.done and moved:
            self.counts.generated_tokens += sum(len(b.tokens) for b in sample.blanks)
            events.append(ResultDone(self.id, sample.wire()))
        if self.done and moved:
            events.append(Done(self.id, self.counts.usage()))
        return [self._own(s, sample) for s in new], events

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
            fresh = blank.tokens[blank.sent_tokens :]
            blank.sent_tokens = len(blank.tokens)
            ids, logprobs = [t.token_id for t in fresh], [t.logprob for t in fresh]
            events.append(BlankDelta(self.id, sample.index, sample.input_index, blank.index, text, ids, logprobs))
        if blank.finish_reason is not None:
            events.append(BlankDone(self.id, sample.index, sample.input_index, sample.wire_blank(blank)))
        return events


def _with_mask(segments: Segments, masks: Items[str]) -> Segments:
    if any(isinstance(s, Mask) for s in segments):
        return segments
    return (*segments, Mask("[gMASK]" if "[gMASK]" in masks else "[MASK]"))


def _merged(segments: Items[str | Mask]) -> Segments:
    """Neighbouring strings joined, so that a spliced text is tokenized as the text it now is."""
    merged: list[str | Mask] = []
    for segment in segments:
        if merged and isinstance(segment, str) and isinstance(merged[-1], str):
            merged[-1] += segment
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
    if any(a > b for a, b in zip(_per_blank(fill.min_tokens, count), _per_blank(fill.max_tokens, count), strict=True)):
        raise RequestError("min_tokens is larger than max_tokens", "min_tokens")
    if isinstance(fill.order, str):
        if fill.order not in ORDERS:
            raise RequestError(f"order must be one of {', '.join(ORDERS)} or a list of blank indices", "order")
    elif sorted(fill.order) != list(range(count)):
        raise RequestError(f"order must hold each of the {count} blank indices 0 … {count - 1} once", "order")
