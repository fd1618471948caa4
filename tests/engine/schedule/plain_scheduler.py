"""The scheduler in plain lists, which counts all it needs to know anew each time: what the engine's is compared with.

The engine's kept its lists like this once, and took time by the square of tenants and of what waits. Two choices are
fixed here that were left to chance: of tenants that hold as much the last by name makes way, where the order of a set
decided; and a context is used when it is asked for and when it is encoded, where it also counted how often room had
been made while it waited.
"""

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterable

from engine.schedule.batch import Batch, PrefixCopy, Rows
from engine.schedule.blocks import BlockPool
from engine.schedule.sequence import Context, Prefix, Sequence
from model.attention import Span, part_b_start


class PlainScheduler:
    """The same as `engine.schedule.scheduler.Scheduler`, step by step."""

    def __init__(self, pool: BlockPool, max_batch_tokens: int, causal: bool = False) -> None:
        self.pool = pool
        self.causal = causal
        self.max_batch_tokens = max_batch_tokens
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        # By tenant, adapter and tokens, least recently used first.
        self._contexts: OrderedDict[tuple[str, int, tuple[int, ...]], Context] = OrderedDict()
        self._prefixes: dict[int, Prefix] = {}
        self._copies: dict[int, int] = {}  # blocks to be written by the next step, each from which
        self._prefix_copies: list[PrefixCopy] = []
        self.context_queries = self.context_hits = self.preemptions = 0

    def context(self, token_ids: tuple[int, ...], tenant: str = "", adapter: int = 0) -> Context:
        """The tenant's context of these tokens: the cached one if there is one. That of none is nobody's hit."""
        context = Context(token_ids, None if token_ids else (), tenant, adapter, self._prefixes.get(adapter))
        if not token_ids:
            return context
        self.context_queries += 1
        found = self._contexts.setdefault(context.key, context)
        if found is not context:
            self.context_hits += found.blocks is not None
            self._contexts.move_to_end(context.key)
        return found

    def add_prefix(self, prefix: Prefix) -> None:
        """From now on contexts of this adapter stand behind its prefix."""
        self._prefixes[prefix.adapter] = prefix

    def forget(self, adapter: int) -> None:
        """Drops what is cached of an adapter that nothing in the scheduler goes by."""
        for context in [c for c in self._contexts.values() if c.adapter == adapter]:
            self._drop(context)
        prefix = self._prefixes.pop(adapter, None)
        if prefix is not None:
            self._evict(prefix)

    def counts(self) -> tuple[int, int, int]:
        """Contexts looked up and found, and sequences preempted, ever."""
        return self.context_queries, self.context_hits, self.preemptions

    def fork(self, sequence: Sequence) -> Sequence:
        """Another sequence with the same rows, which runs at once if the first one does.

        It shares the blocks that are full; one that both would write to is copied before the next step. Where there is
        no block for that it is to be added, and computed again.
        """
        fork = Sequence(
            sequence.context,
            sequence.output,
            sequence.rank,
            list(sequence.token_ids),
            list(sequence.positions),
            list(sequence.block_positions),
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
        self.running.append(fork)
        return fork

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind all of its rank; a fork that runs does so already."""
        if sequence.blocks:
            return
        insort(self.waiting, sequence, key=lambda s: s.rank)

    def rerank(self, sequence: Sequence, rank: float) -> None:
        """Changes a sequence's rank, wherever it is."""
        sequence.rank = rank
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            self.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drops a finished or cancelled sequence, wherever it is."""
        sequence.status = "finished"
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._let_go(sequence)

    def schedule(self) -> tuple[Batch, list[Sequence]]:
        """The next batch, and the sequences whose rows end it, in the batch's order."""
        chosen: list[Sequence] = []
        budget = self.max_batch_tokens
        for sequence in list(self.running):
            if sequence not in self.running:
                continue  # preempted below
            rows = sequence.pending
            if not rows or (rows > budget and chosen):
                continue
            while not self._extend(sequence):
                victim = self._victim(sequence)
                self._preempt(victim)
                if victim in chosen:
                    chosen.remove(victim)
                if victim is sequence:
                    break
            else:
                chosen.append(sequence)
                budget -= rows
        encode = self._admit_waiting(chosen, budget)
        while not chosen and self.running and not all(s.is_idle for s in self.waiting):
            # All that run wait for results of those that have no room.
            self._preempt(self.running[-1])
            encode = self._admit_waiting(chosen, budget)
        rows_of = [self._context_rows(c) for c in encode] + [self._sequence_rows(s) for s in chosen]
        for sequence in chosen:
            sequence.computed = sequence.answered = len(sequence.token_ids)
        copies: tuple[tuple[int, int], ...] = ()
        if rows_of:  # nothing is run without rows
            copies, self._copies = tuple((source, target) for target, source in self._copies.items()), {}
        prefixes, self._prefix_copies = self._prefix_copies, []
        return Batch(tuple(rows_of), copies, tuple(prefixes)), chosen

    def recall(self, chosen: Iterable[Sequence]) -> None:
        """Takes back a step that was scheduled and not computed: all that runs waits, and nothing stays cached."""
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
        """The share of blocks that running sequences hold."""
        held = {b for s in self.running for b in (*s.context_blocks, *s.blocks)}
        return len(held) / self.pool.num_blocks

    def check(self) -> None:
        """Asserts that every block is held by just those who should hold it."""
        self.pool.check()
        expected = [0] * self.pool.num_blocks
        for context in self._contexts.values():
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

    def _admit_waiting(self, chosen: list[Sequence], budget: int) -> list[Context]:
        """Starts waiting sequences, by rank, and adds them to the chosen; the contexts to encode for them.

        One that does not fit holds up all behind it, or it would wait for ever; except those of a tenant that would
        hold no more than its own with what they ask for.
        """
        encode: list[Context] = []
        old = list(self.running)
        held_up: set[str] = set()
        for sequence in list(self.waiting):
            tenant = sequence.context.tenant
            if tenant in held_up or sequence.is_idle:
                continue
            # While it waited its context may have been dropped, and asked for anew by another request.
            if sequence.context.token_ids:
                sequence.context = self._contexts.setdefault(sequence.context.key, sequence.context)
            new = sequence.context.blocks is None
            rows = sequence.pending + (len(sequence.context) if new else 0)
            over = rows - budget if chosen or encode else 0
            fits = self._is_modest(sequence, held_up)
            if fits and (over > 0 or not self._make_room(self._needed(sequence), keep=sequence.context)):
                victims = self._victims(sequence, old, over)
                fits = bool(victims)
                for victim in victims:
                    old.remove(victim)
                    if victim in chosen:
                        chosen.remove(victim)
                        budget += victim.pending
                    # It goes on behind the one that it made way for.
                    self._preempt(victim, max(victim.rank, sequence.rank))
            if not fits:
                held_up.add(tenant)
                if all(s.context.tenant == tenant for s in self.waiting):
                    break
                continue
            self._start(sequence)
            if new and len(sequence.context):
                encode.append(sequence.context)
            chosen.append(sequence)
            budget -= rows
        return encode

    def _start(self, sequence: Sequence) -> None:
        context = sequence.context
        before = self._opened(context.prefix)
        if context.blocks is None:
            self.pool.share(before)
            context.blocks = (*before, *self._own(context.prefix, len(context)))
            self._contexts.move_to_end(context.key)
        sequence.context_blocks = context.blocks if len(context) else before
        self.pool.share(sequence.context_blocks)
        sequence.blocks = [*self._own(None if len(context) else context.prefix, len(sequence.token_ids))]
        self.waiting.remove(sequence)
        self.running.append(sequence)

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
        """Blocks of tokens behind a prefix, which begin with what is over of it."""
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
        return True

    def _make_room(self, blocks: int, keep: Context | None) -> bool:
        """Drops unused contexts, least recently used first, then unused prefixes, until so many blocks are free."""
        for context in list(self._contexts.values()):
            if self.pool.num_free >= blocks:
                break
            # Its last block is its own, others may be its prefix's.
            if context is not keep and not (context.blocks and self.pool.holders(context.blocks[-1]) > 1):
                self._drop(context)
        for prefix in self._prefixes.values():
            if self.pool.num_free >= blocks:
                break
            kept = keep is not None and keep.prefix is prefix
            if not kept and prefix.blocks and self.pool.holders(prefix.blocks[0]) == 1:
                self._evict(prefix)
        return self.pool.num_free >= blocks

    def _drop(self, context: Context) -> None:
        del self._contexts[context.key]
        if context.blocks is not None:
            self.pool.release(context.blocks)
            context.blocks = None

    def _evict(self, prefix: Prefix) -> None:
        self.pool.release(prefix.blocks or ())
        prefix.blocks = None

    def _victim(self, sequence: Sequence) -> Sequence:
        """Whom to preempt for a running sequence's next block: one of another tenant's surplus; else its own tenant's
        youngest, maybe itself; the youngest of all if its tenant runs nothing else. The oldest of all is never
        preempted by this while another runs, so something always ends."""
        tenant = sequence.context.tenant
        surplus = self._surplus(sequence, 1, self.running, [])
        if surplus is not None:
            return surplus
        own = [s for s in self.running if s.context.tenant == tenant]
        return own[-1] if len(own) > 1 else self.running[-1]

    def _victims(self, sequence: Sequence, candidates: list[Sequence], rows: int) -> list[Sequence]:
        """Whom to preempt, of other tenants' surplus, so that a waiting sequence has the blocks and so many more rows
        as it needs. Empty if that does not suffice."""
        needed = self._needed(sequence)
        blocks = needed - self.pool.num_free
        victims: list[Sequence] = []
        while blocks > 0 or rows > 0:
            victim = self._surplus(sequence, needed, candidates, victims)
            if victim is None:
                return []
            victims.append(victim)
            blocks -= sum(self.pool.holders(block) == 1 for block in victim.blocks)  # others are a fork's too
            rows -= victim.pending
        return victims

    def _surplus(
        self, sequence: Sequence, needed: int, candidates: list[Sequence], but: list[Sequence]
    ) -> Sequence | None:
        """The youngest candidate of the tenant that holds most, if without it and those that go already that tenant
        holds no less than the sequence's will with what it needs. So no two tenants preempt each other in turns."""
        tenant = sequence.context.tenant
        if all(s.context.tenant == tenant for s in candidates):
            return None
        held = self._holdings(but)
        held[tenant] += needed
        richest = max(held, key=lambda name: (held[name], name))
        left = (s for s in reversed(candidates) if s.context.tenant == richest != tenant and s not in but)
        victim = next(left, None)
        if victim is None or self._holdings([*but, victim])[richest] < held[tenant]:
            return None
        return victim

    def _is_modest(self, sequence: Sequence, others: set[str]) -> bool:
        """Whether a waiting sequence's tenant would then hold no more blocks than any of the others."""
        if not others:
            return True
        held = self._holdings()
        return held[sequence.context.tenant] + self._needed(sequence) <= min(held[other] for other in others)

    def _holdings(self, but: Iterable[Sequence] = ()) -> Counter[str]:
        """How many blocks each tenant's running sequences hold, but for some."""
        gone = set(but)
        staying = [s for s in self.running if s not in gone]
        held: Counter[str] = Counter()
        for tenant, blocks in {(s.context.tenant, s.context_blocks) for s in staying}:
            held[tenant] += len(blocks)
        for sequence in staying:
            held[sequence.context.tenant] += len(sequence.blocks)
        return held

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

    def _preempt(self, sequence: Sequence, rank: float | None = None) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._let_go(sequence)
        sequence.rank = sequence.rank if rank is None else rank
        self.add(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        self.pool.release(sequence.context_blocks)
        self.pool.release(sequence.blocks)
        sequence.context_blocks, sequence.blocks, sequence.computed = (), [], 0

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
