"""The engine: requests in, events out, one iteration at a time. Synchronous and single-threaded."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engine.adapter_host import AdapterHost
from engine.config import EngineConfig
from engine.deadlines import Deadlines
from engine.events import Done, Event, Failed
from engine.jobs.filling import FillJob
from engine.jobs.job import Job, JobContext, Work
from engine.jobs.masked import MaskedFillJob, MaskedScoreJob, NextSentenceJob
from engine.jobs.prompts import reading
from engine.jobs.scoring import ScoreJob
from engine.loading import Loaded, load_runner, prepare
from engine.model_card import model_card
from engine.ranks import BroadcastingAdapters, BroadcastingRunner, Channel
from engine.readings import Piece, Reading
from engine.regex.constraint import Patterns
from engine.requests import Fill, Request, RequestError, member
from engine.runner import LEAST_LOGIT_ROWS, Runner
from engine.schedule.batch import Batch, Result
from engine.schedule.blocks import BlockPool
from engine.schedule.fair_queue import FairQueue
from engine.schedule.scheduler import Scheduler, SchedulerView
from engine.schedule.sequence import Sequence
from engine.step_clock import JobTimes, StepClock
from model.checkpoint import Checkpoint
from model.spelling import Spelling
from quant.memory import is_out_of_memory

# Seconds after which a batch request is ranked like an interactive one.
BATCH_PATIENCE_S = 5.0
# Added to its ranks until then: more rows than are ever computed, and exact in a float.
PASSED_OVER = 1 << 50


class Engine:
    """A loaded model, its cache and the jobs that run on it."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint | None = None,
        loaded: Loaded | None = None,
        channel: Channel | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Loads the parts that are not given. `channel` leads to the other ranks; `now` gives seconds."""
        if loaded is None:
            prepare(config)
            loaded = load_runner(config, checkpoint)
        model, family = loaded.checkpoint.model, loaded.checkpoint.family
        self.tokenizer = loaded.checkpoint.tokenizer
        pool = BlockPool(loaded.num_blocks, config.block_size)
        self.scheduler = Scheduler(pool, config.max_batch_tokens, model.architecture.causal)
        self.runner = loaded.runner if channel is None else BroadcastingRunner(loaded.runner, channel)
        size = 1 if channel is None else channel.ranks.size
        self.card = model_card(loaded, size, config.served_model_names)
        logit_mask = np.full(model.architecture.vocab_size, -np.inf, np.float32)
        logit_mask[[*self.tokenizer.text_ids(), *self.tokenizer.ends]] = 0
        patterns = Patterns(self.tokenizer, len(logit_mask))
        self.job_context = JobContext(
            self.tokenizer, family.layout, self.card, logit_mask, Spelling(self.tokenizer), patterns, Work()
        )
        adapters = loaded.runner.adapters if channel is None else BroadcastingAdapters(loaded.runner.adapters, channel)
        self.adapters = AdapterHost(config, loaded, adapters, self.scheduler, self.job_context)
        self.clock = StepClock(self.scheduler, self.job_context.work, now)
        self._jobs: dict[str, _Entry] = {}
        self._fair_queue = FairQueue()
        self._deadlines = Deadlines()
        self._passed_over: deque[str] = deque()  # batch requests, in order of arrival

    def prepare(self, request: Request, request_id: str) -> Job:
        """Checks and lays out a request; may run in another thread.

        If the request names an adapter, the adapter is in use until the job ends. Raises RequestError for a request
        that cannot be served.
        """
        if request.adapter is None:
            return self._job(request, request_id, self.job_context)
        job_context = self.adapters.take(request.adapter, request_id)
        try:
            return self._job(request, request_id, job_context)
        except BaseException:
            self.adapters.leave(request_id)
            raise

    def _job(self, request: Request, request_id: str, job_context: JobContext) -> Job:
        _check_token_ids(request, job_context)
        masked = self.card.masked
        if isinstance(request, Fill):
            return (MaskedFillJob if masked else FillJob)(request_id, request, job_context)
        if request.sentence_a is not None:
            return NextSentenceJob(request_id, request, job_context)
        return (MaskedScoreJob if masked else ScoreJob)(request_id, request, job_context)

    def discard(self, request_id: str) -> None:
        """Drops a prepared job that does not begin."""
        self.adapters.leave(request_id)

    def compiles(self, request: Request) -> bool:
        """Whether `prepare` must compile a regular expression for this request, which takes time."""
        texts = request.regex if isinstance(request, Fill) else ()
        return not self.job_context.patterns.knows(text for text in texts if text is not None)

    def add(self, job: Job, request: Request) -> None:
        """Starts a prepared job."""
        now = self.clock.now()
        if self.idle:
            self._fair_queue.rest()
        flow = request.tenant, request.priority
        batch = request.priority == "batch"
        view = SchedulerView(self.scheduler, request.tenant, self.adapters.number_of(job.id))
        entry = self._jobs[job.id] = _Entry(job, view, JobTimes(now))
        if request.timeout_s is not None:
            self._deadlines.watch(job.id, now + request.timeout_s)
        if batch:
            self._passed_over.append(job.id)
        # What the job starts later, such as its next blank, keeps its place; only what waits now takes turns.
        sequences = job.start(view, self._fair_queue.next(flow))
        drawn = max(request.max_tokens) if isinstance(request, Fill) else 0
        for sequence in sequences:
            rank = self._fair_queue.take(flow, len(sequence.context) + sequence.pending + sequence.to_come + drawn)
            sequence.rank = rank + PASSED_OVER * batch
        cached = {id(s.context): len(s.context) for s in sequences if s.context.blocks is not None}
        job.counts.cached_tokens = sum(cached.values())
        self._start(entry, sequences)

    def cancel(
        self, request_id: str, outcome: str = "cancelled", message: str = "cancelled by the client"
    ) -> list[Event]:
        """Ends a job and frees its resources. It emits no event, and does nothing if the job has ended."""
        entry = self._jobs.get(request_id)
        if entry is None:
            return []
        for sequence in entry.view.sequences:
            self.scheduler.remove(sequence)
        entry.job.stop()
        self._end(request_id)
        return [Failed(request_id, outcome, message, code=outcome)]  # type: ignore[arg-type]

    @property
    def idle(self) -> bool:
        """Whether no job is under way."""
        return not self._jobs

    def step(self) -> list[Event]:
        """Runs one iteration: it ends overdue jobs, runs one batch, and returns the events."""
        began = self.clock.begin()
        events: list[Event] = []
        for job_id in self._deadlines.overdue(began):
            events += self.cancel(job_id, "deadline", "the request's deadline has passed")
        self._raise_passed_over(began)
        batch, chosen = self.scheduler.schedule()
        bad = 0
        if chosen:
            for sequence in chosen:
                self._fair_queue.served(int(sequence.rank) % PASSED_OVER)
                self.clock.note_rows(self._jobs[sequence.job_id].times)
            num_top = max((self._jobs[s.job_id].job.num_top for s in chosen), default=0)
            try:
                results, bad = self.runner.run(batch, num_top)
            except (MemoryError, RuntimeError) as error:
                # Several ranks must all restart, since the others would wait for this one.
                if isinstance(self.runner, BroadcastingRunner) or not is_out_of_memory(error):
                    raise
                events += self._shed(self.runner, batch, chosen)
                chosen, results = [], []
            for sequence, result in zip(chosen, results, strict=True):
                self.clock.count_prompt(sequence)
                if sequence.status != "finished":
                    events += self._advance(sequence, result)
        running = len({s.job_id for s in self.scheduler.running})
        self.clock.end(batch.num_rows, running, len(self._jobs) - running, bad)
        return events

    def _raise_passed_over(self, now: float) -> None:
        """Ranks batch requests that have been passed over for long as if they were interactive."""
        while self._passed_over:
            entry = self._jobs.get(self._passed_over[0])
            if entry is not None and now - entry.times.arrived <= BATCH_PATIENCE_S:
                break
            self._passed_over.popleft()
            for sequence in () if entry is None else entry.view.sequences:
                self.scheduler.rerank(sequence, sequence.rank % PASSED_OVER)

    def _shed(self, runner: Runner, batch: Batch, chosen: list[Sequence]) -> list[Event]:
        """Memory has run out: ends the request that asked most of the step, empties the cache, makes the step's largest
        tensors smaller from now on, and has the others computed again."""
        num_contexts = len(batch.rows) - len(chosen)
        # Contexts are known by their blocks, which their sequences hold; one may be several requests'.
        contexts = {part.span.blocks: len(part.token_ids) for part in batch.rows[:num_contexts]}
        rows: dict[str, int] = {}
        asked: set[tuple[str, tuple[int, ...]]] = set()
        for part, sequence in zip(batch.rows[num_contexts:], chosen, strict=True):
            job_id, held = sequence.job_id, sequence.context_blocks
            encoded = 0 if (job_id, held) in asked else contexts.get(held, 0)
            asked.add((job_id, held))
            rows[job_id] = rows.get(job_id, 0) + len(part.token_ids) + encoded
        self.scheduler.recall(chosen)
        runner.logit_chunk = max(runner.logit_chunk // 2, LEAST_LOGIT_ROWS)
        message = "memory has run out in a step that had most of its rows from this request"
        ended = self.cancel(max(rows, key=lambda job_id: rows[job_id]), "overloaded", message)
        return [replace(event, code="insufficient_memory") for event in ended if isinstance(event, Failed)]

    def run(self, request: Request, request_id: str = "local") -> list[Event]:
        """Runs one request to its end, for the command line and for tests. Raises RequestError as `prepare` does."""
        self.add(self.prepare(request, request_id), request)
        events: list[Event] = []
        while request_id in self._jobs:
            events += self.step()
        return events

    def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        """Each input of a fill as the model reads it. `scored`: the tokens of its blanks are known.

        Raises RequestError for an input that the model cannot read.
        """
        readings = []
        for number, given in enumerate(fill.inputs):
            with member("input", number, len(fill.inputs)):
                readings.append(reading(fill, given, self.job_context, scored))
        return readings

    def pieces(self, token_ids: list[int]) -> list[Piece]:
        """The pieces of token ids. Raises RequestError for an id outside the vocabulary."""
        self.job_context.check_ids(token_ids, "tokens")
        spelling, tokenizer = self.job_context.spelling, self.tokenizer
        return [Piece(i, [*spelling.token_bytes(i)], tokenizer.entry(i)) for i in token_ids]

    def _advance(self, sequence: Sequence, result: Result) -> list[Event]:
        entry = self._jobs[sequence.job_id]
        if not _finite(result):
            return self.cancel(entry.job.id, "error", "the model gave a result that is not a finite number")
        self.clock.note_result(entry.times, sequence)
        # `num_top` is the batch's; a job gets its own number of alternatives.
        try:
            step = entry.job.advance(entry.view, sequence, _trimmed(result, entry.job.num_top))
        except RequestError as error:  # the fills made the text too long
            self.cancel(entry.job.id)
            return [Failed(entry.job.id, "invalid", error.message, error.param, error.code)]
        for ended in step.finished:
            self.scheduler.remove(ended)
            del entry.view.sequences[ended]
        self._start(entry, step.started)
        if step.events and isinstance(step.events[-1], Done):
            self._end(entry.job.id)
            return [entry.times.stamp(event) for event in step.events]
        return step.events

    def _end(self, job_id: str) -> None:
        del self._jobs[job_id]
        self._deadlines.forget(job_id)
        self.adapters.leave(job_id)

    def _start(self, entry: "_Entry", sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.job_id = entry.job.id
            entry.view.sequences[sequence] = None
            self.scheduler.add(sequence)


@dataclass(slots=True, eq=False)
class _Entry:
    """A job and the engine's data about it."""

    job: Job
    view: SchedulerView
    times: JobTimes


def _finite(result: Result) -> bool:
    if isinstance(result, list):
        return all(math.isfinite(item.logprob) for item in result if item is not None)
    first = result[..., 0]  # the runner makes NaN of all of a row that has one
    return not (np.isnan(first).any() if first.ndim else math.isnan(first))


def _trimmed(result: Result, num_top: int) -> Result:
    if not isinstance(result, list):
        return result
    return [None if item is None else replace(item, top=item.top[:num_top]) for item in result]


def _check_token_ids(request: Request, job_context: JobContext) -> None:
    if not isinstance(request, Fill):
        return
    job_context.check_ids(list(request.sampling.logit_bias), "logit_bias")
    job_context.check_ids(request.sampling.stop_token_ids, "stop_token_ids")
    job_context.check_ids(request.logprob_token_ids, "logprob_token_ids")
