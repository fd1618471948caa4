"""The checks of a `Fill` against its layout and the model; they also read its choices and patterns."""

from collections.abc import Mapping, Sequence

from engine.events import ModelCard
from engine.jobs.choices import Choices
from engine.jobs.job import JobContext
from engine.jobs.prompts import Prompt
from engine.regex.constraint import Pattern
from engine.requests import Fill, Mask, Regex, RequestError, member, regex_param
from model.layout import Layout

MAX_ALTERNATIVES = 1_000_000
LEAST_ROWS = 2  # of a blank that gets one token
ORDERS = ("left_to_right", "right_to_left", "random", "confident")


def check_fill(fill: Fill, laid: Layout, card: ModelCard) -> None:
    """Raises RequestError for a field that does not fit the number of blanks, the family or the model's limits."""
    count = len(laid.blanks)
    if fill.strategy is not None and fill.strategy not in card.strategies:
        known = ", ".join(card.strategies)
        raise RequestError(
            f"this model does not have the strategy {fill.strategy}; it has {known}", "strategy", "unsupported"
        )
    for name, values in (("max_tokens", fill.max_tokens), ("min_tokens", fill.min_tokens)):
        if len(values) not in (1, count):
            raise RequestError(f"{name} has {len(values)} numbers for {count} blanks", name)
        if max(values) > card.max_span:
            raise RequestError(f"{name} is {max(values)}; the limit is {card.max_span}", name)
    if fill.strategy in (None, "append") and LEAST_ROWS * count > card.max_span:
        raise RequestError(
            f"{count} blanks are too many for this model's cache of {card.kv_cache_tokens} tokens", "text"
        )
    check_beams(fill, count, card)
    if any(a > b for a, b in zip(per_blank(fill.min_tokens, count), per_blank(fill.max_tokens, count), strict=True)):
        raise RequestError("min_tokens is larger than max_tokens", "min_tokens")
    if isinstance(fill.order, str):
        if fill.order not in ORDERS:
            raise RequestError(f"order must be one of {', '.join(ORDERS)} or a list of blank indices", "order")
    elif sorted(fill.order) != list(range(count)):
        raise RequestError(f"order must hold each of the {count} blank indices 0 … {count - 1} once", "order")


def read_choices(fill: Fill, laid: Layout, job_context: JobContext) -> list[Choices | None]:
    """The choices of each blank.

    Raises RequestError if they do not fit the number of blanks or the model's limits.
    """
    count = len(laid.blanks)
    texts = fill.choices * count if len(fill.choices) == 1 else fill.choices or (None,) * count
    if len(texts) != count:
        raise RequestError(f"choices has {len(texts)} lists for {count} blanks", "choices")
    lengths = zip(per_blank(fill.min_tokens, count), per_blank(fill.max_tokens, count), strict=True)
    choices: list[Choices | None] = []
    for number, (own, place, between) in enumerate(zip(texts, laid.blanks, lengths, strict=True)):
        with member("blank", number, count):
            choices.append(None if own is None else Choices.read(own, place, between, job_context))
    rows = sum(LEAST_ROWS if own is None else own.longest + 1 for own in choices)
    if fill.choices and rows > job_context.card.max_span:
        raise RequestError(f"choices need {rows} tokens; the limit is {job_context.card.max_span}", "choices")
    return choices


def read_patterns(fill: Fill, count: int, compiled: Mapping[Regex, Pattern]) -> list[Pattern | None]:
    """The pattern of each blank.

    Raises RequestError if they do not fit the blanks, or cannot be combined with the request's other fields.
    """
    texts = fill.regex * count if len(fill.regex) == 1 else fill.regex or (None,) * count
    if len(texts) != count:
        raise RequestError(f"regex has {len(texts)} patterns for {count} blanks", regex_param(fill.regex))
    choices = fill.choices * count if len(fill.choices) == 1 else fill.choices or (None,) * count
    if any(own is not None and text is not None for own, text in zip(choices, texts, strict=True)):
        raise RequestError("a blank has choices or a regex, not both", regex_param(fill.regex))
    if fill.num_beams > 1 and any(text is not None for text in texts):
        raise RequestError("beam search does not support regex; num_beams must be 1", regex_param(fill.regex))
    return [None if text is None else compiled[text] for text in texts]


def check_beams(fill: Fill, count: int, card: ModelCard) -> None:
    """Raises RequestError for fields that beam search cannot combine with."""
    if fill.num_beams == 1:
        return
    if card.masked:
        raise RequestError(
            "this model fills each blank with one token, so it has no beam search", "num_beams", "unsupported"
        )
    if fill.sampling.temperature:
        raise RequestError("beam search does not draw tokens; temperature must be 0", "num_beams")
    if fill.n > fill.num_beams:
        raise RequestError(f"n is {fill.n}; the limit is num_beams, {fill.num_beams}", "n")
    if fill.n > 1 and count > 1 and (fill.strategy or card.strategies[0]) != "parallel":
        message = f"the text has {count} blanks; several answers by beam search need one blank, or strategy parallel"
        raise RequestError(message, "n")
    if count == 1 and fill.choices[:1] not in ((), (None,)):
        raise RequestError("choices are all compared without beam search; num_beams must be 1", "num_beams")


def check_begun(fill: Fill, prompt: Prompt, laid: Layout, job_context: JobContext) -> None:
    """Raises RequestError for known tokens past the model's positions, and if there is nothing to do."""
    if prompt.begun:
        if any(own is not None for own in fill.choices):
            raise RequestError("a blank with choices cannot begin with tokens", "choices")
        if any(text is not None for text in fill.regex):
            raise RequestError("a blank with a regex cannot begin with tokens", regex_param(fill.regex))
        more = min(fill.max_tokens[0], 1)
        job_context.check_span(len(prompt.begun) + more, laid.blanks[0], "text")
    elif not min(fill.max_tokens) and prompt.echo is None:
        raise RequestError("max_tokens is 0 and there is nothing to score", "max_tokens")


def check_alternatives(fill: Fill, prompts: Sequence[Prompt]) -> None:
    """Raises RequestError for more alternatives than an answer may hold. `prompts` has one for each sample."""
    scored = sum(len(p.echo.ids) for p in prompts if p.echo is not None)
    blanks = sum(isinstance(segment, Mask) for p in prompts for segment in p.segments)
    written = blanks * max(fill.max_tokens) * fill.num_beams
    for field, count, tokens in (
        ("logprobs", scored * (fill.logprobs or 0), "scored"),
        ("prompt_logprobs", scored * (fill.prompt_logprobs or 0), "scored"),
        ("logprob_token_ids", written * len(fill.logprob_token_ids), "written"),
    ):
        if count > MAX_ALTERNATIVES:
            limit = f"the limit is {MAX_ALTERNATIVES}"
            raise RequestError(f"{count} alternatives of {tokens} tokens are too many for one request; {limit}", field)


def per_blank(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    """One value per blank, from one value for all or one each."""
    return values * count if len(values) == 1 else values
