"""The job of a `Fill`: all its samples."""

from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event, ResultDone
from engine.jobs.blank_fill import BlankFill
from engine.jobs.fill_checks import check_alternatives, check_begun, check_fill, read_choices, read_patterns
from engine.jobs.job import Counts, JobContext, Step
from engine.jobs.prompts import read_input
from engine.jobs.sample import Input, Sample, Task
from engine.requests import Fill, member
from engine.schedule.batch import Result
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence


class FillJob:
    """The samples of a `Fill`."""

    sample = Sample

    def __init__(self, request_id: str, fill: Fill, job_context: JobContext) -> None:
        self.id = request_id
        self.fill = fill
        self.job_context = job_context
        num_top = (fill.logprobs or 0) if fill.echo or fill.choices else 0
        self.num_top = max(num_top, fill.prompt_logprobs or 0)
        self.counts = Counts()
        self.begun = False
        self.samples: list[Sample] = []
        self._prompts: list[int] = []  # each input's tokens
        compiled = job_context.patterns.get(fill.regex)
        for number, given in enumerate(fill.inputs):
            with member("input", number, len(fill.inputs)):
                prompt, laid = read_input(fill, given, job_context)
                check_fill(fill, laid, job_context.card)
                check_begun(fill, prompt, laid, job_context)
                self._prompts.append(prompt.num_tokens)
                choices = read_choices(fill, laid, job_context)
                patterns = read_patterns(fill, len(laid.blanks), compiled)
                whole = Input(number, prompt, laid, choices, patterns)
                self.samples += [
                    self.sample(fill, number * fill.n + j, whole, job_context)
                    for j in range(fill.n if fill.num_beams == 1 else 1)
                ]
        self.counts.prompt_tokens = sum(self._prompts)
        check_alternatives(fill, [s.prompt for s in self.samples])

    def start(self, view: SchedulerView, rank: float) -> list[Sequence]:
        step = Step()
        first: dict[int, Sequence] = {}  # of an input's last sample
        for sample in self.samples:
            before = len(step.started)
            sample.start(view, rank, step)
            first[sample.input_index] = step.started[before]
        for number, sequence in first.items():
            sequence.prompt_tokens = self._prompts[number]
        return step.started

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result) -> Step:
        task = sequence.owner
        assert isinstance(task, Task)
        sample, step = task.sample, Step()
        moved = task.advance(view, sequence, result, step)
        events = step.events
        if self.fill.stream and not self.begun:
            self.begun = True
            events.append(Begun(self.id, self.counts.usage(), any(s.prompt.fitted for s in self.samples)))
        if self.fill.stream and self.fill.echo and not sample.is_echo_told:
            sample.is_echo_told = True  # the first result of a sample is its prompt's
            events.append(Echoed(self.id, sample.index, sample.input_index, sample.echo()))
        ended = False
        for blank in moved:
            blank.count(self.job_context.work)
            if self.fill.stream:
                events += self._stream(sample, blank)
            ended |= blank.finish_reason is not None
        if ended and sample.done:
            for number, blanks in enumerate(sample.answers):
                tokens = sum(b.num_tokens for b in blanks)
                self.counts.generated_tokens += tokens
                if number:  # what there is of the first one came as it was found
                    self.job_context.work.generated_tokens += tokens
                    events += self._stream_other(sample, number, blanks) if self.fill.stream else []
                events.append(ResultDone(self.id, sample.result(number)))
        if ended and all(s.done for s in self.samples):
            events.append(Done(self.id, self.counts.usage()))
        return step

    def stop(self) -> None:
        """Ends the job early. A search that has not ended counts its longest fill."""
        for sample in self.samples:
            for blank in sample.blanks:
                blank.count(self.job_context.work)
            for search in sample.searches.values():
                self.job_context.work.generated_tokens += search.reached

    def _stream_other(self, sample: Sample, number: int, blanks: list[BlankFill]) -> list[Event]:
        """All of one more answer of a search."""
        events: list[Event] = []
        if self.fill.echo:
            events.append(Echoed(self.id, sample.index + number, sample.input_index, sample.echo()))
        for blank in blanks:
            events += self._stream(sample, blank, number)
        return events

    def _stream(self, sample: Sample, blank: BlankFill, number: int = 0) -> list[Event]:
        events: list[Event] = []
        text = blank.fresh_text()
        if text:
            events.append(self._delta(sample, blank, text, number))
        if blank.finish_reason is not None:
            events.append(BlankDone(self.id, sample.index + number, sample.input_index, sample.filled(blank)))
        return events

    def _delta(self, sample: Sample, blank: BlankFill, text: str, number: int) -> BlankDelta:
        first, last = blank.sent_tokens, blank.num_shown
        fresh, tokenizer = blank.tokens[first:last], self.job_context.tokenizer
        delta = BlankDelta(
            self.id,
            sample.index + number,
            sample.input_index,
            blank.index,
            text,
            [t.token_id for t in fresh],
            [t.logprob for t in fresh],
            [tokenizer.piece(t.token_id) for t in fresh],
            blank.tops[first:last] if blank.with_top else None,
            blank.offsets[first:last],
            blank.raw[first:last],
        )
        blank.sent_tokens = last
        return delta
