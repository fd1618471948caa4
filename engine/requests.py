"""The requests to the engine: frozen, checked values without tensors and wire formats."""

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
    """A request that cannot be served. `param` names the field; the message names the limit.

    With the outcome "overloaded" the same request may succeed later.
    """

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
    """A context for work on one of `count` members of a request.

    RequestErrors inside it name the member if there are several, such as "input 3: …".
    """
    try:
        yield
    except RequestError as error:
        if count == 1:
            raise
        raise RequestError(f"{noun} {number}: {error.message}", error.param, error.code, error.outcome) from None


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A schema, given as JSON, that a blank's text must fulfil."""

    text: str


Regex = str | JsonSchema


def regex_param(regexes: Iterable[Regex | None]) -> str:
    """The request field that holds the first of these patterns."""
    first = next((regex for regex in regexes if regex is not None), None)
    return "json_schema" if isinstance(first, JsonSchema) else "regex"


@dataclass(frozen=True, slots=True)
class Mask:
    """A blank among the segments of a text. `name` is the mask token, such as `[MASK]`."""

    name: str


Segments = tuple[str | Tokens | Mask, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters by which tokens are drawn. Temperature 0 is greedy.

    `rules` maps names of parameters of `engine.logit_rules`, such as penalties, to values; a missing one has its
    default. They act before temperature; `logit_bias`, which is added to the logits of token ids, acts before them.
    With `repeat_last_n` penalties count only so many last tokens of text and blank.

    `stop` strings and `stop_token_ids` end a blank; the blank contains them only with `include_stop`. `ignore_eos`
    forbids the model's own end tokens.
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
    """A request to fill every blank of each input, `n` times.

    `inputs` are segmented texts. The engine appends `[gMASK]` to an input without a mask. `max_tokens` and `min_tokens`
    have one number for all blanks or one per blank. `order` is a name or a list of blank indices. `choices` are the
    strings or tokens that a blank may be: none, one list for all blanks, or one list (or None: anything) per blank.
    `regex` has, in the same form, the pattern that a blank's whole text matches, in the syntax of Rust's regex crate,
    or its JSON schema. With several beams, `n` is the number of best fills to return: of a text with one blank, or, by
    the strategy parallel, of each blank; the first answer has the best fill of every blank, the second the second best,
    and so on. `tenant` names whom the request serves: tenants take turns and share no cached contexts.

    In an input of `Tokens`, ids of masks are masks, and the ids behind a `<sop>` begin the one blank. With `echo` an
    input, one string or `Tokens`, is itself the beginning of the open blank, unless it has a mask and a `<sop>`: its
    tokens are scored, and `max_tokens` may be 0. With `fit` a text that is too long loses the text farthest from its
    one blank instead of being refused. `adapter` is the name of a loaded adapter.

    `logprobs` is the number of alternatives at each token. `logprob_token_ids` replace the alternatives of tokens that
    are written. With `prompt_logprobs` an echo has at least that many alternatives, and ranks.
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
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    echo: bool = False
    fit: bool = False
    priority: Priority = "interactive"
    timeout_s: float | None = None
    tenant: str = ""
    adapter: str | None = None
    kind: Literal["fill"] = field(default="fill", kw_only=True)


@dataclass(frozen=True, slots=True)
class Score:
    """A request for log-likelihoods of known texts. It has exactly one of four forms:

    `text` with `spans` (candidates, each one string per blank), `context` with `targets`, `text` alone, or `sentence_a`
    with `sentence_b`. `orders` is "left_to_right", "all", a number of random permutations, or a list of permutations of
    the blank indices. `pll` says what a masked language model does not see of a whole text while it predicts a token:
    the token, or also the later tokens of the same word. With `words` the answer has the words' scores. Without
    `end_logprobs` the end of each span is computed only where it is included. A `stream` gets each result when it is
    there.
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
    end_logprobs: bool = True
    stream: bool = False
    seed: int | None = None
    priority: Priority = "batch"
    timeout_s: float | None = None
    tenant: str = ""
    adapter: str | None = None
    kind: Literal["score"] = field(default="score", kw_only=True)


Request = Fill | Score


def num_chars(request: Request) -> int:
    """Number of characters of all texts in a request."""
    if isinstance(request, Fill):
        return sum(map(_chars, request.inputs))
    sentences = (request.sentence_a or "", request.sentence_b or "")
    spans = [span for candidate in request.spans or () for span in candidate]
    return sum(map(_chars, (request.text or (), request.context or (), request.targets or (), sentences, spans)))


def _chars(segments: Iterable[str | Tokens | Mask]) -> int:
    return sum(len(segment) for segment in segments if isinstance(segment, str))
