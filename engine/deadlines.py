"""The deadlines of jobs."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush


class Deadlines:
    """The deadline of each job that has one. The time of a step does not grow with their number."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # also those of jobs that have ended

    def watch(self, job_id: str, deadline: float) -> None:
        """Adds a job with its deadline, in seconds of the engine's clock."""
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(deadline, job_id) for job_id, deadline in self._due.items()]
            heapify(self._heap)
        self._due[job_id] = deadline
        heappush(self._heap, (deadline, job_id))

    def forget(self, job_id: str) -> None:
        """Removes a job that has ended."""
        self._due.pop(job_id, None)

    def overdue(self, now: float) -> Iterator[str]:
        """Removes and returns the jobs with a deadline before now, the most overdue first."""
        while self._heap and now > self._heap[0][0]:
            deadline, job_id = heappop(self._heap)
            if self._due.get(job_id) == deadline:
                del self._due[job_id]
                yield job_id
