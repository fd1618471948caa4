"""A prompt: a text that is continued, or with a suffix one side of a blank. Several protocols ask for a fill so."""

from engine.events import ModelCard
from engine.requests import Mask, RequestError, Segments, Tokens
from server.exchange.bodies import at_most, count_blanks, split
from server.settings import Limits


def part_a(prompt: str | Tokens, suffix: str | None, card: ModelCard) -> Segments:
    """Part A. Between a prompt and a suffix both are text, whatever they spell; a string without a suffix may have one
    mask of its own. Raises RequestError for a suffix or masks that cannot be had."""
    if suffix is not None:
        if "[MASK]" not in card.masks:
            raise RequestError("this model cannot write between a prompt and a suffix", "suffix", "unsupported")
        return (prompt, Mask("[MASK]"), suffix)
    if isinstance(prompt, Tokens):
        return (prompt,)
    segments = split(prompt)
    at_most("prompt", count_blanks(segments), 1, "masks, here, where one text is the answer")
    return segments


def most_tokens(asked: int | None, limits: Limits, card: ModelCard) -> int:
    """How many tokens to write at most: as many as are asked for (None: no limit), and the server and the model
    allow."""
    most = min(limits.max_tokens, card.max_span)
    return most if asked is None else min(asked, most)
