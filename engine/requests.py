"""What a client asks of the engine: frozen, checked values without tensors or wire formats."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from model.segment import Tokens

__all__ = [
    "Fill", "JsonSchema", "Mask", "Priority", "Request", "RequestError", "Sampling", "Score", "Segments", "Strategy",
    "Tokens", "member", "num_chars", "regex_param",
]  # fmt: skip

Strategy = Literal["append", "reencode", "parallel"]
Priority = Literal["interactive", "batch"]
Pll = Literal["original", "word_l2r"]


class RequestError(ValueError):
    """A request that cannot be served as it stands: `param` names the field, the message the limit. With the outcome
    overloaded it can, and only not now."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str = "invalid_value",
        outcome: Literal["invalid", "overloaded"] = "invalid",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.outcome = outcome


@contextmanager
def member(noun: str, number: int, count: int) -> Iterator[None]:
    """Around what is done for one of `count` members of a request: its errors name the member where there are several,
    such as "input 3: …"."""
    try:
        yield
    except RequestError as error:
        if count == 1:
            raise
        raise RequestError(f"{noun} {number}: {error.message}", error.param, error.code, error.outcome) from None


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A schema, given as JSON, that a blank's text is to fulfil."""

    text: str


Regex = str | JsonSchema


def regex_param(regexes: Iterable[Regex | None]) -> str:
    """The field that the first of some patterns stands in."""
    first = next((regex for regex in regexes if regex is not None), None)
    return "json_schema" if isinstance(first, JsonSchema) else "regex"


@dataclass(frozen=True, slots=True)
class Mask:
    """A blank among the segments of a text; `name` is the mask token, such as `[MASK]`."""

    name: str


Segments = tuple[str | Tokens | Mask, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy.

    `rules` are the values of parameters of `engine.logit_rules` by name, such as penalties; one that is left out has
    its default. They act before temperature, and before them `logit_bias`, which is added to the logit of a token id.
    With `repeat_last_n` penalties count so many of the last tokens, of the text and the blank.

    `stop` are strings and `stop_token_ids` tokens that end a blank, which holds them only with `include_stop`. With
    `ignore_eos` the model's own end never comes.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    rules: dict[str, int | float] = field(default_factory=dict)
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    repeat_last_n: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False


@dataclass(frozen=True, slots=True)
class Fill:
    """Fill every blank of each input, `n` times.

    `inputs` are segmented texts; an input without a mask gets `[gMASK]` appended by the engine. `max_tokens`
    and `min_tokens` hold one number for all blanks or one per blank. `order` is a name or blank indices. `choices` are
    the strings or tokens that a blank may be: none, one list for all blanks, or one list (or None: anything) per blank;
    `regex` likewise the pattern that a blank's text matches as a whole, in the syntax of Rust's regex crate, or the
    schema of the JSON that it is. With several beams `n` is how many of the most probable fills are given: of a text
    with one blank, or of each blank by the strategy parallel, whose answers are the best fills together, the second
    best together, and so on. `tenant` is on whose behalf: tenants take turns, and share no cached contexts.

    In an input of `Tokens` mask ids are masks, and what follows a `<sop>` is what the one blank begins with. With
    `echo` an input, one string or `Tokens`, is itself what the open blank begins with, unless it has a mask and a
    `<sop>`: its tokens are scored, and `max_tokens` may be 0. With `fit` a text that is too long loses what is
    farthest from its one blank instead of being refused. `adapter` is the name of a loaded one.
    """

    inputs: tuple[Segments, ...]
    max_tokens: tuple[int, ...] = (64,)
    min_tokens: tuple[int, ...] = (0,)
    sampling: Sampling = Sampling()
    n: int = 1
    order: str | tuple[int, ...] = "left_to_right"
    strategy: Strategy | None = None
    choices: tuple[tuple[str | Tokens, ...] | None, ...] = ()
    regex: tuple[Regex | None, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    logprobs: int | None = None
    stream: bool = False
    echo: bool = False
    fit: bool = False
    priority: Priority = "interactive"
    timeout_s: float | None = None
    tenant: str = ""
    adapter: str | None = None
    kind: Literal["fill"] = field(default="fill", kw_only=True)


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihoods of what is already known. Exactly one form is given:

    `text` with `spans` (candidates, each one string per blank), `context` with `targets`, `text` alone, or
    `sentence_a` with `sentence_b`. `orders` is "left_to_right", "all", a number of random permutations or
    explicit permutations of the blank indices. `pll` says what a masked language model does not see of a whole text
    while it predicts a token: the token, or also what follows of the same word. With `words` the answer has them.
    """

    text: Segments | None = None
    spans: tuple[tuple[str, ...], ...] | None = None
    context: Segments | None = None
    targets: tuple[str | Tokens, ...] | None = None
    sentence_a: str | None = None
    sentence_b: str | None = None
    include_end: bool = False
    orders: str | int | tuple[tuple[int, ...], ...] = "left_to_right"
    normalize: Literal["none", "token", "char"] = "none"
    logprobs: int | None = None
    pll: Pll = "original"
    words: bool = False
    seed: int | None = None
    priority: Priority = "batch"
    timeout_s: float | None = None
    tenant: str = ""
    adapter: str | None = None
    kind: Literal["score"] = field(default="score", kw_only=True)


Request = Fill | Score


def num_chars(request: Request) -> int:
    """The length of all its text."""
    if isinstance(request, Fill):
        return sum(map(_chars, request.inputs))
    sentences = (request.sentence_a or "", request.sentence_b or "")
    spans = [span for candidate in request.spans or () for span in candidate]
    return sum(map(_chars, (request.text or (), request.context or (), request.targets or (), sentences, spans)))


def _chars(segments: Iterable[str | Tokens | Mask]) -> int:
    return sum(len(segment) for segment in segments if isinstance(segment, str))
