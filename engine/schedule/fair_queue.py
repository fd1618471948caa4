"""The fair queue: ranks of sequences by start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996).

Virtual time counts rows. A flow's next sequence starts at the end of the flow's last share, but never in the past. So
of two waiting flows each gets every other row, however many requests one of them has sent; rows that a flow took while
no other waited do not count against it.
"""

Flow = tuple[str, str]  # tenant and priority


class FairQueue:
    """The virtual time, and the end of each flow's last share."""

    def __init__(self) -> None:
        self.now = 0
        self._ends: dict[Flow, int] = {}

    def next(self, flow: Flow) -> int:
        """The rank of a flow's next sequence, without taking it."""
        return max(self.now, self._ends.get(flow, 0))

    def take(self, flow: Flow, rows: int) -> int:
        """Takes the rank of a flow's next sequence, which may compute so many rows."""
        rank = self.next(flow)
        self._ends[flow] = rank + rows
        return rank

    def served(self, rank: int) -> None:
        """Advances virtual time to the rank of a sequence that runs."""
        self.now = max(self.now, rank)

    def rest(self) -> None:
        """Idle: resets every flow to the current virtual time."""
        self.now = max([self.now, *self._ends.values()])
        self._ends.clear()
