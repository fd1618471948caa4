"""A job: a request that runs. It turns results of sequences into new sequences and events."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from engine.answers import Alternative, Alternatives, Usage
from engine.events import Event, ModelCard
from engine.regex.constraint import Patterns
from engine.requests import Mask, RequestError, Segments
from engine.schedule.batch import Result, Row
from engine.schedule.scheduler import SchedulerView
from engine.schedule.sequence import Sequence
from model.layout import Blank, Layout, LayoutError, LayoutRules
from model.spelling import Spelling
from model.tokenizer import Tokenizer


@dataclass(slots=True)
class Work:
    """The work of all jobs so far, including jobs that never end normally."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    blanks: int = 0
    score_candidates: int = 0
    score_tokens: int = 0

    def counts(self) -> tuple[int, ...]:
        """All counts, in the order of the fields."""
        return self.prompt_tokens, self.generated_tokens, self.blanks, self.score_candidates, self.score_tokens


@dataclass(slots=True)
class Counts:
    """The token counts of one job."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    score_tokens: int = 0

    def usage(self) -> Usage:
        """The usage of an answer. A job either generates or scores."""
        completion = self.generated_tokens + self.score_tokens
        return Usage(self.prompt_tokens, completion, self.prompt_tokens + completion, self.cached_tokens)


@dataclass(frozen=True, slots=True)
class JobContext:
    """The parts of an engine that jobs use: tokenizer, names of special tokens, layout, limits, compiled patterns.

    A job adds what it has done to `work`.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    card: ModelCard
    logit_mask: Row  # 0, and −∞ for ids that are never drawn
    spelling: Spelling
    patterns: Patterns
    work: Work

    @property
    def open_mask(self) -> Mask:
        """The mask that continues a text at its end."""
        return Mask("[gMASK]" if "[gMASK]" in self.card.masks else "[MASK]")

    def lay_out(self, segments: Segments, param: str, scored: bool = False) -> Layout:
        """The layout of segments. Raises RequestError for unknown masks and for a text over the limit."""
        laid = self.laid(segments, param, scored)
        self.check_length(len(laid), param)
        return laid

    def length(self, segments: Segments, param: str) -> int:
        """Number of tokens of segments, without a limit. Raises RequestError for unknown masks."""
        return len(self.laid(segments, param))

    def num_read(self, laid: Layout) -> int:
        """Number of tokens that the model reads: part A. For a causal model it includes the token that starts a
        blank."""
        return len(laid) + self.card.causal

    def laid(self, segments: Segments, param: str, scored: bool = False) -> Layout:
        """The layout of segments of any length. Raises RequestError for unknown masks."""
        plain = [(s.name,) if isinstance(s, Mask) else s for s in segments]
        try:
            return self.rules.lay_out(plain, self.tokenizer, scored)
        except LayoutError as error:
            raise RequestError(str(error), param, "unsupported_mask") from None

    def check_ids(self, token_ids: Items[int], param: str) -> None:
        """Raises RequestError for an id outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self.card.vocab_size:
                message = f"token {token_id} is outside the vocabulary, ids 0 … {self.card.vocab_size - 1}"
                raise RequestError(message, param)

    def check_span(self, num_tokens: int, blank: Blank, param: str) -> None:
        """Raises RequestError for more known tokens in a blank than the model has positions."""
        last = self.card.max_positions - 1
        limit = min([self.card.max_span, *((last - blank.position) // s for s in blank.stride[:1] if s)])
        if num_tokens > limit:
            message = f"{num_tokens} tokens are too many for a blank; the limit is {limit}"
            raise RequestError(message, param, "context_length_exceeded")

    def check_length(self, num_tokens: int, param: str) -> None:
        """Raises RequestError for a text with more tokens than the limit."""
        if num_tokens > self.card.max_context:
            raise RequestError(
                f"the text has {num_tokens} tokens; the limit is {self.card.max_context}",
                param,
                "context_length_exceeded",
            )


@dataclass(slots=True, eq=False)
class Step:
    """The outcome of one result of a sequence: new sequences, finished sequences, and events."""

    started: list[Sequence] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def finish(self, sequence: Sequence) -> None:
        """Marks a sequence as finished, also one that this step has started."""
        if sequence in self.started:
            self.started.remove(sequence)
        self.finished.append(sequence)


class Job(Protocol):
    """A request that runs."""

    id: str
    num_top: int
    counts: Counts

    def start(self, view: SchedulerView, rank: float) -> list[Sequence]:
        """The first sequences. The sum of their `prompt_tokens` is that of the request."""

    def advance(self, view: SchedulerView, sequence: Sequence, result: Result) -> Step:
        """Takes the result of one of its sequences, and pushes the sequence's next row if it continues.

        `Done` is the last event of all.
        """

    def stop(self) -> None:
        """Ends the job early: it adds work that is done but not counted yet."""


def alternatives(tops: Items[Items[tuple[int, float]]], tokenizer: Tokenizer) -> list[Alternatives]:
    """The alternatives of each token, from ids and log-probabilities."""
    return [[Alternative(i, tokenizer.piece(i), p) for i, p in top] for top in tops]
