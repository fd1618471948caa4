"""The clock of an engine: arrival, start and first result of each job, and the `StepStats` of each step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.events import Done, Event, StepStats
from engine.jobs.job import Work
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Sequence


@dataclass(slots=True)
class JobTimes:
    """Times of a job's arrival, start and first result, in seconds of the engine's clock."""

    arrived: float
    started: float | None = None
    answered: float | None = None

    def stamp(self, event: Event) -> Event:
        """The event, with these times if it ends an answer."""
        if not isinstance(event, Done) or self.started is None or self.answered is None:
            return event
        return replace(event, queue_s=self.started - self.arrived, first_token_s=self.answered - self.arrived)


class StepClock:
    """Measures steps. `last_stats` are those of the last step, None before the first."""

    def __init__(self, scheduler: Scheduler, work: Work, now: Callable[[], float] = time.monotonic) -> None:
        """`now` gives seconds that never go back."""
        self.now = now
        self.last_stats: StepStats | None = None
        self._scheduler, self._work = scheduler, work
        self._told = self._counters()
        self._began = 0.0
        # Seconds that a step gives to the histograms: arrival to first step, arrival to first token, between tokens.
        self._queued: list[float] = []
        self._first: list[float] = []
        self._between: list[float] = []

    def begin(self) -> float:
        """Starts a step and returns its time, in seconds of the engine's clock."""
        self._began = self.now()
        self._queued, self._first, self._between = [], [], []
        return self._began

    def note_rows(self, times: JobTimes) -> None:
        """Notes that a job has rows in this step."""
        if times.started is None:
            times.started = self._began
            self._queued.append(self._began - times.arrived)

    def note_result(self, times: JobTimes, sequence: Sequence) -> None:
        """Notes the result of a job's sequence."""
        now = self.now()
        if times.answered is None:
            times.answered = now
            self._first.append(now - times.arrived)
        if sequence.drawn_at is not None:
            self._between.append(now - sequence.drawn_at)
        if sequence.output in ("token", "logits"):
            sequence.drawn_at = now

    def count_prompt(self, sequence: Sequence) -> None:
        """Counts the prompt tokens of a sequence that runs for the first time."""
        if sequence.prompt_tokens:
            self._work.prompt_tokens += sequence.prompt_tokens
            sequence.prompt_tokens = 0

    def end(self, rows: int, running: int, waiting: int, nonfinite_rows: int) -> None:
        """Ends the step, with the numbers of running and waiting jobs."""
        self.last_stats = replace(
            self.idle_stats(),
            seconds=self.now() - self._began,
            rows=rows,
            running=running,
            waiting=waiting,
            nonfinite_rows=nonfinite_rows,
            queue_seconds=self._queued,
            first_token_seconds=self._first,
            token_seconds=self._between,
        )

    def idle_stats(self) -> StepStats:
        """Stats of the work since the last ones outside a step, such as context look-ups of new requests."""
        told, self._told = self._told, self._counters()
        new = (now - before for now, before in zip(self._told, told, strict=True))
        queries, hits, preemptions, prompt_tokens, generated_tokens, blanks, score_candidates, score_tokens = new
        return StepStats(
            seconds=0.0,
            rows=0,
            running=0,
            waiting=0,
            kv_cache_usage=self._scheduler.usage(),
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            blanks=blanks,
            score_candidates=score_candidates,
            score_tokens=score_tokens,
            context_cache_queries=queries,
            context_cache_hits=hits,
            preemptions=preemptions,
        )

    def _counters(self) -> tuple[int, ...]:
        return *self._scheduler.counts(), *self._work.counts()
