"""The events of a request: zero or more deltas and results, then exactly one terminal event.

Every event has the id of its request and its kind, which tells the kinds apart in JSON. `Done` and `Failed` are
terminal.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from engine.answers import Alternatives, EchoedPrompt, FilledBlank, FillResult, Ranking, ScoreResult, Usage

Outcome = Literal["invalid", "cancelled", "deadline", "overloaded", "error"]


@dataclass(frozen=True, slots=True)
class Begun:
    """The texts are laid out: the part of `usage` that is known, and whether a text was cut to fit.

    It is the first event, sent once, only for a `Fill` with `stream`.
    """

    id: str
    usage: Usage
    fitted: bool
    kind: Literal["begun"] = field(default="begun", kw_only=True)


@dataclass(slots=True)
class BlankDelta:
    """New text of one blank. Sent only for a `Fill` with `stream`.

    `tokens`, `top_logprobs`, `text_offsets` and `raw` are those of `FilledBlank`, for the tokens that are new.
    """

    id: str
    index: int
    input_index: int
    blank: int
    text: str
    token_ids: list[int]
    logprobs: list[float]
    tokens: list[str] = field(default_factory=list)
    top_logprobs: list[Alternatives] | None = None
    text_offsets: list[int] = field(default_factory=list)
    raw: list[list[int] | None] = field(default_factory=list)
    kind: Literal["blank_delta"] = field(default="blank_delta", kw_only=True)


@dataclass(frozen=True, slots=True)
class Echoed:
    """The prompt of a `Fill` with `echo` is scored. `echo` will be in the result too. Only with `stream`."""

    id: str
    index: int
    input_index: int
    echo: EchoedPrompt
    kind: Literal["echoed"] = field(default="echoed", kw_only=True)


@dataclass(frozen=True, slots=True)
class BlankDone:
    """One blank is complete. Only with `stream`."""

    id: str
    index: int
    input_index: int
    blank: FilledBlank
    kind: Literal["blank_done"] = field(default="blank_done", kw_only=True)


@dataclass(frozen=True, slots=True)
class ResultDone:
    """One result is complete."""

    id: str
    result: Annotated[FillResult | ScoreResult, Field(discriminator="kind")]
    kind: Literal["result_done"] = field(default="result_done", kw_only=True)


@dataclass(frozen=True, slots=True)
class Done:
    """The request is complete. A score ranks its candidates. Times are seconds since arrival."""

    id: str
    usage: Usage
    ranking: Ranking | None = None
    queue_s: float = 0.0
    first_token_s: float = 0.0
    kind: Literal["done"] = field(default="done", kw_only=True)


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer. `outcome` says who is the cause."""

    id: str
    outcome: Outcome
    message: str
    param: str | None = None
    code: str | None = None
    kind: Literal["failed"] = field(default="failed", kw_only=True)


Event = Begun | BlankDelta | Echoed | BlankDone | ResultDone | Done | Failed
TERMINAL = (Done, Failed)


@dataclass(frozen=True, slots=True)
class StepStats:
    """The work of one iteration, and the work that waits. Counters are increments since the last one."""

    seconds: float
    rows: int
    running: int
    waiting: int
    kv_cache_usage: float
    prompt_tokens: int = 0
    generated_tokens: int = 0
    blanks: int = 0
    score_candidates: int = 0
    score_tokens: int = 0
    context_cache_queries: int = 0
    context_cache_hits: int = 0
    preemptions: int = 0
    nonfinite_rows: int = 0
    queue_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    token_seconds: list[float] = field(default_factory=list)


# exit, signal: a process ended; silence, hang: it said nothing, or did not end a step; exception: it raised; load: it
# could not be made ready; start: it could not even be started; supervisor: what watches it failed.
LossReason = Literal["exit", "signal", "silence", "hang", "exception", "load", "start", "supervisor"]


@dataclass(frozen=True, slots=True)
class Loss:
    """The engine's processes are lost.

    `unanswered` counts the losses since the last answer, including this one. After a `final` loss the processes do not
    start again.
    """

    reason: LossReason
    detail: str
    unanswered: int = 1
    final: bool = False


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """A loaded adapter, as clients see it."""

    name: str
    kind: Literal["lora", "prefix"]
    created: int
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The facts of the loaded model that clients and the checks of requests need."""

    name: str
    family: str
    quant: str  # the scheme of the blocks' matrices
    quant_head: str  # that of the embedding and head
    tp: int
    masks: list[str]
    max_context: int
    max_positions: int
    max_span: int
    vocab_size: int
    strategies: list[str]  # the first is the default
    num_parameters: int
    kernels: str
    created: int
    kv_cache_type: str  # the dtype that keys and values are kept as
    kv_cache_tokens: int  # how many tokens the cache holds
    causal: bool = False
    masked: bool = False  # a masked language model: it writes into the text itself
    next_sentence: bool = False
    mask_token: str = "[MASK]"  # how the checkpoint's own tokenizer spells its mask
    special_tokens: dict[str, str] = field(default_factory=dict)  # bos, eos, … by what clients call them
    aliases: list[str] = field(default_factory=list)  # other names that it answers to
    weight_bytes: int = 0  # of all ranks together, as they are in memory
    origin: str = ""  # what became of the matrices of a foreign format, for people

    @property
    def names(self) -> list[str]:
        """All names of the model. Answers have the first one."""
        return [self.name, *self.aliases]

    @property
    def infill_mask(self) -> str | None:
        """The mask for a blank between a prefix and a suffix; None if the model cannot fill there."""
        return "[MASK]" if "[MASK]" in self.masks and not self.masked else None
