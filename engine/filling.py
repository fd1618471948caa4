"""Filling blanks: a `Fill` as a job of samples."""

from dataclasses import replace

from engine.batch import Result
from engine.blank_fill import BlankFill
from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event, ResultDone
from engine.fill_checks import check_begun, check_echo, check_fill, read_choices, read_patterns
from engine.fitting import fitted
from engine.job import Counts, Host, World, alternatives
from engine.prompts import read_prompt
from engine.requests import Fill
from engine.sample import Sample
from engine.sequence import Sequence


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
        self._prompts: list[int] = []  # each input's tokens
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
            self._prompts.append(len(laid) + len(prompt.begun))
            choices, patterns = read_choices(fill, laid, world), read_patterns(fill, len(laid.blanks), compiled)
            self.samples += [
                self.sample(fill, number * fill.n + j, number, prompt, laid, choices, patterns, world)
                for j in range(fill.n if fill.num_beams == 1 else 1)
            ]
        self.counts.prompt_tokens = sum(self._prompts)
        check_echo(fill, [s.prompt for s in self.samples])

    def start(self, host: Host, rank: float) -> list[Sequence]:
        begun = [[self._own(s, sample) for s in sample.start(host, rank)] for sample in self.samples]
        first = {sample.input_index: own[0] for sample, own in zip(self.samples, begun, strict=True)}
        for number, sequence in first.items():
            sequence.prompt_tokens = self._prompts[number]
        return [sequence for own in begun for sequence in own]

    def advance(self, host: Host, sequence: Sequence, result: Result) -> tuple[list[Sequence], list[Event]]:
        sample = self._of[sequence]
        new, moved = sample.advance(host, sequence, result)
        events: list[Event] = []
        if self.fill.stream and not self.begun:
            self.begun = True
            events.append(Begun(self.id, self.counts.usage(), any(s.prompt.fitted for s in self.samples)))
        if self.fill.stream and self.fill.echo and isinstance(result, list):
            events.append(Echoed(self.id, sample.index, sample.input_index, sample.echo()))
        ended = False
        for blank in moved:
            blank.count(self.world.work)
            if self.fill.stream:
                events += self._stream(sample, blank)
            ended |= blank.finish_reason is not None
        if ended and sample.done:
            for number, blanks in enumerate(sample.answers):
                tokens = sum(len(b.tokens) for b in blanks)
                self.counts.generated_tokens += tokens
                self.world.work.generated_tokens += tokens if number else 0  # those of the first are counted
                events.append(ResultDone(self.id, sample.result(number)))
        if ended and all(s.done for s in self.samples):
            events.append(Done(self.id, self.counts.usage()))
        for finished in (s for s in (sequence, *new) if s.finished):
            self._of.pop(finished, None)
        return [s if s.finished else self._own(s, sample) for s in new], events

    def stop(self) -> None:
        """Of a search that has not ended the longest fill so far counts."""
        for sample in self.samples:
            for blank in sample.blanks:
                blank.count(self.world.work)
            for search in set(sample.searches.values()):
                self.world.work.generated_tokens += search.reached

    def _own(self, sequence: Sequence, sample: Sample) -> Sequence:
        self._of[sequence] = sample
        return sequence

    def _stream(self, sample: Sample, blank: BlankFill) -> list[Event]:
        events: list[Event] = []
        text = blank.fresh_text()
        if text:
            events.append(self._delta(sample, blank, text))
        if blank.finish_reason is not None:
            events.append(BlankDone(self.id, sample.index, sample.input_index, sample.filled(blank)))
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
            alternatives([t.top for t in fresh], tokenizer) if self.fill.logprobs is not None else None,
            blank.offsets[blank.sent_tokens :],
        )
        blank.sent_tokens = len(blank.tokens)
        return delta
