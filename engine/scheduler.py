"""The scheduler: which rows go into the next iteration. Integers only, no tensors.

Contexts are encoded whole (a bidirectional part cannot be cut), once for all the sequences that share them,
and stay in the cache until their blocks are needed. A sequence that runs out of blocks is preempted: it lets
go of everything and is computed again later.
"""

from bisect import insort
from collections import OrderedDict

from engine.batch import Batch, Rows
from engine.blocks import BlockPool
from engine.sequence import Context, Sequence
from model.attention import Span, part_b_start


class Scheduler:
    """Runs what is running, oldest first, then admits what waits, by rank, within a budget of rows.

    An item larger than the budget runs alone rather than never. `causal` contexts are prompts of a causal model.
    """

    def __init__(self, pool: BlockPool, max_batch_tokens: int, causal: bool = False) -> None:
        self.pool = pool
        self.causal = causal
        self.max_batch_tokens = max_batch_tokens
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._contexts: OrderedDict[tuple[int, ...], Context] = OrderedDict()  # least recently used first
        self.context_queries = self.context_hits = self.preemptions = 0

    def context(self, token_ids: tuple[int, ...]) -> Context:
        """The context of these tokens: the cached one if there is one. That of none is nobody's hit."""
        if not token_ids:
            return Context((), ())
        self.context_queries += 1
        found = self._contexts.get(token_ids)
        if found is None:
            found = self._contexts[token_ids] = Context(token_ids)
        else:
            self.context_hits += found.blocks is not None
            self._contexts.move_to_end(token_ids)
        return found

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind all of its rank."""
        insort(self.waiting, sequence, key=lambda s: s.rank)

    def remove(self, sequence: Sequence) -> None:
        """Drops a finished or cancelled sequence, wherever it is."""
        sequence.finished = True
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._let_go(sequence)

    def schedule(self) -> tuple[Batch, list[Sequence]]:
        """The next batch, and the sequences whose rows end it, in the batch's order."""
        encode: list[Context] = []
        chosen: list[Sequence] = []
        budget = self.max_batch_tokens
        for sequence in list(self.running):
            if sequence not in self.running:
                continue  # preempted below
            rows = sequence.pending
            if not rows or (rows > budget and chosen):
                continue
            while not self._extend(sequence):
                victim = self.running[-1]
                self._preempt(victim)
                if victim in chosen:
                    chosen.remove(victim)
                if victim is sequence:
                    break
            else:
                chosen.append(sequence)
                budget -= rows
        while self.waiting:
            sequence = self.waiting[0]
            # While it waited its context may have been dropped, and asked for anew by another request.
            sequence.context = self._contexts.setdefault(sequence.context.token_ids, sequence.context)
            new = sequence.context.blocks is None
            rows = sequence.pending + (len(sequence.context) if new else 0)
            if (rows > budget and (chosen or encode)) or not self._admit(sequence):
                break
            if new and len(sequence.context):
                encode.append(sequence.context)
            self.running.append(self.waiting.pop(0))
            chosen.append(sequence)
            budget -= rows
        rows_of = [self._context_rows(c) for c in encode] + [self._sequence_rows(s) for s in chosen]
        for sequence in chosen:
            sequence.computed = len(sequence.token_ids)
        return Batch(tuple(rows_of)), chosen

    def clear_contexts(self) -> None:
        """Drops every cached context that no sequence holds."""
        self._make_room(self.pool.num_blocks, keep=None)

    def usage(self) -> float:
        """The share of blocks that running sequences hold."""
        held = {b for s in self.running for b in (*s.held, *s.blocks)}
        return len(held) / self.pool.num_blocks

    def check(self) -> None:
        """Asserts that every block is held by just those who should hold it."""
        self.pool.check()
        expected = [0] * self.pool.num_blocks
        for context in self._contexts.values():
            for block in context.blocks or ():
                expected[block] += 1
        for sequence in self.running:
            for block in (*sequence.held, *sequence.blocks):
                expected[block] += 1
        assert expected == [self.pool.holders(b) for b in range(self.pool.num_blocks)]
        assert all(not s.blocks and not s.held for s in self.waiting)

    def _admit(self, sequence: Sequence) -> bool:
        context = sequence.context
        needed = self.pool.blocks_for(len(sequence.token_ids))
        encoding = 0 if context.blocks is not None else self.pool.blocks_for(len(context))
        if not self._make_room(needed + encoding, keep=context):
            return False
        if context.blocks is None:
            context.blocks = tuple(self.pool.allocate(encoding) or ())
        self.pool.share(context.blocks)
        sequence.held = context.blocks
        sequence.blocks = self.pool.allocate(needed) or []
        return True

    def _extend(self, sequence: Sequence) -> bool:
        missing = self.pool.blocks_for(len(sequence.token_ids)) - len(sequence.blocks)
        if missing > 0:
            if not self._make_room(missing, keep=sequence.context):
                return False
            sequence.blocks += self.pool.allocate(missing) or []
        return True

    def _make_room(self, blocks: int, keep: Context | None) -> bool:
        """Drops unused contexts, least recently used first, until so many blocks are free."""
        for key, context in list(self._contexts.items()):
            if self.pool.num_free >= blocks:
                break
            if context is keep or (context.blocks and self.pool.holders(context.blocks[0]) > 1):
                continue
            del self._contexts[key]
            if context.blocks is not None:
                self.pool.release(context.blocks)
                context.blocks = None
        return self.pool.num_free >= blocks

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._let_go(sequence)
        self.add(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        self.pool.release(sequence.held)
        self.pool.release(sequence.blocks)
        sequence.held, sequence.blocks, sequence.computed = (), [], 0

    def _context_rows(self, context: Context) -> Rows:
        length = len(context)
        span = Span(length, 0, length, context.blocks or (), self.causal)
        return Rows(context.token_ids, tuple(range(length)), (0,) * length, span)

    def _sequence_rows(self, sequence: Sequence) -> Rows:
        done = sequence.computed
        start = part_b_start(len(sequence.context), self.pool.block_size) + done
        visible = len(sequence.token_ids) if sequence.whole else len(sequence.context)
        span = Span(sequence.pending, start, visible, (*sequence.held, *sequence.blocks), self.causal)
        return Rows(
            tuple(sequence.token_ids[done:]),
            tuple(sequence.positions[done:]),
            tuple(sequence.block_positions[done:]),
            span,
            sequence.want,
            sequence.asked,
            tuple(sequence.targets[done:]),
        )
