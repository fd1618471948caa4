"""One blank being filled: its tokens so far, its text, and when it ends."""

from copy import copy

from engine.answers import FilledBlank
from engine.jobs.job import JobContext, Work, alternatives
from engine.schedule.batch import Scored
from model.layout import Blank, spelled_text
from model.tokenizer import NOTHING


class BlankFill:
    """One blank of one sample: its tokens so far and when it ends. `begun` are tokens that it had from the start."""

    def __init__(
        self,
        index: int,
        blank: Blank,
        max_tokens: int,
        min_tokens: int,
        stop: tuple[str, ...],
        begun: tuple[int, ...] = (),
    ) -> None:
        self.index = index
        self.blank = blank
        self.begun = begun
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.stop = stop
        self.tokens: list[Scored] = []
        self.token_ids: list[int] = []  # theirs
        self.offsets: list[int] = []
        self.text = ""
        self.end: Scored | None = None
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self.choice_logprobs: list[float] | None = None
        self.sent_text = self.sent_tokens = 0
        self.counted_tokens, self.is_counted = 0, False
        self._spelled = NOTHING  # by all tokens, those it began with first
        self._begun_text = 0  # characters of those

    def accept(self, token: Scored, job_context: JobContext) -> None:
        """Takes the next drawn token; sets `finish_reason` if it is the last."""
        if token.token_id in job_context.tokenizer.ends:
            self.end = token
            self.finish_reason = "stop"
            return
        self._add(token, job_context)
        found = [(at, s) for at, s in ((self.text.find(s), s) for s in self.stop) if at >= 0]
        if found:
            at, self.stop_string = min(found)
            self.text = self.text[:at]
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def copy(self) -> "BlankFill":
        """Another one that goes on from here by itself."""
        fill = copy(self)
        fill.tokens, fill.token_ids, fill.offsets = list(self.tokens), list(self.token_ids), list(self.offsets)
        return fill

    def choose(
        self, text: str, tokens: list[Scored], end: Scored | None, logprobs: list[float], job_context: JobContext
    ) -> None:
        """Takes one of some choices; `logprobs` are what each of them is worth, its end included."""
        for token in tokens:
            self._add(token, job_context)
        self.text = text  # as it was asked for, also where the tokenizer folds characters
        self.end, self.finish_reason, self.choice_logprobs = end, "choice", logprobs

    def count(self, work: Work) -> None:
        """Adds to the work what is new since the last time."""
        work.generated_tokens += len(self.tokens) - self.counted_tokens
        self.counted_tokens = len(self.tokens)
        if self.finish_reason is not None and not self.is_counted:
            work.blanks += 1
            self.is_counted = True

    def _add(self, token: Scored, job_context: JobContext) -> None:
        self.offsets.append(len(self.text.rstrip("\ufffd")))
        tokenizer = job_context.tokenizer
        if self.begun and not self.tokens:
            self._spelled = tokenizer.spell(self.begun)
            self._begun_text = len(spelled_text(self._spelled, self.blank, tokenizer).rstrip("\ufffd"))
        self.tokens.append(token)
        self.token_ids.append(token.token_id)
        self._spelled = tokenizer.spell((token.token_id,), self._spelled)
        self.text = spelled_text(self._spelled, self.blank, tokenizer)[self._begun_text :]

    def fresh_text(self) -> str:
        """Text not sent yet that no later token can change: neither a part of a character nor of a stop string."""
        text = self.text
        if self.finish_reason is None:
            text = text.rstrip("\ufffd")
            held = max((len(s) for s in self.stop), default=1) - 1
            text = text[: len(text) - held] if held else text
        fresh = text[self.sent_text :]
        self.sent_text += len(fresh)
        return fresh

    def answer(self, start: int, job_context: JobContext, with_top: bool) -> FilledBlank:
        """The blank as it is now, whose mask starts at a character of the request's text."""
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
            top_logprobs=alternatives([t.top for t in self.tokens], tokenizer) if with_top else None,
            text_offsets=[min(at, len(self.text)) for at in self.offsets],
            end_token=None if end is None else tokenizer.piece(end.token_id),
            end_logprob=None if end is None else end.logprob,
            end_top_logprobs=alternatives([end.top], tokenizer)[0] if end and with_top else None,
            stop_string=self.stop_string,
            finish_reason=self.finish_reason,
            choice_logprobs=self.choice_logprobs,
        )
