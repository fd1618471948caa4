"""The estimate: an upper bound of the tokens that a request may need, before it is tokenized.

Every token stands for at least one byte of UTF-8, and no input is longer than the model's limit. English text has about
a quarter of that many tokens.
"""

import math

from engine.events import ModelCard
from engine.requests import Fill, Mask, Request, Score, Segments, Tokens

# What a layout adds to a text: start and end tokens, a mask that is not there.
AROUND = 4


def most_tokens(work: Request, card: ModelCard) -> int:
    """The most tokens that a request can encode, generate and score."""
    return _fill(work, card) if isinstance(work, Fill) else _score(work, card)


def _fill(fill: Fill, card: ModelCard) -> int:
    num_tokens = 0
    for text in fill.inputs:
        blanks = max(sum(isinstance(segment, Mask) for segment in text), 1)
        lengths = fill.max_tokens * blanks if len(fill.max_tokens) == 1 else fill.max_tokens
        choices = fill.choices * blanks if len(fill.choices) == 1 else fill.choices or (None,) * blanks
        generated = sum(_written(*blank, fill.num_beams, card) for blank in zip(lengths, choices, strict=False))
        samples = fill.n if fill.num_beams == 1 else 1  # beams are searched once, however many are shown
        num_tokens += min(_bytes(text), card.max_context) + samples * generated
    return num_tokens


def _written(length: int, choices: tuple[str | Tokens, ...] | None, num_beams: int, card: ModelCard) -> int:
    """Tokens written for a blank: of one or several beams, or of all its choices."""
    if choices is None:
        return num_beams * min(length, card.max_span)
    return sum(min(_bytes((choice,)), length + 1) for choice in choices)


def _score(score: Score, card: ModelCard) -> int:
    if score.sentence_a is not None:
        return min(_bytes((score.sentence_a, score.sentence_b or "")), card.max_context)
    shared = score.text if score.spans is not None else score.context
    candidates: list[Segments] = [*(score.spans or ()), *((target,) for target in score.targets or ())]
    candidates = candidates or [score.text or ()]
    blanks = len(score.spans[0]) if score.spans else 1
    orders = score.orders
    if isinstance(orders, str):
        num_orders = math.factorial(blanks) if orders == "all" else 1
    else:
        num_orders = orders if isinstance(orders, int) else len(orders)
    scored = sum(min(_bytes((span,)), card.max_span + 1) for candidate in candidates for span in candidate)
    return min(_bytes(shared or ()), card.max_context) + num_orders * scored


def _bytes(segments: Segments) -> int:
    return sum(map(_length, segments)) + AROUND


def _length(segment: str | Tokens | Mask) -> int:
    if isinstance(segment, str):
        return len(segment.encode())
    return len(segment.ids) if isinstance(segment, Tokens) else 1
