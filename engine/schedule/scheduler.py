"""The scheduler: it chooses the rows of the next iteration. Integers only, no tensors.

A context is encoded as a whole (a bidirectional part cannot be cut), once for all sequences that share it, and stays
cached until its blocks are needed. A sequence that runs out of blocks is preempted: it releases all its blocks and is
computed again later.

Tenants share no context, since a hit would reveal the texts of another tenant. If blocks or rows run out, a tenant that
holds many makes room for one that holds few.
"""

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from engine.schedule.batch import Batch, PrefixCopy, Rows
from engine.schedule.blocks import BlockPool
from engine.schedule.context_cache import ContextCache
from engine.schedule.holdings import Holdings
from engine.schedule.sequence import Context, Prefix, Sequence
from engine.schedule.waiting import Waiting
from model.attention import Span, part_b_start


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """The scheduler as one job sees it: contexts of its tenant and adapter.

    `sequences` are the job's unfinished sequences; forks are among them at once.
    """

    scheduler: "Scheduler"
    tenant: str
    adapter: int = 0
    sequences: dict[Sequence, None] = field(default_factory=dict)

    def context(self, token_ids: tuple[int, ...]) -> Context:
        """Like `Scheduler.context`, for the job's tenant and adapter."""
        return self.scheduler.context(token_ids, self.tenant, self.adapter)

    def fork(self, sequence: Sequence) -> Sequence:
        """Like `Scheduler.fork`."""
        fork = self.scheduler.fork(sequence)
        self.sequences[fork] = None
        return fork


