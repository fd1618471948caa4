"""A prompt: a text to continue, or with a suffix one side of a blank. Several protocols have it."""

from engine.events import ModelCard
from engine.requests import Mask, RequestError, Segments, Tokens
from server.exchange.bodies import at_most, count_blanks, split
from server.settings import Limits


def part_a(prompt: str | Tokens, suffix: str | None, card: ModelCard) -> Segments:
    """Part A. With a suffix, both sides are plain text; a single string may have one mask of its own.

    Raises RequestError for a suffix or masks that the model cannot fill.
    """
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
    """The most tokens to write: the requested number (None: no limit), within the limits of server and model."""
    most = min(limits.max_tokens, card.max_span)
    return most if asked is None else min(asked, most)
