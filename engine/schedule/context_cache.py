"""The context cache: one context per tenant, adapter and tokens, while it is cached or a sequence needs it."""

from bisect import bisect_left, insort
from itertools import count
from operator import attrgetter
from weakref import WeakValueDictionary

from engine.schedule.blocks import BlockPool
from engine.schedule.sequence import Context, Key

_used = attrgetter("used")


class ContextCache:
    """Contexts by key. `unused` are cached contexts without a sequence, the least recently used first.

    A context is used when it is looked up and when it is encoded.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.cached: set[Context] = set()
        self.unused: list[Context] = []
        self.unused_blocks = 0  # without those of prefixes
        self._known: WeakValueDictionary[Key, Context] = WeakValueDictionary()
        self._uses = count()

    def same(self, context: Context) -> Context:
        """The known context with the same key; if there is none, the given one becomes known."""
        found = self._known.setdefault(context.key, context)
        unused = self._is_unused(found)
        if unused:
            self._take(found)
        found.used = next(self._uses)
        if unused:
            self._put(found)
        return found

    def encode(self, context: Context, blocks: tuple[int, ...]) -> None:
        """Marks a context as cached."""
        context.blocks, context.used = blocks, next(self._uses)
        self.cached.add(context)
        self._put(context)

    def share(self, context: Context) -> None:
        """Adds one sequence to a cached context."""
        if self._is_unused(context):
            self._take(context)
        self.pool.share(context.blocks or ())

    def release(self, context: Context) -> None:
        """Removes one sequence from a context."""
        self.pool.release(context.blocks or ())
        if self._is_unused(context):
            self._put(context)

    def oldest(self, but: Context | None) -> Context | None:
        """The least recently used of the unused contexts."""
        return next((context for context in self.unused if context is not but), None)

    def drop(self, context: Context) -> None:
        """Removes an unused context from the cache."""
        self._take(context)
        self.cached.remove(context)
        self.pool.release(context.blocks or ())
        context.blocks = None

    def check(self) -> None:
        """Asserts that unused contexts are known, ordered and counted."""
        assert self.unused == sorted(filter(self._is_unused, self.cached), key=_used)
        assert self.unused_blocks == sum(map(self._own_blocks, self.unused))
        assert all(context.blocks for context in self.cached)

    def _is_unused(self, context: Context) -> bool:
        # Its last block is its own, others may be its prefix's.
        return bool(context.blocks and self.pool.holders(context.blocks[-1]) == 1)

    def _put(self, context: Context) -> None:
        insort(self.unused, context, key=_used)
        self.unused_blocks += self._own_blocks(context)

    def _take(self, context: Context) -> None:
        del self.unused[bisect_left(self.unused, context.used, key=_used)]
        self.unused_blocks -= self._own_blocks(context)

    def _own_blocks(self, context: Context) -> int:
        return len(context.blocks or ()) - context.start // self.pool.block_size