class Scheduler:
    """Runs the running sequences, oldest first, then admits waiting ones by rank, within a budget of rows.

    An item larger than the budget runs alone. `causal` contexts are prompts of a causal model. The time of a step grows
    with the running sequences, not with waiting ones or tenants.
    """

    def __init__(self, pool: BlockPool, max_batch_tokens: int, causal: bool = False) -> None:
        self.pool = pool
        self.causal = causal
        self.max_batch_tokens = max_batch_tokens
        self.running: dict[Sequence, None] = {}  # the oldest first
        self.waiting = Waiting()
        self.contexts = ContextCache(pool)
        self.holdings = Holdings()
        self._running_of: dict[str, dict[Sequence, None]] = {}  # by tenant
        self._prefixes: dict[int, Prefix] = {}
        self._copies: dict[int, int] = {}  # blocks to be written by the next step, each from which
        self._prefix_copies: list[PrefixCopy] = []
        self.context_queries = self.context_hits = self.preemptions = 0

    def context(self, token_ids: tuple[int, ...], tenant: str = "", adapter: int = 0) -> Context:
        """The tenant's context of these tokens, cached or new. An empty one never counts as a hit."""
        context = Context(token_ids, None if token_ids else (), tenant, adapter, self._prefixes.get(adapter))
        if not token_ids:
            return context
        found = self.contexts.same(context)
        self.context_queries += 1
        self.context_hits += found.blocks is not None
        return found

    def add_prefix(self, prefix: Prefix) -> None:
        """Puts new contexts of this adapter behind its prefix."""
        self._prefixes[prefix.adapter] = prefix

    def forget(self, adapter: int) -> None:
        """Drops the cached contexts of an adapter that no sequence uses."""
        for context in [c for c in self.contexts.unused if c.adapter == adapter]:
            self.contexts.drop(context)
        prefix = self._prefixes.pop(adapter, None)
        if prefix is not None:
            self._evict(prefix)

    def counts(self) -> tuple[int, int, int]:
        """Totals: contexts looked up, contexts found in the cache, and preempted sequences."""
        return self.context_queries, self.context_hits, self.preemptions

    def fork(self, sequence: Sequence) -> Sequence:
        """Another sequence with the same rows, which runs at once if the first one does.

        It shares full blocks. A block that both would write to is copied before the next step. If there is no free
        block, the fork must be added, and its rows are computed again.
        """
        fork = Sequence(
            sequence.context,
            sequence.output,
            sequence.rank,
            list(sequence.token_ids),
            list(sequence.positions),
            list(sequence.block_positions),
            owner=sequence.owner,
            job_id=sequence.job_id,
        )
        fork.answered = sequence.answered
        full, begun = divmod(sequence.computed, self.pool.block_size)
        if not sequence.computed or (begun and not self._make_room(1, keep=sequence.context)):
            return fork
        fork.computed, fork.context_blocks = sequence.computed, sequence.context_blocks
        fork.blocks = sequence.blocks[:full]
        self.pool.share(fork.context_blocks)
        self.pool.share(fork.blocks)
        if begun:
            (block,) = self._allocate(begun)
            self._copies[block] = self._copies.get(sequence.blocks[full], sequence.blocks[full])
            fork.blocks.append(block)
        self._run(fork)
        return fork

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind all of its rank. Does nothing for a fork that runs already."""
        if not sequence.blocks:
            self._wait(sequence)

    def rerank(self, sequence: Sequence, rank: float) -> None:
        """Changes a sequence's rank, running or waiting."""
        waits = sequence.status == "waiting"
        if waits:
            self.waiting.remove(sequence)
        sequence.rank = rank
        if waits:
            self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drops a finished or cancelled sequence, running or waiting."""
        if sequence.status == "running":
            self._stop(sequence)
        elif sequence.status == "waiting":
            self.waiting.remove(sequence)
        sequence.status = "finished"

    def schedule(self) -> tuple[Batch, list[Sequence]]:
        """The next batch, and the sequences at the end of its rows, in the batch's order."""
        chosen: dict[Sequence, None] = {}
        budget = self.max_batch_tokens
        for sequence in list(self.running):
            if sequence.status != "running":
                continue  # it was preempted below
            rows = sequence.pending
            if not rows or (rows > budget and chosen):
                continue
            while not self._extend(sequence):
                victim = self._victim(sequence)
                self._preempt(victim)
                chosen.pop(victim, None)
                if victim is sequence:
                    break
            else:
                chosen[sequence] = None
                budget -= rows
        encode = self._admit_waiting(chosen, budget)
        while not chosen and self.running and not all(s.is_idle for s in self.waiting):
            # All running sequences wait for results of waiting ones.
            self._preempt(next(reversed(self.running)))
            encode = self._admit_waiting(chosen, budget)
        rows_of = [self._context_rows(c) for c in encode] + [self._sequence_rows(s) for s in chosen]
        for sequence in chosen:
            sequence.computed = sequence.answered = len(sequence.token_ids)
        copies: tuple[tuple[int, int], ...] = ()
        if rows_of:  # a batch without rows does not run
            copies, self._copies = tuple((source, target) for target, source in self._copies.items()), {}
        prefixes, self._prefix_copies = self._prefix_copies, []
        return Batch(tuple(rows_of), copies, tuple(prefixes)), list(chosen)

    def recall(self, chosen: Iterable[Sequence]) -> None:
        """Takes back a step that was not computed: all sequences wait again, and nothing stays cached."""
        for sequence in chosen:
            sequence.answered = -1
        for sequence in list(self.running):
            self._preempt(sequence)
        self._copies, self._prefix_copies = {}, []
        self.clear_contexts()

    def clear_contexts(self) -> None:
        """Drops every cached context that no sequence holds."""
        self._make_room(self.pool.num_blocks, keep=None)

    def usage(self) -> float:
        """Share of the blocks that running sequences hold, 0 to 1."""
        idle = self.contexts.unused_blocks
        idle += sum(len(p.blocks or ()) for p in self._prefixes.values() if not p.running)
        return (self.pool.num_blocks - self.pool.num_free - idle) / self.pool.num_blocks

    def check(self) -> None:
        """Asserts that exactly the right sequences hold every block, and that all counts are right."""
        self.pool.check()
        self.contexts.check()
        self.holdings.check(self.running)
        expected = [0] * self.pool.num_blocks
        for context in self.contexts.cached:
            for block in context.blocks or ():
                expected[block] += 1
        for prefix in self._prefixes.values():
            for block in prefix.blocks or ():
                expected[block] += 1
        for sequence in self.running:
            for block in (*sequence.context_blocks, *sequence.blocks):
                expected[block] += 1
        assert expected == [self.pool.holders(b) for b in range(self.pool.num_blocks)]
        assert all(not s.blocks and not s.context_blocks for s in self.waiting)
        assert all(s.status == "running" for s in self.running)
        assert all(s.status == "waiting" for s in self.waiting)
        assert (
            self.usage()
            == len({b for s in self.running for b in (*s.context_blocks, *s.blocks)}) / self.pool.num_blocks
        )
        tenants = {s.context.tenant for s in self.running}
        of_each = {t: [s for s in self.running if s.context.tenant == t] for t in tenants}
        assert {t: list(own) for t, own in self._running_of.items()} == of_each

    def _admit_waiting(self, chosen: dict[Sequence, None], budget: int) -> list[Context]:
        """Starts waiting sequences by rank and adds them to `chosen`. Returns the contexts to encode for them.

        A sequence that does not fit blocks all later ones, since it would wait for ever otherwise. The exceptions are
        those of tenants that would then hold no more blocks than its tenant.
        """
        encode: list[Context] = []
        started: set[Sequence] = set()
        stopped: list[Sequence] = []
        held_up: set[str] = set()
        least = math.inf  # blocks that one of those holds
        for sequence in self.waiting.passing(held_up):
            if sequence.is_idle:
                continue
            context = sequence.context
            own = self.holdings.of(context.tenant)
            new = context.blocks is None
            rows = sequence.pending + (len(context) if new else 0)
            over = rows - budget if chosen or encode else 0
            needed = self._needed(sequence) if own < least else 1  # which is too much then
            fits = own + needed <= least
            if fits and (over > 0 or not self._make_room(needed, keep=context)):
                victims = self._victims(sequence, needed, over, started)
                fits = bool(victims)
                for victim in victims:
                    if victim in chosen:
                        del chosen[victim]
                        budget += victim.pending
                    self._stop(victim)
                    self.preemptions += 1
                    # It waits behind the sequence that it made room for.
                    victim.rank = max(victim.rank, sequence.rank)
                    stopped.append(victim)
                if victims:
                    least = min(map(self.holdings.of, held_up), default=math.inf)
            if not fits:
                held_up.add(context.tenant)
                least = min(least, own)
                if not least:
                    break  # every further sequence needs a block
                continue
            self._start(sequence)
            started.add(sequence)
            if new and len(context):
                encode.append(context)
            chosen[sequence] = None
            budget -= rows
        for victim in stopped:
            self._wait(victim)
        return encode

    def _start(self, sequence: Sequence) -> None:
        context = sequence.context
        before = self._opened(context.prefix)
        if context.blocks is None:
            self.pool.share(before)
            self.contexts.encode(context, (*before, *self._own(context.prefix, len(context))))
        if len(context):
            self.contexts.share(context)
        else:
            self.pool.share(before)
        sequence.context_blocks = context.blocks or before
        sequence.blocks = [*self._own(None if len(context) else context.prefix, len(sequence.token_ids))]
        self.waiting.remove(sequence)
        self._run(sequence)

    def _run(self, sequence: Sequence) -> None:
        """Marks a sequence as running, with its blocks."""
        sequence.status = "running"
        tenant, prefix = sequence.context.tenant, sequence.context.prefix
        self.running[sequence] = self._running_of.setdefault(tenant, {})[sequence] = None
        self.holdings.add(sequence)
        if prefix is not None:
            prefix.running += 1

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = "waiting"
        self.waiting.add(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """Takes a sequence from the running ones, and releases its blocks."""
        context, tenant = sequence.context, sequence.context.tenant
        del self.running[sequence], self._running_of[tenant][sequence]
        if not self._running_of[tenant]:
            del self._running_of[tenant]
        self.holdings.remove(sequence)
        if context.prefix is not None:
            context.prefix.running -= 1
        if len(context):
            self.contexts.release(context)
        else:
            self.pool.release(sequence.context_blocks)
        self.pool.release(sequence.blocks)
        sequence.context_blocks, sequence.blocks, sequence.computed = (), [], 0

    def _opened(self, prefix: Prefix | None) -> tuple[int, ...]:
        """The blocks that a prefix fills, in the cache from now on."""
        if prefix is None:
            return ()
        if prefix.blocks is None:
            prefix.blocks = self._allocate(prefix.length - self._over(prefix))
            if prefix.blocks:
                self._prefix_copies.append(PrefixCopy(prefix.adapter, 0, prefix.blocks))
        return prefix.blocks

    def _own(self, prefix: Prefix | None, num_tokens: int) -> tuple[int, ...]:
        """Blocks of a context's own tokens, the rest of its prefix included."""
        over = self._over(prefix)
        blocks = self._allocate(over + num_tokens)
        if prefix is not None and over:
            self._prefix_copies.append(PrefixCopy(prefix.adapter, prefix.length - over, blocks[:1]))
        return blocks

    def _over(self, prefix: Prefix | None) -> int:
        """Tokens of a prefix behind the last block that it fills."""
        return 0 if prefix is None else prefix.length % self.pool.block_size

    def _allocate(self, num_tokens: int) -> tuple[int, ...]:
        blocks = self.pool.allocate(self.pool.blocks_for(num_tokens))
        assert blocks is not None, "room was made"
        return tuple(blocks)

    def _extend(self, sequence: Sequence) -> bool:
        missing = self.pool.blocks_for(len(sequence.token_ids)) - len(sequence.blocks)
        if missing > 0:
            if not self._make_room(missing, keep=sequence.context):
                return False
            sequence.blocks += self.pool.allocate(missing) or []
            self.holdings.grow(sequence.context.tenant, missing)
        return True

    def _make_room(self, blocks: int, keep: Context | None) -> bool:
        """Drops unused contexts, least recently used first, then unused prefixes, until so many blocks are free."""
        while self.pool.num_free < blocks and (oldest := self.contexts.oldest(keep)) is not None:
            self.contexts.drop(oldest)
        for prefix in self._prefixes.values():
            if self.pool.num_free >= blocks:
                break
            kept = keep is not None and keep.prefix is prefix
            if not kept and prefix.blocks and self.pool.holders(prefix.blocks[0]) == 1:
                self._evict(prefix)
        return self.pool.num_free >= blocks

    def _evict(self, prefix: Prefix) -> None:
        self.pool.release(prefix.blocks or ())
        prefix.blocks = None

    def _victim(self, sequence: Sequence) -> Sequence:
        """Whom to preempt for a running sequence's next block: one of another tenant's surplus; else its own tenant's
        youngest, maybe itself; the youngest of all if its tenant runs nothing else. The oldest of all is never
        preempted by this while another runs, so something always ends."""
        surplus = self._surplus(sequence, 1, {}, ())
        if surplus is not None:
            return surplus
        own = self._running_of[sequence.context.tenant]
        return next(reversed(own if len(own) > 1 else self.running))

    def _victims(self, sequence: Sequence, needed: int, rows: int, started: Container[Sequence]) -> list[Sequence]:
        """Whom to preempt, of other tenants' surplus, so that a waiting sequence has the blocks that it needs and so
        many more rows; none that has just started. Empty if that does not suffice."""
        blocks = needed - self.pool.num_free
        victims: list[Sequence] = []
        left: dict[str, Iterator[Sequence]] = {}
        while blocks > 0 or rows > 0:
            victim = self._surplus(sequence, needed, left, started)
            if victim is None:
                break
            victims.append(victim)
            self.holdings.remove(victim)
            blocks -= sum(self.pool.holders(block) == 1 for block in victim.blocks)  # others are a fork's too
            rows -= victim.pending
        for victim in victims:  # they run on until it is known that they suffice
            self.holdings.add(victim)
        return victims if blocks <= 0 and rows <= 0 else []

    def _surplus(
        self, sequence: Sequence, needed: int, left: dict[str, Iterator[Sequence]], started: Container[Sequence]
    ) -> Sequence | None:
        """The youngest of the `left` sequences of the other tenant that holds most.

        None if without it that tenant would hold less than the sequence's tenant with the new blocks. So two tenants
        never preempt each other in turns.
        """
        tenant = sequence.context.tenant
        least = self.holdings.of(tenant) + needed
        richest = self.holdings.richest_but(tenant)
        if richest is None or self.holdings.of(richest) < least:
            return None
        youngest = (s for s in reversed(self._running_of[richest]) if s not in started)
        victim = next(left.setdefault(richest, youngest), None)
        return None if victim is None or self.holdings.without(victim) < least else victim

    def _needed(self, sequence: Sequence) -> int:
        """Blocks that a waiting sequence needs to run, with those of its context and its prefix if they are not in the
        cache."""
        context, pool = sequence.context, self.pool
        prefix, over = context.prefix, self._over(context.prefix)
        needed = pool.blocks_for(len(sequence.token_ids) + (0 if len(context) else over))
        if context.blocks is None:
            needed += pool.blocks_for(over + len(context))
        if prefix is not None and prefix.blocks is None:
            needed += pool.blocks_for(prefix.length - over)
        return needed

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self.preemptions += 1
        self._wait(sequence)

    def _context_rows(self, context: Context) -> Rows:
        # What is known of a prefix needs no kernel of its own: to all others it is the beginning of part A.
        length, start, shift = len(context), context.start, _shift(context)
        span = Span(length, start, start + length, context.blocks or (), self.causal)
        positions = tuple(range(shift, shift + length))
        return Rows(context.token_ids, positions, (0,) * length, span, adapter=context.adapter)

    def _sequence_rows(self, sequence: Sequence) -> Rows:
        done, context = sequence.computed, sequence.context
        visible = context.start + len(sequence.token_ids if sequence.whole else context)
        start = context.start if sequence.whole else part_b_start(visible, self.pool.block_size)
        span = Span(sequence.pending, start + done, visible, (*sequence.context_blocks, *sequence.blocks), self.causal)
        shift = _shift(context)
        return Rows(
            tuple(sequence.token_ids[done:]),
            tuple(position + shift for position in sequence.positions[done:]),
            tuple(sequence.block_positions[done:]),
            span,
            sequence.output,
            sequence.logit_rows,
            tuple(sequence.targets[done:]),
            context.adapter,
        )


def _shift(context: Context) -> int:
    return 0 if context.prefix is None else context.prefix.shift
