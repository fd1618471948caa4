"""The bodies of the native routes, and their conversion to engine requests."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from engine.options import ADAPTER_NAME
from engine.requests import Fill, Mask, Pll, Priority, RequestError, Score, Segments, Strategy, member
from engine.requests import Regex as AnyRegex
from server.exchange.bodies import (
    INT32,
    MASKS,
    ONE_OR_LIST,
    Choice,
    Number,
    Positive,
    String,
    Text,
    Wire,
    at_most,
    count_blanks,
    many,
    schema_of,
    split,
)
from server.exchange.sampling import SamplingFields
from server.settings import Limits

MaxTokens = Annotated[
    Annotated[Positive, Tag("<one>")] | Annotated[list[Positive], Field(min_length=1), Tag("<list>")],
    ONE_OR_LIST,
]
MinTokens = Annotated[
    Annotated[Number, Tag("<one>")] | Annotated[list[Number], Field(min_length=1), Tag("<list>")],
    ONE_OR_LIST,
]
OrderName = Literal["left_to_right", "right_to_left", "random", "confident"]
Order = Annotated[
    Annotated[OrderName, Tag("<one>")] | Annotated[list[Number], Field(min_length=1), Tag("<list>")],
    ONE_OR_LIST,
]
Choices = Annotated[
    Annotated[list[Choice], Field(min_length=1), Tag("<choices>")]
    | Annotated[list[Annotated[list[Choice], Field(min_length=1)] | None], Field(min_length=1), Tag("<blanks>")],
    Discriminator(
        lambda value: "<choices>" if isinstance(value, list) and value and isinstance(value[0], str) else "<blanks>"
    ),
]
Regex = Annotated[
    Annotated[String, Tag("<one>")] | Annotated[list[String | None], Field(min_length=1), Tag("<list>")], ONE_OR_LIST
]
Schemas = Annotated[
    Annotated[dict[str, Any], Tag("<one>")]
    | Annotated[list[dict[str, Any] | None], Field(min_length=1), Tag("<list>")],
    ONE_OR_LIST,
]
Spans = Annotated[
    Annotated[list[String], Field(min_length=1), Tag("<span>")]
    | Annotated[list[Annotated[list[String], Field(min_length=1)]], Field(min_length=1), Tag("<candidates>")],
    Discriminator(
        lambda value: "<candidates>" if isinstance(value, list) and value and isinstance(value[0], list) else "<span>"
    ),
]
Orders = Annotated[
    Annotated[Literal["left_to_right", "all"], Tag("<name>")]
    | Annotated[Positive, Tag("<number>")]
    | Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(min_length=1), Tag("<list>")],
    Discriminator(
        lambda value: "<list>" if isinstance(value, list) else "<name>" if isinstance(value, str) else "<number>"
    ),
]


class Work(Wire):
    """The common fields of fills and scores."""

    model: String | None = None
    adapter: String | None = None
    logprobs: Annotated[
        int | None, Field(ge=0, le=INT32, description="The number of alternatives shown for each token.")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="The seed of random numbers. Without one each answer differs.")
    ] = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None

    def check_common(self, limits: Limits) -> None:
        """Checks the common fields. Raises RequestError, naming field and limit, for a value over the limit."""
        at_most("logprobs", self.logprobs or 0, limits.logprobs)
        at_most("timeout_s", self.timeout_s or 0, limits.timeout_s)


class MaskSegment(Wire):
    """A blank in `segments`."""

    mask: Literal["[MASK]", "[sMASK]", "[gMASK]"]


Segment = Annotated[
    Annotated[String, Tag("<text>")] | Annotated[MaskSegment, Tag("<mask>")],
    Discriminator(lambda value: "<mask>" if isinstance(value, dict | MaskSegment) else "<text>"),
]


class InfillRequest(SamplingFields, Work):
    """The body of `POST /v1/infill`."""

    text: Text | None = None
    segments: Annotated[list[Segment], Field(min_length=1)] | None = None
    max_tokens: MaxTokens = 64
    min_tokens: MinTokens = 0
    n: Positive = 1
    num_beams: Annotated[
        int, Field(ge=1, le=INT32, description="The number of hypotheses in a beam search; 1 is no search.")
    ] = 1
    length_penalty: Annotated[
        float,
        Field(ge=-100, le=100, description="The exponent of the length in a beam search; above 0 prefers long fills."),
    ] = 1.0
    choices: Choices | None = None
    regex: Regex | None = None
    json_schema: Annotated[
        Schemas | None,
        Field(description="The JSON schema that each blank must fulfil: one for all blanks, or one for each."),
    ] = None
    order: Order = "left_to_right"
    strategy: Annotated[
        Strategy | None,
        Field(
            description="The way in which a later blank sees earlier fills. Without one: that of the model's family."
        ),
    ] = None
    stream: bool = False
    priority: Priority = "interactive"

    def fill(self, limits: Limits) -> Fill:
        """The request for the engine. Raises RequestError for values over a limit."""
        self.check_common(limits)
        inputs = self._inputs()
        max_tokens, min_tokens = many(self.max_tokens), many(self.min_tokens)
        at_most("text", len(inputs), limits.inputs, "inputs")
        for number, text in enumerate(inputs):
            with member("input", number, len(inputs)):
                at_most("text" if self.segments is None else "segments", count_blanks(text), limits.blanks, "blanks")
        at_most("n", self.n, limits.n)
        for number, value in enumerate(max_tokens):
            with member("blank", number, len(max_tokens)):
                at_most("max_tokens", value, limits.max_tokens)
        for param, numbers in (("max_tokens", max_tokens), ("min_tokens", min_tokens)):
            at_most(param, len(numbers), limits.blanks, "items")
        pairs = [*_aligned(min_tokens, max_tokens)]
        for number, (low, high) in enumerate(pairs):
            with member("blank", number, len(pairs)):
                if low > high:
                    raise RequestError("min_tokens is above max_tokens", "min_tokens")
        at_most("segments", len(self.segments or ()), limits.segments, "segments")
        at_most("order", 0 if isinstance(self.order, str) else len(self.order), limits.blanks, "items")
        at_most("num_beams", self.num_beams, limits.num_beams)
        choices = self._choices(limits)
        regex = self._regex(limits)
        return Fill(
            inputs=inputs,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            sampling=self.sampling(limits),
            n=self.n,
            order=self.order if isinstance(self.order, str) else tuple(self.order),
            strategy=self.strategy,
            choices=choices,
            regex=regex,
            num_beams=self.num_beams,
            length_penalty=self.length_penalty,
            logprobs=self.logprobs,
            stream=self.stream,
            priority=self.priority,
            timeout_s=self.timeout_s or limits.timeout_s,
            adapter=self.adapter,
        )

    def _inputs(self) -> tuple[Segments, ...]:
        if (self.text is None) == (self.segments is None):
            raise RequestError("give exactly one of: text; segments", "text", "invalid_form")
        if self.segments is not None:
            return (tuple(s if isinstance(s, str) else Mask(s.mask) for s in self.segments),)
        assert self.text is not None
        return tuple(split(text) for text in many(self.text))

    def _choices(self, limits: Limits) -> tuple[tuple[str, ...] | None, ...]:
        if self.choices is None:
            return ()
        lists: list[Any] = [self.choices] if isinstance(self.choices[0], str) else self.choices
        at_most("choices", len(lists), limits.blanks, "lists")
        for number, own in enumerate(lists):
            with member("blank", number, len(lists)):
                at_most("choices", len(own or ()), limits.choices, "choices for a blank")
                _no_masks("choices", own or (), "choice")
        return tuple(None if own is None else tuple(own) for own in lists)

    def _regex(self, limits: Limits) -> tuple[AnyRegex | None, ...]:
        if self.json_schema is not None:
            if self.regex is not None:
                raise RequestError("a request has a regex or a json_schema, not both", "json_schema")
            schemas = self.json_schema if isinstance(self.json_schema, list) else [self.json_schema]
            at_most("json_schema", len(schemas), limits.blanks, "schemas")
            return tuple(None if one is None else schema_of("json_schema", one, limits) for one in schemas)
        if self.regex is None:
            return ()
        patterns = tuple(self.regex) if isinstance(self.regex, list) else (self.regex,)
        at_most("regex", len(patterns), limits.blanks, "patterns")
        for number, pattern in enumerate(patterns):
            with member("pattern", number, len(patterns)):
                at_most("regex", len(pattern or ""), limits.regex, "characters")
        return patterns


FORMS: tuple[set[str], ...] = (
    {"text"},
    {"text", "spans"},
    {"context", "target"},
    {"context", "targets"},
    {"sentence_a", "sentence_b"},
)
FORM_FIELDS = sorted(set().union(*FORMS))
FORMS_TEXT = "text; text and spans; context and target; context and targets; sentence_a and sentence_b"


class ScoreRequest(Work):
    """The body of `POST /v1/score`."""

    text: String | None = None
    spans: Spans | None = None
    context: String | None = None
    target: String | None = None
    targets: Annotated[list[String], Field(min_length=1)] | None = None
    sentence_a: String | None = None
    sentence_b: String | None = None
    include_end: bool = False
    orders: Orders = "left_to_right"
    normalize: Literal["none", "token", "char"] = "none"
    pll: Annotated[
        Pll,
        Field(description="The tokens hidden from BERT: the predicted one, or also the later ones of its word."),
    ] = "original"
    words: Annotated[bool, Field(description="Add the log-probability of each word.")] = False
    end_logprobs: Annotated[
        bool, Field(description="Compute the end token of every span. Without it candidates need fewer rows.")
    ] = True
    stream: Annotated[bool, Field(description="Send each candidate's result when it is there.")] = False
    priority: Priority = "batch"

    def score(self, limits: Limits) -> Score:
        """The request for the engine. Raises RequestError for a mix of forms and for values over a limit."""
        if {name for name in FORM_FIELDS if getattr(self, name) is not None} not in FORMS:
            raise RequestError(f"give exactly one of: {FORMS_TEXT}", None, "invalid_form")
        self.check_common(limits)
        text = None if self.text is None else split(self.text)
        spans = self._spans(text, limits)
        targets = self._targets(limits)
        orders = self._orders(0 if text is None else count_blanks(text), limits)
        return Score(
            text=text,
            spans=spans,
            context=None if self.context is None else split(self.context),
            targets=targets,
            sentence_a=self.sentence_a,
            sentence_b=self.sentence_b,
            include_end=self.include_end,
            orders=orders,
            normalize=self.normalize,
            logprobs=self.logprobs,
            pll=self.pll,
            words=self.words,
            end_logprobs=self.end_logprobs,
            stream=self.stream,
            seed=self.seed,
            priority=self.priority,
            timeout_s=self.timeout_s or limits.timeout_s,
            adapter=self.adapter,
        )

    def _spans(self, text: Segments | None, limits: Limits) -> tuple[tuple[str, ...], ...] | None:
        if text is None:
            return None
        num_blanks = count_blanks(text)
        at_most("text", num_blanks, limits.blanks, "blanks")
        if self.spans is None:
            if num_blanks:
                raise RequestError("text has blanks; spans must give the texts in them", "spans", "invalid_form")
            return None
        if not num_blanks:
            raise RequestError("spans need a text with a blank for each of them", "text", "invalid_form")
        first = self.spans[0]
        candidates: Iterable[Any] = (self.spans,) if isinstance(first, str) else self.spans
        spans = tuple(tuple(candidate) for candidate in candidates)
        at_most("spans", len(spans), limits.candidates, "candidates")
        for number, candidate in enumerate(spans):
            if len(candidate) != num_blanks:
                message = f"candidate {number} has {len(candidate)} spans for {num_blanks} blanks"
                raise RequestError(message, "spans")
            with member("candidate", number, len(spans)):
                _no_masks("spans", candidate, "blank")
        return spans

    def _targets(self, limits: Limits) -> tuple[str, ...] | None:
        if self.target is not None:
            _no_masks("target", (self.target,), "target")
            return (self.target,)
        if self.targets is None:
            return None
        at_most("targets", len(self.targets), limits.candidates, "candidates")
        _no_masks("targets", self.targets, "candidate")
        return tuple(self.targets)

    def _orders(self, num_blanks: int, limits: Limits) -> str | int | tuple[tuple[int, ...], ...]:
        if isinstance(self.orders, list):
            at_most("orders", len(self.orders), limits.orders, "orders")
            at_most("orders", max(map(len, self.orders)), limits.blanks, "blanks in an order")
            return tuple(tuple(order) for order in self.orders)
        if isinstance(self.orders, int):
            at_most("orders", self.orders, limits.orders)
        elif self.orders == "all":
            at_most("orders", math.factorial(num_blanks), limits.orders, "orders")
        return self.orders


class AdapterRequest(Wire):
    """The body of `POST /v1/adapters`."""

    name: Annotated[str, Field(pattern=f"^{ADAPTER_NAME}$")]
    path: Annotated[String, Field(min_length=1, max_length=1024)]


class TokenizeRequest(Wire):
    """The body of `POST /v1/tokenize`."""

    text: String
    layout: Annotated[
        Literal["fill", "score"] | None,
        Field(description="Add the text as the model reads it, for a fill or a score, with all positions."),
    ] = None

    def fill(self) -> Fill:
        """The text as a fill, for the engine to lay out."""
        return Fill((split(self.text),), max_tokens=(1,))


class DetokenizeRequest(Wire):
    """The body of `POST /v1/detokenize`."""

    tokens: list[Number]


def _aligned(low: tuple[int, ...], high: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Pairs per blank; one number counts for all blanks."""
    length = max(len(low), len(high))
    spread = [values * length if len(values) == 1 else values for values in (low, high)]
    return zip(*spread, strict=False)


def _no_masks(param: str, texts: Sequence[str], noun: str) -> None:
    for number, text in enumerate(texts):
        with member(noun, number, len(texts)):
            mask = MASKS.search(text)
            if mask:
                raise RequestError(f"{param} may not contain the mask {mask[0]}", param)
