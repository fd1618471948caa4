"""The engine: requests in, events out, one iteration at a time. Synchronous and single-threaded."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import groupby

import numpy as np

from engine.batch import Batch, Result
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.constraint import Patterns
from engine.events import AdapterCard, Done, Event, Failed, ModelCard, StepStats
from engine.filling import FillJob
from engine.job import Job, Work, World
from engine.loaded import Loaded, load_runner, prepare
from engine.masked import MaskedFillJob, MaskedScoreJob, NextSentenceJob
from engine.ranks import Channel, Leading, LeadingAdapters
from engine.registry import Entry, Registry
from engine.requests import Fill, Request, RequestError
from engine.runner import LEAST_LOGIT_ROWS, Runner
from engine.scheduler import Lodging, Scheduler
from engine.scoring import ScoreJob
from engine.sequence import Prefix, Sequence
from engine.turns import Turns
from model.adapters.adapter import Adapter
from model.checkpoint import Checkpoint
from model.config import CheckpointError
from model.layout import parse
from model.spelling import Spelling
from model.tokenizer import Tokenizer
from quant import cpu
from quant.memory import is_out_of_memory

# How long a batch request is passed over before it is ranked as if it were interactive.
BATCH_PATIENCE_S = 5.0
# What its ranks are raised by until then: more rows than are ever computed, and exact in a float.
PASSED_OVER = 1 << 50


class Engine:
    """A loaded model, its cache and the jobs under way."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint | None = None,
        loaded: Loaded | None = None,
        channel: Channel | None = None,
    ) -> None:
        """Loads what it is not given; `channel` leads to the other ranks of a divided model."""
        if loaded is None:
            prepare(config)
            loaded = load_runner(config, checkpoint)
        model, family = loaded.checkpoint.model, loaded.checkpoint.family
        a, longest = model.architecture, loaded.longest
        self.tokenizer = loaded.checkpoint.tokenizer
        self.scheduler = Scheduler(BlockPool(loaded.num_blocks, config.block_size), config.max_batch_tokens, a.causal)
        self.runner = loaded.runner if channel is None else Leading(loaded.runner, channel)
        self.card = ModelCard(
            name=loaded.checkpoint.name,
            family=family.name,
            quant=loaded.checkpoint.quant,
            tp=1 if channel is None else channel.ranks.size,
            masks=list(family.layout.masks(self.tokenizer)),
            max_context=longest,
            max_positions=longest + 1,
            max_span=longest,
            vocab_size=self.tokenizer.size,
            strategies=list(family.strategies),
            causal=a.causal,
            masked=a.head == "masked_lm",
            next_sentence=a.next_sentence,
            special_tokens=_special_tokens(self.tokenizer),
            num_parameters=loaded.checkpoint.num_parameters,
            kernels="triton" if loaded.device == "cuda" else cpu.describe(),
            created=int(time.time()),
            kv_cache_type=loaded.runner.cache.kind,
            kv_cache_tokens=loaded.num_blocks * config.block_size,
        )
        bar = np.full(a.vocab_size, -np.inf, np.float32)
        bar[[*self.tokenizer.text_ids(), *self.tokenizer.ends]] = 0
        patterns = Patterns(self.tokenizer, a.vocab_size)
        self.world = World(self.tokenizer, family.layout, self.card, bar, Spelling(self.tokenizer), patterns, Work())
        self._jobs: dict[str, _Entry] = {}
        self._of: dict[Sequence, _Entry] = {}
        self._turns = Turns()
        self.last_stats: StepStats | None = None
        self._loaded = loaded
        self._adapters = loaded.runner.adapters if channel is None else LeadingAdapters(loaded.runner.adapters, channel)
        self.registry = Registry(config.max_adapters)
        self._worlds: dict[int, World] = {}
        self._taken: dict[str, Entry] = {}  # by requests that are prepared
        for name, _ in config.adapters:
            number = self.registry.begin(name)
            self._enter(number, name, loaded.runner.adapters.held.get(number), pinned=True)
        self._told = self._counters()
        self._deadlines: list[tuple[float, str]] = []  # a heap
        self._passed_over: deque[str] = deque()  # batch requests, as they came

    def prepare(self, request: Request, request_id: str) -> Job:
        """Checks and lays out a request; may run in another thread. Raises RequestError.

        Its adapter, if it names one, is in use until the job ends.
        """
        if request.adapter is None:
            return self._job(request, request_id, self.world)
        entry = self.registry.take(request.adapter)
        try:
            job = self._job(request, request_id, self._worlds[entry.number])
        except BaseException:
            self.registry.give_back(entry)
            raise
        self._taken[request_id] = entry
        return job

    def _job(self, request: Request, request_id: str, world: World) -> Job:
        _check_bias(request, world)
        masked = self.card.masked
        if isinstance(request, Fill):
            return (MaskedFillJob if masked else FillJob)(request_id, request, world)
        if request.sentence_a is not None:
            return NextSentenceJob(request_id, request, world)
        return (MaskedScoreJob if masked else ScoreJob)(request_id, request, world)

    def discard(self, request_id: str) -> None:
        """Forgets a job that was prepared and is not to begin."""
        entry = self._taken.pop(request_id, None)
        if entry is not None:
            self.registry.give_back(entry)

    def compiles(self, request: Request) -> bool:
        """Whether to prepare a request takes the time to compile a regular expression."""
        texts = request.regex if isinstance(request, Fill) else ()
        return not self.world.patterns.knows(text for text in texts if text is not None)

    def add(self, job: Job, request: Request) -> None:
        """Starts a prepared job."""
        now = time.monotonic()
        timeout = request.timeout_s
        if self.idle:
            self._turns.rest()
        flow = request.tenant, request.priority
        batch = request.priority == "batch"
        adapter = self._taken.pop(job.id, None)
        lodging = Lodging(self.scheduler, request.tenant, 0 if adapter is None else adapter.number)
        deadline = None if timeout is None else now + timeout
        entry = _Entry(job, lodging, now, deadline, adapter)
        self._jobs[job.id] = entry
        if deadline is not None:
            self._watch(deadline, job.id)
        if batch:
            self._passed_over.append(job.id)
        # What the job starts later, such as its next blank, keeps its place; only what waits now takes turns.
        sequences = job.start(lodging, self._turns.next(flow))
        drawn = max(request.max_tokens) if isinstance(request, Fill) else 0
        for sequence in sequences:
            rank = self._turns.take(flow, len(sequence.context) + sequence.pending + drawn)
            sequence.rank = rank + PASSED_OVER * batch
        cached = {id(s.context): len(s.context) for s in sequences if s.context.blocks is not None}
        job.counts.cached_tokens = sum(cached.values())
        self._take(entry, sequences)

    def cancel(
        self, request_id: str, outcome: str = "cancelled", message: str = "cancelled by the client"
    ) -> list[Event]:
        """Ends a job and frees what it holds; no events if it is over already."""
        entry = self._jobs.pop(request_id, None)
        if entry is None:
            return []
        for sequence in entry.sequences:
            self.scheduler.remove(sequence)
            self._of.pop(sequence, None)
        entry.job.stop()
        self._leave(entry)
        return [Failed(request_id, outcome, message, code=outcome)]  # type: ignore[arg-type]

    @property
    def idle(self) -> bool:
        return not self._jobs

    def step(self) -> list[Event]:
        """One iteration: ends what is over its deadline, runs one batch, and tells what came of it."""
        began = time.monotonic()
        events = self._end_overdue(began)
        self._raise_passed_over(began)
        batch, chosen = self.scheduler.schedule()
        bad = 0
        times = _Times()
        if chosen:
            for sequence in chosen:
                self._turns.served(int(sequence.rank) % PASSED_OVER)
                entry = self._of[sequence]
                if entry.started is None:
                    entry.started = began
                    times.queued.append(began - entry.arrived)
            num_top = max((self._of[s].job.num_top for s in chosen), default=0)
            try:
                results, bad = self.runner.run(batch, num_top)
            except (MemoryError, RuntimeError) as error:
                # Of several ranks the others would wait for this one: there all are started again.
                if isinstance(self.runner, Leading) or not is_out_of_memory(error):
                    raise
                events += self._shed(self.runner, batch, chosen)
                chosen, results = [], []
            for sequence, result in zip(chosen, results, strict=True):
                if sequence.prompt_tokens:
                    self.world.work.prompt_tokens += sequence.prompt_tokens
                    sequence.prompt_tokens = 0
                if sequence in self._of:
                    events += self._advance(sequence, result, times)
        running = len({id(self._of[s]) for s in self.scheduler.running})
        self.last_stats = replace(
            self.idle_stats(),
            seconds=time.monotonic() - began,
            rows=batch.num_rows,
            running=running,
            waiting=len(self._jobs) - running,
            nonfinite_rows=bad,
            queue_seconds=times.queued,
            first_token_seconds=times.first,
            token_seconds=times.between,
        )
        return events

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
            kv_cache_usage=self.scheduler.usage(),
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
        return *self.scheduler.counts(), *self.world.work.counts()

    def _watch(self, deadline: float, job_id: str) -> None:
        if len(self._deadlines) > 2 * len(self._jobs) + 64:  # most are of jobs that have ended
            self._deadlines = [due for due in self._deadlines if due[1] in self._jobs]
            heapify(self._deadlines)
        heappush(self._deadlines, (deadline, job_id))

    def _end_overdue(self, now: float) -> list[Event]:
        events: list[Event] = []
        while self._deadlines and now > self._deadlines[0][0]:
            deadline, job_id = heappop(self._deadlines)
            if job_id in self._jobs and self._jobs[job_id].deadline == deadline:
                events += self.cancel(job_id, "deadline", "the request's deadline has passed")
        return events

    def _raise_passed_over(self, now: float) -> None:
        """Ranks batch requests that have been passed over for long as if they were interactive."""
        while self._passed_over:
            entry = self._jobs.get(self._passed_over[0])
            if entry is not None and now - entry.arrived <= BATCH_PATIENCE_S:
                break
            self._passed_over.popleft()
            for sequence in () if entry is None else entry.sequences:
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
            job_id, held = self._of[sequence].job.id, sequence.held
            encoded = 0 if (job_id, held) in asked else contexts.get(held, 0)
            asked.add((job_id, held))
            rows[job_id] = rows.get(job_id, 0) + len(part.token_ids) + encoded
        self.scheduler.recall(chosen)
        runner.logit_rows = max(runner.logit_rows // 2, LEAST_LOGIT_ROWS)
        message = "memory has run out in a step that had most of its rows from this request"
        ended = self.cancel(max(rows, key=lambda job_id: rows[job_id]), "overloaded", message)
        return [replace(event, code="insufficient_memory") for event in ended if isinstance(event, Failed)]

    def run(self, request: Request, request_id: str = "local") -> list[Event]:
        """One request from start to end, for the command line and for tests."""
        self.add(self.prepare(request, request_id), request)
        events: list[Event] = []
        while request_id in self._jobs:
            events += self.step()
        return events

    def begin_loading(self, name: str, path: str, done: Callable[[int], object] = lambda number: None) -> int:
        """Begins to read an adapter's folder, in a thread that calls `done` with the adapter's number; then
        `finish_loading` is due. Raises RequestError for a name that is taken."""
        number = self.registry.begin(name)
        self._adapters.read(number, path, lambda: done(number))
        return number

    def finish_loading(self, number: int, name: str) -> AdapterCard:
        """Lets requests go by an adapter that has been read. Raises RequestError for one that cannot be used, or that
        there is no place for."""
        try:
            adapter = self._adapters.attach(number)
        except CheckpointError as error:
            self.registry.fail(number)
            raise RequestError(str(error), "path", "invalid_adapter") from None
        try:
            return self._enter(number, name, adapter).card
        except (CheckpointError, RequestError) as error:
            self.registry.fail(number)
            self._adapters.drop(number)
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"adapter {name}: {error}", "path", "invalid_adapter") from None

    def unload(self, name: str) -> None:
        """Forgets an adapter. Raises RequestError for one that is not there or in use."""
        self._forget(self.registry.remove(name).number)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; masks that the model has become their ids, everything else is text. With `special`
        every special token is read."""
        if special:
            return self.world.spelling.tokenize(text)
        ids: list[int] = []
        for part in parse(text):
            if isinstance(part, str):
                ids += self.tokenizer.encode(part)
            elif part[0] in self.tokenizer.masks:
                ids.append(self.tokenizer.masks[part[0]])
            else:
                ids += self.tokenizer.encode(part[0])
        return ids

    def detokenize(self, token_ids: list[int], special: bool = False) -> str:
        """The text of ids, masks by name, with `special` every special token by name. Raises RequestError for an id
        outside the vocabulary."""
        self.world.check_ids(token_ids, "tokens")
        if special:
            return self.world.spelling.detokenize(token_ids)
        names = {i: name for name, i in self.tokenizer.masks.items()}
        runs = groupby(token_ids, names.get)
        return "".join(name * len([*run]) if name else self.tokenizer.decode([*run]) for name, run in runs)

    def _enter(self, number: int, name: str, adapter: Adapter, pinned: bool = False) -> Entry:
        prefix = adapter.prefix
        length, shift = (0, 0) if prefix is None else (len(prefix), prefix.shift)
        positions = self._loaded.checkpoint.model.architecture.max_sequence_length - shift
        longest = min(self._loaded.longest_behind(length), positions)
        card = AdapterCard(name, adapter.kind, int(time.time()), length)
        entry = Entry(number, card, pinned)
        gone = self.registry.enter(entry)
        if gone is not None:
            self._forget(gone.number)
        limits = replace(self.card, max_context=longest, max_span=longest, max_positions=longest + 1)
        self._worlds[number] = replace(self.world, card=limits) if length else self.world
        if length:
            self.scheduler.add_prefix(Prefix(number, length, shift))
        return entry

    def _forget(self, number: int) -> None:
        self.scheduler.forget(number)
        del self._worlds[number]
        self._adapters.drop(number)

    def _leave(self, entry: "_Entry") -> None:
        if entry.adapter is not None:
            self.registry.give_back(entry.adapter)

    def _advance(self, sequence: Sequence, result: Result, times: "_Times") -> list[Event]:
        entry = self._of[sequence]
        if not _finite(result):
            return self.cancel(entry.job.id, "error", "the model gave a result that is not a finite number")
        now = time.monotonic()
        if entry.answered is None:
            entry.answered = now
            times.first.append(now - entry.arrived)
        if sequence.drawn_at is not None:
            times.between.append(now - sequence.drawn_at)
        if sequence.want == "token":
            sequence.drawn_at = now
        # `num_top` is the batch's; a job gets its own number of alternatives.
        try:
            new, events = entry.job.advance(entry.lodging, sequence, _trimmed(result, entry.job.num_top))
        except RequestError as error:  # a text that grew over the limit by its fills
            self.cancel(entry.job.id)
            return [Failed(entry.job.id, "invalid", error.message, error.param, error.code)]
        for ended in dict.fromkeys(s for s in (sequence, *new) if s.finished):
            self.scheduler.remove(ended)
            if ended in self._of:
                del self._of[ended], entry.sequences[ended]
        self._take(entry, [s for s in new if not s.finished])
        if events and isinstance(events[-1], Done):
            del self._jobs[entry.job.id]
            self._leave(entry)
            return [entry.timed(event) for event in events]
        return events

    def _take(self, entry: "_Entry", sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence not in self._of:
                self._of[sequence] = entry
                entry.sequences[sequence] = None
                self.scheduler.add(sequence)


@dataclass(slots=True, eq=False)
class _Entry:
    """A job and what the engine keeps of it; times are of the monotonic clock."""

    job: Job
    lodging: Lodging
    arrived: float
    deadline: float | None
    adapter: Entry | None = None
    sequences: dict[Sequence, None] = field(default_factory=dict)
    started: float | None = None
    answered: float | None = None

    def timed(self, event: Event) -> Event:
        """The last event with when the job began to run and when it had its first token."""
        if not isinstance(event, Done) or self.started is None or self.answered is None:
            return event
        return replace(event, queue_s=self.started - self.arrived, first_token_s=self.answered - self.arrived)


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds that one step gives to the histograms: arrival to first step, arrival to first token, between tokens."""

    queued: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def _finite(result: Result) -> bool:
    if isinstance(result, list):
        return all(math.isfinite(item.logprob) for item in result if item is not None)
    first = result[..., 0]  # the runner makes NaN of all of a row that has one
    return not (np.isnan(first).any() if first.ndim else math.isnan(first))


def _trimmed(result: Result, num_top: int) -> Result:
    if not isinstance(result, list):
        return result
    return [None if item is None else replace(item, top=item.top[:num_top]) for item in result]


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Names by what clients call the tokens: a text begins with the start of a span, and ends with its end."""
    roles = {"bos": ("sop",), "eos": ("eop", "eos", "sep"), "pad": ("pad", "eos"), "unk": ("unk",), "cls": ("cls",)}
    spelling = Spelling(tokenizer)
    found = {}
    if tokenizer.ends:
        found["eos"] = spelling.name(tokenizer.ends[0])
    for name, candidates in roles.items():
        role = next((r for r in candidates if r in tokenizer.special), None)
        if role is not None:
            found.setdefault(name, spelling.name(tokenizer.special[role]))
    return found


def _check_bias(request: Request, world: World) -> None:
    if not isinstance(request, Fill):
        return
    world.check_ids(list(request.sampling.logit_bias), "logit_bias")
