"""The prompts of completions: inputs that are token ids, and inputs whose own tokens are scored.

In token ids, `<sop>` starts part B; the ids before it, with one mask, are part A. A `<sop>` at the very start only
begins the text. A prompt that is scored alone stands in the place of `[gMASK]` and is read from left to right, as GLM
measures its language modelling loss (arXiv 2103.10360, section 3.3).
"""

from dataclasses import dataclass, replace
from itertools import groupby

from engine.jobs.fitting import fitted
from engine.jobs.job import JobContext
from engine.readings import LaidBlank, Reading
from engine.requests import Fill, Mask, RequestError, Segments, Tokens
from model.layout import Blank, Layout
from model.tokenizer import Decoder


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a prompt, their offsets in its text in characters, and the number of tokens before the scored
    ones."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    num_context: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """An input that is ready for its layout. Its one blank begins with the tokens `begun`. `fitted`: it was cut.

    The fill continues the text of `before`; if that ends inside a character, the fill completes the character.
    `num_tokens` counts the tokens that the model reads, whether the prompt is scored or not.
    """

    segments: Segments
    begun: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    echo: Echo | None = None
    fitted: bool = False
    num_tokens: int = 0


def read_input(fill: Fill, given: Segments, job_context: JobContext, scored: bool = False) -> tuple[Prompt, Layout]:
    """An input of a fill and its layout. `scored`: the text in its blanks is known.

    Raises RequestError for an input that the model cannot read.
    """
    prompt = read_prompt(given, fill.echo, job_context)
    if fill.fit:
        segments, shorter = fitted(prompt.segments, fill.max_tokens[0], job_context)
        prompt = replace(prompt, segments=segments, fitted=shorter)
    # A scored text has no end token if the family's evaluation has none.
    laid = job_context.lay_out(prompt.segments, "text", scored=scored or fill.echo)
    num_read = job_context.num_read(laid) + len(prompt.begun)
    if prompt.echo is not None:
        num_read = _num_read(_continued(given[0], prompt.echo.ids, job_context), job_context) or num_read
    return replace(prompt, num_tokens=num_read), laid


def reading(fill: Fill, given: Segments, job_context: JobContext, scored: bool) -> Reading:
    """An input of a fill as the model reads it. Raises RequestError for one that it cannot read."""
    prompt, laid = read_input(fill, given, job_context, scored)
    ids = list(laid.token_ids)
    return Reading(
        token_ids=ids,
        positions=list(range(len(ids))),
        block_positions=[0] * len(ids),
        blanks=[_laid_blank(blank, job_context.card.causal) for blank in laid.blanks],
        begun=list(prompt.begun),
        num_tokens=prompt.num_tokens,
        fitted=prompt.fitted,
    )


def _laid_blank(blank: Blank, own_context: bool) -> LaidBlank:
    return LaidBlank(
        mask=blank.mask,
        spaced=blank.spaced,
        start_token_id=blank.start,
        position=blank.position,
        block_position=blank.block,
        position_step=blank.stride[0],
        block_position_step=blank.stride[1],
        context=list(blank.context) if own_context else None,
    )


def _continued(whole: str | Tokens | Mask, ids: tuple[int, ...], job_context: JobContext) -> tuple[int, ...]:
    """The ids of a scored prompt as they are if it is only gone on from: the mask behind a text swallows its space."""
    tokenizer = job_context.tokenizer
    if not isinstance(whole, str) or any(i in tokenizer.masks.values() for i in ids):
        return ids
    short = tokenizer.before_mask(whole)
    return ids if short == whole else tuple(job_context.spelling.tokenize(short))


def _num_read(ids: tuple[int, ...], job_context: JobContext) -> int:
    """The tokens of a prompt by ids that is gone on from; 0 for one that the model could not go on from."""
    context, begun = _parted(ids, job_context)
    segments = _masked(context, job_context)
    if not any(isinstance(s, Mask) for s in segments):
        segments = (*segments, job_context.open_mask)
    try:
        return job_context.num_read(job_context.laid(segments, "text")) + len(begun or ())
    except RequestError:
        return 0


def read_prompt(given: Segments, echo: bool, job_context: JobContext) -> Prompt:
    """An input with masks as segments of their own. An input without a mask gets the open mask at its end.

    Raises RequestError for token ids that cannot be read, and for a prompt that cannot be scored.
    """
    if echo:
        return _read_echo(given, job_context)
    segments, begun = unpacked(given, "text", job_context)
    if not any(isinstance(s, Mask) for s in segments):
        segments = (*segments, job_context.open_mask)
    blank = next((n for n, s in enumerate(given) if isinstance(s, Mask)), len(given))
    last = given[blank - 1] if blank else ""
    ids = last.ids if isinstance(last, Tokens) else ()
    return Prompt(segments, begun, _before(ids, bool(begun), job_context))


def unpacked(given: Segments, param: str, job_context: JobContext) -> tuple[Segments, tuple[int, ...]]:
    """Segments with the masks among token ids as segments of their own, and the tokens behind a `<sop>`.

    Raises RequestError for ids outside the vocabulary, for several masks, and for a misplaced `<sop>`.
    """
    segments: list[str | Tokens | Mask] = []
    begun: tuple[int, ...] = ()
    for segment in given:
        if isinstance(segment, Tokens):
            job_context.check_ids(segment.ids, param)
            ids, behind = _parted(segment.ids, job_context)
            begun = behind or ()
            if begun and len(given) > 1:
                raise RequestError("tokens with a start token must be the whole text", param)
            apart = _masked(ids, job_context)
            if sum(isinstance(s, Mask) for s in apart) > 1:
                raise RequestError("tokens with more than one mask cannot be filled; give a text", param)
            segments += apart
        else:
            segments.append(segment)
    return tuple(segments), begun


def _read_echo(given: Segments, job_context: JobContext) -> Prompt:
    if job_context.card.masked:
        raise RequestError("this model cannot score a prompt from left to right", "echo", "unsupported")
    (whole,) = given
    assert not isinstance(whole, Mask)
    if isinstance(whole, Tokens):
        job_context.check_ids(whole.ids, "text")
        ids = whole.ids
    else:
        ids = tuple(job_context.spelling.tokenize(whole))
    # Context and continuation have limits of their own. A text over both together needs no further check.
    if len(ids) > job_context.card.max_context + job_context.card.max_span:
        message = f"the text has {len(ids)} tokens; the limit is {job_context.card.max_span}"
        raise RequestError(message, "text", "context_length_exceeded")
    starts = job_context.spelling.starts_of(ids) if isinstance(whole, Tokens) else job_context.spelling.starts(whole)
    context, begun = _parted(ids, job_context)
    segments = _masked(context, job_context)
    if begun is None:
        # Without a start token behind it, a mask is an ordinary token: texts about masks are scored too.
        segments, begun = (job_context.open_mask,), context
    elif not begun:
        raise RequestError("nothing follows the start token <sop> of the prompt that is to be scored", "text")
    echo = Echo(ids, tuple(starts), len(ids) - len(begun))
    return Prompt(segments, begun, _before(ids, True, job_context), echo)


def _before(ids: tuple[int, ...], is_begun: bool, job_context: JobContext) -> tuple[int, ...]:
    """The text that a fill continues: its known beginning, else a prompt that ends inside a character."""
    tail = job_context.spelling.tail(ids)
    decoder = Decoder(job_context.tokenizer)
    decoder.extend(tail)
    return tail if is_begun or decoder.pending else ()


def _parted(ids: tuple[int, ...], job_context: JobContext) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The ids before a start token and the ids behind it; None if there is no start token with a mask before it."""
    sop = job_context.tokenizer.special.get("sop", -1)
    if ids[:1] == (sop,):
        ids = _behind_start(ids[1:], job_context)
    at = ids.index(sop) if sop in ids else 0
    num_masks = sum(i in job_context.tokenizer.masks.values() for i in ids[:at])
    if num_masks > 1:
        raise RequestError(f"the start token <sop> needs one mask before it, there are {num_masks}", "text")
    return (ids[:at], _behind_start(ids[at + 1 :], job_context)) if num_masks else (ids, None)


def _behind_start(ids: tuple[int, ...], job_context: JobContext) -> tuple[int, ...]:
    """The ids behind a start token, without those that the model's own layout has there before the text."""
    (blank,) = job_context.laid((job_context.open_mask,), "text").blanks
    prompt = (*blank.context, blank.start)
    sop = job_context.tokenizer.special["sop"]
    own = prompt[prompt.index(sop) + 1 :] if sop in prompt else ()
    return ids[len(own) :] if ids[: len(own)] == own else ids


def _masked(ids: tuple[int, ...], job_context: JobContext) -> Segments:
    names = {i: name for name, i in job_context.tokenizer.masks.items()}
    segments: list[Tokens | Mask] = []
    for name, run in groupby(ids, names.get):
        same = tuple(run)
        segments += [Mask(name)] * len(same) if name else [Tokens(same)]
    return tuple(segments)
