"""Fitting: it cuts the text that is farthest from its one blank, so that an editor's file fits the model."""

from engine.jobs.job import JobContext
from engine.requests import Mask, RequestError, Segments, Tokens
from model.offsets import offsets

# A quarter of the length is for the text behind the blank, if both sides have more than fits.
_AFTER = 4
_ROUNDS = 8
# Characters per token that are read at most, so that a whole library costs no more than a page.
_CHARS = 64


def fitted(segments: Segments, max_tokens: int, job_context: JobContext) -> tuple[Segments, bool]:
    """The segments, cut if they do not fit, and whether they were cut.

    It does not cut a text with several blanks or of token ids; if that is too long, the layout refuses it. A causal
    model writes behind the text, so `max_tokens` positions stay free, up to a quarter of them. Raises RequestError for
    a text that cannot be cut far enough.
    """
    if sum(isinstance(s, Mask) for s in segments) > 1 or any(isinstance(s, Tokens) for s in segments):
        return segments, False
    limit = job_context.card.max_context
    if job_context.card.causal:
        limit -= min(max_tokens, limit // 4)
    at = next((n for n, s in enumerate(segments) if isinstance(s, Mask)), len(segments))
    mask = segments[at : at + 1]
    before = "".join(s for s in segments[:at] if isinstance(s, str))
    after = "".join(s for s in segments[at + 1 :] if isinstance(s, str))
    short = before[-_CHARS * limit :], after[: _CHARS * limit]
    is_short = short == (before, after)
    before, after = short
    segments = segments if is_short else (before, *mask, after)
    length = job_context.length(segments, "text")
    if length <= limit:
        return segments, not is_short
    encode = job_context.tokenizer.encode
    before_ids, after_ids = encode(before), encode(after)
    starts = [*offsets(before, before_ids, job_context.tokenizer), len(before)]
    ends = [*offsets(after, after_ids, job_context.tokenizer), len(after)]
    room = limit - (length - len(before_ids) - len(after_ids))
    for _ in range(_ROUNDS):
        room = max(room, 0)
        num_after = min(len(after_ids), max(room // _AFTER, room - len(before_ids)))
        num_before = min(len(before_ids), room - num_after)
        cut = before[starts[len(before_ids) - num_before] :], after[: ends[num_after]]
        shorter = (cut[0], *mask, cut[1])
        excess = job_context.length(shorter, "text") - limit
        if excess <= 0:
            return shorter, True
        # A text that is cut elsewhere may have other tokens.
        room -= excess
    raise RequestError("the text cannot be cut to the length limit of this model", "text", "context_length_exceeded")
