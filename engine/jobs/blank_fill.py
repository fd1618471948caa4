"""The fill of one blank: its tokens, its text and its end."""

from bisect import bisect_left
from copy import copy

from engine.answers import Alternative, Alternatives, FilledBlank
from engine.jobs.job import JobContext, Work
from engine.requests import Sampling
from engine.schedule.batch import Scored
from model.layout import Blank
from model.offsets import aligned
from model.tokenizer import Decoder, Tokenizer


class BlankFill:
    """One blank of one sample: its tokens so far, and the condition of its end.

    `begun` are known tokens at its start. `decoder` may have an unfinished character, which the fill completes.
    `with_top`: the answer shows alternatives and bytes of tokens, so they are kept.
    """

    def __init__(
        self,
        index: int,
        blank: Blank,
        max_tokens: int,
        min_tokens: int,
        sampling: Sampling,
        decoder: Decoder,
        begun: tuple[int, ...] = (),
        with_top: bool = False,
    ) -> None:
        self.index = index
        self.blank = blank
        self.begun = begun
        self.with_top = with_top
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.stop = sampling.stop
        self.sampling = sampling
        self.tokens: list[Scored] = []
        self.token_ids: list[int] = []  # theirs
        self.tops: list[Alternatives] = []
        self.raw: list[list[int] | None] = []
        self.end: Scored | None = None
        self.end_top: Alternatives = []
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.choice_logprobs: list[float] | None = None
        self.choice_ids: tuple[tuple[int, ...], ...] | None = None
        self.sent_text = self.sent_tokens = 0
        self.counted_tokens, self.is_counted = 0, False
        self._decoder = decoder
        self._offsets: list[int] = []
        self._searched = 0  # characters in which no stop string ends that counts
        self._settled: str | None = None  # the text, where it is not simply that of the tokens

    @property
    def text(self) -> str:
        """The text so far. An unfinished character at its end is U+FFFD."""
        return self._decoder.whole if self._settled is None else self._settled

    @property
    def offsets(self) -> list[int]:
        """Offset of each token, in characters of the text."""
        length = len(self.text)
        return [min(at, length) for at in self._offsets]

    @property
    def num_shown(self) -> int:
        """Number of tokens whose text is sent, at least in part; at the end all tokens."""
        return bisect_left(self._offsets, self.sent_text) if self.finish_reason is None else len(self.tokens)

    def accept(self, token: Scored, job_context: JobContext) -> None:
        """Adds the next drawn token, and sets `finish_reason` if it is the last one."""
        is_stop = token.token_id in self.sampling.stop_token_ids
        if token.token_id in job_context.tokenizer.ends or (is_stop and not self.sampling.include_stop):
            self.end, self.end_top = token, self._alternatives(token, job_context.tokenizer)
            self.finish_reason = "stop"
            return
        self._add(token, job_context.tokenizer)
        found = self._find_stop()
        if found is not None:
            at, self.stop_string = found
            self._settled = self.text[: at + (len(self.stop_string) if self.sampling.include_stop else 0)]
            self.finish_reason = "stop"
        elif is_stop:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def banned(self, job_context: JobContext) -> tuple[int, ...]:
        """The ids that are not allowed now."""
        ends = job_context.tokenizer.ends
        if len(self.tokens) < self.min_tokens:
            return (*ends, *self.sampling.stop_token_ids)
        return ends if self.sampling.ignore_eos else ()

    def copy(self) -> "BlankFill":
        """An independent copy."""
        fill = copy(self)
        fill.tokens, fill.token_ids, fill._offsets = list(self.tokens), list(self.token_ids), list(self._offsets)
        fill.tops, fill.raw, fill._decoder = list(self.tops), list(self.raw), self._decoder.copy()
        return fill

    def choose(
        self, text: str, tokens: list[Scored], end: Scored | None, logprobs: list[float], job_context: JobContext
    ) -> None:
        """Takes one of its choices. `logprobs` has the log-probability of each choice, with the end token."""
        for token in tokens:
            self._add(token, job_context.tokenizer)
        self._offsets = aligned(text, self.text, self._offsets)
        self._settled = text  # as it was asked for, also where the tokenizer folds characters
        self.end, self.finish_reason, self.choice_logprobs = end, "choice", logprobs
        self.end_top = [] if end is None else self._alternatives(end, job_context.tokenizer)

    @property
    def num_tokens(self) -> int:
        """Number of computed tokens, the end token included."""
        return len(self.tokens) + (self.end is not None)

    def count(self, work: Work) -> None:
        """Adds the tokens since the last call to the work."""
        work.generated_tokens += self.num_tokens - self.counted_tokens
        self.counted_tokens = self.num_tokens
        if self.finish_reason is not None and not self.is_counted:
            work.blanks += 1
            self.is_counted = True

    def fresh_text(self) -> str:
        """The unsent text that later tokens cannot change: no part of a character and no part of a stop string."""
        is_over, final = self.finish_reason is not None, self._decoder.text
        fresh = (self.text if is_over else final[: len(final) - self._held()])[self.sent_text :]
        self.sent_text += len(fresh)
        return fresh

    def answer(self, start: int, job_context: JobContext) -> FilledBlank:
        """The blank so far. `start` is the offset of its mask, in characters of the request's text."""
        tokenizer, end = job_context.tokenizer, self.end
        return FilledBlank(
            index=self.index,
            mask=self.blank.mask,
            start=start,
            end=start + len(self.blank.mask),
            text=self.text,
            token_ids=self.token_ids,
            tokens=[tokenizer.piece(i) for i in self.token_ids],
            logprob=sum(t.logprob for t in self.tokens),
            token_logprobs=[t.logprob for t in self.tokens],
            top_logprobs=self.tops if self.with_top else None,
            text_offsets=self.offsets,
            end_token=None if end is None else tokenizer.piece(end.token_id),
            end_logprob=None if end is None else end.logprob,
            end_top_logprobs=self.end_top if end and self.with_top else None,
            stop_string=self.stop_string,
            finish_reason=self.finish_reason,
            choice_logprobs=self.choice_logprobs,
            raw=self.raw,
            choice_ids=self.choice_ids,
            end_token_id=None if end is None else end.token_id,
        )

    def _add(self, token: Scored, tokenizer: Tokenizer) -> None:
        if self.with_top:
            self.tops.append(self._alternatives(token, tokenizer))
            self.raw.append(self._raw(token.token_id, tokenizer))
        self.tokens.append(token)
        self.token_ids.append(token.token_id)
        self._offsets.append(self._decoder.add(token.token_id))

    def _alternatives(self, token: Scored, tokenizer: Tokenizer) -> Alternatives:
        """The best tokens beside one that comes next."""
        return [Alternative(i, tokenizer.piece(i), p, self._raw(i, tokenizer)) for i, p in token.top]

    def _raw(self, token_id: int, tokenizer: Tokenizer) -> list[int] | None:
        """The bytes that a token would add here, unless its name says so."""
        data = self._decoder.spell(token_id)
        return None if data == tokenizer.piece(token_id).encode() else list(data)

    def _find_stop(self) -> tuple[int, str] | None:
        """The first stop string that ends in the text of the newest token, and where it begins.

        In the text of the first `min_tokens` tokens none may end (vLLM, v1/engine/detokenizer.py).
        """
        text, start = self._decoder.text, self._searched
        self._searched = len(text)
        if len(self.tokens) <= self.min_tokens:
            return None
        found = ((text.find(s, max(start - len(s) + 1, 0)), s) for s in self.stop)
        return min(((at, s) for at, s in found if at >= 0), default=None)

    def _held(self) -> int:
        """How many characters at the end of the final text may yet belong to a stop string."""
        if self.min_tokens >= self.max_tokens:
            return 0
        text, num_free = self._decoder.text, self.min_tokens - len(self.tokens)
        return max((_overlap(text, s, num_free) for s in self.stop), default=0)


def _overlap(text: str, stop: str, num_free: int) -> int:
    """The longest end of a text with which a stop string may begin that ends behind `num_free` more tokens.

    A token has a byte at least, so that a stop string that lacks no more bytes than that ends within those tokens.
    """
    at = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
    while at >= 0:
        length = len(text) - at
        if stop.startswith(text[at:]) and len(stop[length:].encode()) > num_free:
            return length
        at = text.find(stop[0], at + 1)
    return 0
