"""A generation as TGI's stream: an event for each token, of which the last has the whole text.

How far a token's text goes, and which token is the last one, is known only behind it, so each waits for the next. The
texts of all tokens together are the generated text; the end token's is empty.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from engine.answers import Alternatives
from engine.events import Begun, BlankDelta, BlankDone, Event
from server.exchange.streaming import data
from server.protocols.hugging_face.error_body import error_body
from server.protocols.hugging_face.generated import (
    all_tokens,
    finish_reason,
    shown_text,
    token,
    top_tokens,
)
from server.protocols.hugging_face.schemas import TextGenerationRequest
from server.wire.errors import ApiError

# A token with the character that its text begins at.
Placed = tuple[int, dict[str, Any]]


class GenerationEvents:
    """The events of one request. `told` is what the last one has besides."""

    def __init__(self, body: TextGenerationRequest, told: Mapping[str, Any]) -> None:
        self.body = body
        self.told = {**told}
        self._text = ""
        self._num_tokens = self._num_input = 0
        self._waiting: deque[Placed] = deque()

    def event(self, event: Event) -> bytes:
        match event:
            case Begun():
                self._num_input = event.usage.prompt_tokens
                self.told |= {"truncated": True} if event.fitted else {}
            case BlankDelta():
                self._text += event.text
                tokens = map(token, event.token_ids, event.tokens, event.logprobs)
                self._add(event.text_offsets, tokens, event.top_logprobs)
                return self._ready()
            case BlankDone():
                return self._last(event)
        return b""

    def error(self, error: ApiError) -> bytes:
        return data(error_body(error))

    def _add(
        self, starts: Iterable[int], tokens: Iterable[dict[str, Any]], tops: Iterable[Alternatives] | None
    ) -> None:
        """Takes the next tokens."""
        shown = (
            [{"top_tokens": top_tokens(top)} for top in tops] if tops and self.body.parameters.top_n_tokens else None
        )
        for number, (start, one) in enumerate(zip(starts, tokens, strict=True)):
            self._num_tokens += 1
            self._waiting.append((start, {"index": self._num_tokens, "token": one, **(shown[number] if shown else {})}))

    def _ready(self) -> bytes:
        """The tokens whose text is all there, and which another one follows."""
        sent = b""
        while len(self._waiting) > 1 and self._waiting[1][0] <= len(self._text):
            sent += self._sent(self._waiting[1][0], None, None)
        return sent

    def _sent(self, end: int, text: str | None, details: dict[str, Any] | None) -> bytes:
        """The first of the tokens that wait, whose text goes to a character."""
        start, one = self._waiting.popleft()
        one["token"]["text"] = self._text[start:end]
        told = {} if text is None else self.told
        return data({**one, "generated_text": text, "details": details, **told})

    def _last(self, event: BlankDone) -> bytes:
        blank, sent = event.blank, self._num_tokens
        self._text = blank.text
        tokens, length = all_tokens(blank), len(self._text)
        starts = [*blank.text_offsets, *([length] if len(tokens) > len(blank.token_ids) else [])]
        tops = [*(blank.top_logprobs or ()), *([blank.end_top_logprobs] if blank.end_top_logprobs else ())]
        self._add(starts[sent:], tokens[sent:], tops[sent:])
        if not self._waiting:  # the time was over before the first token
            self._add([0], [token(0, "", 0.0, special=True)], None)
        given = self._ready()
        details = {
            "finish_reason": finish_reason(blank),
            "generated_tokens": self._num_tokens,
            "seed": self.body.parameters.seed,
            "input_length": self._num_input,
        }
        return given + self._sent(
            length, shown_text(self.body, blank), details if self.body.parameters.details else None
        )
