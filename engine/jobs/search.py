"""A search: one blank filled by several sequences, where a plain fill has one."""

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
    """What a search is to find: the fill of a blank at its place. With `keep` a sequence goes on with what was found,
    for the blanks behind; `num_top` alternatives are told for each token."""

    blank: BlankFill
    place: Blank
    sampler: Sampler
    num_top: int
    keep: bool
    job_context: JobContext


class Search(Protocol):
    """What a sample asks of a search; it has ended when its blanks are there."""

    index: int  # of the blank in its text

    def start(self, sequence: Sequence) -> None:
        """Begins on a sequence whose last row, not computed yet, is the blank's start."""

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result, step: Step) -> None:
        """Takes a result of one of its sequences; adds to the step the sequences that start and finish."""

    @property
    def blanks(self) -> list[BlankFill]:
        """The fills that were found, the best first; empty while it goes on."""

    @property
    def reached(self) -> int:
        """Tokens of the longest fill that it has so far, its end among them."""

    @property
    def kept(self) -> Sequence | None:
        """The sequence with the rows of the best fill, if it was asked to keep one for the blanks behind."""
