"""The holdings: the number of blocks that each tenant's running sequences hold."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable

from engine.schedule.sequence import Sequence


class Holdings:
    """Blocks by tenant. A context counts once per tenant, however many of its sequences share it."""

    def __init__(self) -> None:
        self._blocks: dict[str, int] = {}
        self._ordered: list[tuple[int, str]] = []  # the same, the least first
        self._sharing: Counter[tuple[str, tuple[int, ...]]] = Counter()  # sequences of a tenant that hold a context

    def of(self, tenant: str) -> int:
        """Number of blocks that a tenant holds."""
        return self._blocks.get(tenant, 0)

    def richest_but(self, tenant: str) -> str | None:
        """The other tenant with the most blocks; among equals the last by name."""
        return next((name for _, name in reversed(self._ordered) if name != tenant), None)

    def without(self, sequence: Sequence) -> int:
        """Number of blocks that a sequence's tenant would hold without it."""
        tenant, held = sequence.context.tenant, sequence.context_blocks
        return self.of(tenant) - len(sequence.blocks) - len(held) * (self._sharing[tenant, held] == 1)

    def add(self, sequence: Sequence) -> None:
        """Counts the blocks of a sequence that begins to run."""
        tenant, held = sequence.context.tenant, sequence.context_blocks
        self._sharing[tenant, held] += 1
        self.grow(tenant, len(sequence.blocks) + len(held) * (self._sharing[tenant, held] == 1))

    def remove(self, sequence: Sequence) -> None:
        """Subtracts the blocks of a sequence that no longer runs."""
        tenant, held = sequence.context.tenant, sequence.context_blocks
        self.grow(tenant, self.without(sequence) - self.of(tenant))
        self._sharing[tenant, held] -= 1
        if not self._sharing[tenant, held]:
            del self._sharing[tenant, held]

    def grow(self, tenant: str, blocks: int) -> None:
        """Adds a number of blocks, maybe negative, to a tenant's own."""
        before = self._blocks.pop(tenant, 0)
        if before:
            del self._ordered[bisect_left(self._ordered, (before, tenant))]
        if before + blocks:
            self._blocks[tenant] = before + blocks
            insort(self._ordered, (before + blocks, tenant))

    def check(self, running: Iterable[Sequence]) -> None:
        """Asserts that the counts equal a recount."""
        sequences = list(running)
        held: Counter[str] = Counter()
        for tenant, blocks in {(s.context.tenant, s.context_blocks) for s in sequences}:
            held[tenant] += len(blocks)
        for sequence in sequences:
            held[sequence.context.tenant] += len(sequence.blocks)
        assert self._blocks == dict(held)
        assert self._ordered == sorted((blocks, tenant) for tenant, blocks in held.items())
