"""FairQueue: whose sequence is next, as ranks by start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996).

Virtual time counts rows. A flow's next sequence starts where the share of its last one ends, but never in the past:
of two flows that wait, each gets every other row, however many requests one of them has sent, and nobody is held to
account for rows taken while no one else wanted them.
"""

Flow = tuple[str, str]  # tenant and priority


class FairQueue:
    """Virtual time, and where each flow's last share ends."""

    def __init__(self) -> None:
        self.now = 0
        self._ends: dict[Flow, int] = {}

    def next(self, flow: Flow) -> int:
        """The rank that a flow's next sequence would get."""
        return max(self.now, self._ends.get(flow, 0))

    def take(self, flow: Flow, rows: int) -> int:
        """The rank of a flow's next sequence, which may take so many rows."""
        rank = self.next(flow)
        self._ends[flow] = rank + rows
        return rank

    def served(self, rank: int) -> None:
        """A sequence of that rank runs: virtual time is there."""
        self.now = max(self.now, rank)

    def rest(self) -> None:
        """Nobody waits: nobody is ahead of anybody any more."""
        self.now = max([self.now, *self._ends.values()])
        self._ends.clear()
