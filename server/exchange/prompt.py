"""A prompt: a text to continue, or with a suffix one side of a blank. Several protocols have it."""

from collections.abc import Mapping

from engine.client import EngineClient
from engine.events import ModelCard
from engine.readings import Reading
from engine.requests import Fill, Mask, RequestError, Segments, Tokens
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


async def prompt_text(prompt: str | Tokens, engine: EngineClient, finished: bool = False) -> str:
    """The text of a prompt: a string unchanged, ids detokenized, `finished` without an unfinished character at the end.
    Raises RequestError for an id outside the vocabulary."""
    if isinstance(prompt, str):
        return prompt
    try:
        return await engine.detokenize(list(prompt.ids), special=True, finished=finished)
    except RequestError as error:
        raise RequestError(error.message, "prompt", error.code) from None


async def readings(fill: Fill, engine: EngineClient, names: Mapping[str, str]) -> list[Reading]:
    """The inputs of a fill that writes nothing, as the model reads them. Raises RequestError with the client's names of
    fields."""
    try:
        return await engine.read(fill)
    except RequestError as error:
        raise RequestError(error.message, names.get(error.param or "", error.param), error.code) from None


def most_tokens(asked: int | None, limits: Limits, card: ModelCard) -> int:
    """The most tokens to write: the requested number (None: no limit), within the limits of server and model."""
    most = min(limits.max_tokens, card.max_span)
    return most if asked is None else min(asked, most)
