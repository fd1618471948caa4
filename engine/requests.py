"""What a client asks of the engine: frozen, checked values without tensors or wire formats."""

from dataclasses import dataclass, field
from typing import Literal

Strategy = Literal["append", "reencode", "parallel"]
Priority = Literal["interactive", "batch"]


class RequestError(ValueError):
    """A request that cannot be served as it stands: `param` names the field, the message the limit."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Mask:
    """A blank among the segments of a text; `name` is the mask token, such as `[MASK]`."""

    name: str


Segments = tuple[str | Mask, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; penalties act before temperature."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Fill:
    """Fill every blank of each input, `n` times.

    `inputs` are segmented texts; an input without a mask gets `[gMASK]` appended by the engine. `max_tokens`
    and `min_tokens` hold one number for all blanks or one per blank. `order` is a name or blank indices. `tenant` is
    on whose behalf: tenants take turns, and share no cached contexts.
    """

    inputs: tuple[Segments, ...]
    max_tokens: tuple[int, ...] = (64,)
    min_tokens: tuple[int, ...] = (0,)
    sampling: Sampling = Sampling()
    n: int = 1
    order: str | tuple[int, ...] = "left_to_right"
    strategy: Strategy | None = None
    logprobs: int | None = None
    stream: bool = False
    priority: Priority = "interactive"
    timeout_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihoods of what is already known. Exactly one form is given:

    `text` with `spans` (candidates, each one string per blank), `context` with `targets`, `text` alone, or
    `sentence_a` with `sentence_b`. `orders` is "left_to_right", "all", a number of random permutations or
    explicit permutations of the blank indices.
    """

    text: Segments | None = None
    spans: tuple[tuple[str, ...], ...] | None = None
    context: Segments | None = None
    targets: tuple[str, ...] | None = None
    sentence_a: str | None = None
    sentence_b: str | None = None
    include_end: bool = False
    orders: str | int | tuple[tuple[int, ...], ...] = "left_to_right"
    normalize: Literal["none", "token", "char"] = "none"
    logprobs: int | None = None
    seed: int | None = None
    priority: Priority = "batch"
    timeout_s: float | None = None
    tenant: str = ""


Request = Fill | Score
