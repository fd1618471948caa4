"""A prompt: a text to continue, or with a suffix one side of a blank. Several protocols have it."""

from engine.events import ModelCard
from engine.requests import Mask, RequestError, Segments, Tokens
from server.exchange.bodies import at_most, count_blanks, split
from server.fim_templates import named_like
from server.settings import Limits


def part_a(prompt: str | Tokens, suffix: str | None, card: ModelCard, field: str = "prompt") -> Segments:
    """Part A. With a suffix, both sides are plain text; a single string may have one mask of its own. A string with the
    marks of a template stays whole: the blank rules say whether its masks are text.

    Raises RequestError for a suffix or masks that the model cannot fill.
    """
    if suffix is not None:
        if "[MASK]" not in card.masks:
            raise RequestError("this model cannot write between a prompt and a suffix", "suffix", "unsupported")
        return (prompt, Mask("[MASK]"), suffix)
    if isinstance(prompt, Tokens) or named_like(prompt) is not None:
        return (prompt,)
    return one_blank(prompt, field)


def one_blank(prompt: str, field: str = "prompt") -> Segments:
    """A text with its mask set apart. Raises RequestError for a second one."""
    segments = split(prompt)
    at_most(field, count_blanks(segments), 1, "masks, here, where one text is the answer")
    return segments


def most_tokens(asked: int | None, limits: Limits, card: ModelCard) -> int:
    """The most tokens to write: the requested number (None: no limit), within the limits of server and model."""
    most = min(limits.max_tokens, card.max_span)
    return most if asked is None else min(asked, most)
