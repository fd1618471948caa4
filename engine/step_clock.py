"""The clock of an engine: when jobs came, began and had their first result, and what each step did, as `StepStats`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.events import Done, Event, StepStats
from engine.jobs.job import Work
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Sequence


@dataclass(slots=True)
class JobTimes:
    """When a job arrived, began to run and had its first result, in seconds of the engine's clock."""

    arrived: float
    started: float | None = None
    answered: float | None = None

    def stamp(self, event: Event) -> Event:
        """The event, with these times if it is the last one of an answer."""
        if not isinstance(event, Done) or self.started is None or self.answered is None:
            return event
        return replace(event, queue_s=self.started - self.arrived, first_token_s=self.answered - self.arrived)


class StepClock:
    """Measures steps. `last_stats` are those of the last one, None before the first."""

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
        """A step begins, at the time that it gives."""
        self._began = self.now()
        self._queued, self._first, self._between = [], [], []
        return self._began

    def note_rows(self, times: JobTimes) -> None:
        """A job has rows in this step."""
        if times.started is None:
            times.started = self._began
            self._queued.append(self._began - times.arrived)

    def note_result(self, times: JobTimes, sequence: Sequence) -> None:
        """A sequence of a job has its result."""
        now = self.now()
        if times.answered is None:
            times.answered = now
            self._first.append(now - times.arrived)
        if sequence.drawn_at is not None:
            self._between.append(now - sequence.drawn_at)
        if sequence.output in ("token", "logits"):
            sequence.drawn_at = now

    def count_prompt(self, sequence: Sequence) -> None:
        """A sequence has run: for the first time, if there are tokens of a prompt to be counted."""
        if sequence.prompt_tokens:
            self._work.prompt_tokens += sequence.prompt_tokens
            sequence.prompt_tokens = 0

    def end(self, rows: int, running: int, waiting: int, nonfinite_rows: int) -> None:
        """The step has ended; jobs are running or waiting."""
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
        """What was done since the last stats beside a step: requests come, which look up contexts, and go."""
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
