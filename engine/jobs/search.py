"""A search: several sequences fill one blank, where a plain fill has one."""

from dataclasses import dataclass
from typing import Protocol

from engine.jobs.blank_fill import BlankFill
from engine.jobs.job import JobContext, Step
from engine.jobs.sampler import Sampler
from engine.schedule.batch import Result
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence
from model.layout import Blank


@dataclass(frozen=True, slots=True)
class Wanted:
    """The task of a search: the fill of a blank at its place.

    With `keep` a sequence with the best fill continues, for the next blanks. `num_top` is the number of alternatives
    per token.
    """

    blank: BlankFill
    place: Blank
    sampler: Sampler
    num_top: int
    keep: bool
    job_context: JobContext


class Search(Protocol):
    """A search for one blank's fill. It has ended when `blanks` is not empty."""

    index: int  # of the blank in its text

    def start(self, sequence: Sequence) -> None:
        """Starts with a sequence whose last row, not computed yet, is the blank's start."""

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> None:
        """Takes a result of one of its sequences, and adds started and finished sequences to the step."""

    @property
    def blanks(self) -> list[BlankFill]:
        """The fills that it has found, the best first; empty while it runs."""

    @property
    def reached(self) -> int:
        """Number of tokens of its longest fill so far, the end token included."""

    @property
    def kept(self) -> Sequence | None:
        """The sequence with the rows of the best fill, if `keep` asks for it."""
