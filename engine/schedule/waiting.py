"""The waiting sequences by rank, in one line per tenant."""

from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from heapq import heappop, heapreplace, merge
from itertools import count

from engine.schedule.sequence import Sequence

Entry = tuple[float, int, Sequence]  # rank, number of arrival


class Waiting:
    """Waiting sequences, the smallest rank first, equals in order of arrival.

    Sequences behind a blocked head of a line cost no time.
    """

    def __init__(self) -> None:
        self._entries: dict[Sequence, Entry] = {}
        self._lines: dict[str, list[Entry]] = {}
        self._firsts: list[Entry] = []  # of each line, by rank
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._entries

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, _, sequence in merge(*self._lines.values()))

    def add(self, sequence: Sequence) -> None:
        """Adds a sequence behind all of its rank."""
        entry = self._entries[sequence] = (sequence.rank, next(self._arrivals), sequence)
        line = self._lines.setdefault(sequence.context.tenant, [])
        insort(line, entry)
        if line[0] is entry:
            if len(line) > 1:
                self._drop(self._firsts, line[1])
            insort(self._firsts, entry)

    def remove(self, sequence: Sequence) -> None:
        """Removes a sequence."""
        entry = self._entries.pop(sequence)
        line = self._lines[sequence.context.tenant]
        if self._drop(line, entry) == 0:
            self._drop(self._firsts, entry)
            if line:
                insort(self._firsts, line[0])
            else:
                del self._lines[sequence.context.tenant]

    def passing(self, held_up: Container[str]) -> Iterator[Sequence]:
        """All sequences by rank, without those of tenants that are held up by then.

        During the iteration only the yielded sequence may be removed.
        """
        nexts = list(self._firsts)  # sorted, and so a heap
        while nexts:
            entry = nexts[0]
            sequence = entry[2]
            tenant = sequence.context.tenant
            yield sequence
            line = self._lines.get(tenant, [])
            at = 0 if tenant in held_up else bisect_left(line, entry)
            at += at < len(line) and line[at] is entry
            if tenant in held_up or at == len(line):
                heappop(nexts)
            else:
                heapreplace(nexts, line[at])

    @staticmethod
    def _drop(entries: list[Entry], entry: Entry) -> int:
        """Removes an entry, and returns its place."""
        at = bisect_left(entries, entry)
        del entries[at]
        return at
