"""A completion as a stream: OpenAI's unnamed events, then `[DONE]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.answers import EchoedPrompt, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event
from server.exchange.streaming import data
from server.protocols.openai.logprobs import Logprobs, finish_reason
from server.protocols.openai.schemas import CompletionRequest
from server.wire.errors import ApiError

DONE = b"data: [DONE]\n\n"


class CompletionEvents:
    """The events of one request. `texts` are the prompts that an echo repeats; `head` are the fields of every event."""

    def __init__(self, body: CompletionRequest, texts: Sequence[str], head: Mapping[str, Any]) -> None:
        self.body = body
        self.texts = texts
        self.head = head
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._echoed: set[int] = set()
        self._num_sent: dict[int, int] = {}
        self._is_cut = False

    def event(self, event: Event) -> bytes:
        match event:
            case Begun():
                self._is_cut = event.fitted
            case Echoed():
                return self._echo(event.index, event.input_index, event.echo)
            case BlankDelta():
                return self._first(event) + self._delta(event)
            case BlankDone():
                return self._first(event) + self._last(event)
            case Done():
                counted = {**self.head, "choices": [], "usage": usage(event.usage)}
                return (data(counted) if self.with_usage else b"") + DONE
        return b""

    def error(self, error: ApiError) -> bytes:
        return data(error.body) + DONE

    def _first(self, event: BlankDelta | BlankDone) -> bytes:
        """The prompt, if it is to be repeated and was not scored."""
        if not self.body.echo or event.index in self._echoed:
            return b""
        return self._echo(event.index, event.input_index, None)

    def _echo(self, index: int, input_index: int, echo: EchoedPrompt | None) -> bytes:
        self._echoed.add(index)
        text = self.texts[input_index]
        if echo is None:
            return self._chunk(index, text, None)
        logprobs = Logprobs(self.body.as_ids)
        first = logprobs.add_prompt(echo)
        return self._chunk(index, text, logprobs, glm={"first_token_logprob": first})

    def _delta(self, event: BlankDelta) -> bytes:
        self._num_sent[event.index] = self._num_sent.get(event.index, 0) + len(event.tokens)
        at = len(self.texts[event.input_index])
        logprobs = Logprobs(self.body.as_ids)
        tokens = list(zip(event.token_ids, event.tokens, strict=True))
        logprobs.add(tokens, event.logprobs, event.top_logprobs, [at + o for o in event.text_offsets])
        return self._chunk(event.index, event.text, logprobs)

    def _last(self, event: BlankDone) -> bytes:
        logprobs = Logprobs(self.body.as_ids)
        sent = self._num_sent.get(event.index, 0)
        logprobs.add_span(event.blank, len(self.texts[event.input_index]), sent)
        vendor = {"glm": {"truncated": True}} if self._is_cut else {}
        return self._chunk(event.index, "", logprobs, finish_reason(event.blank), **vendor)

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: Logprobs | None,
        finish_reason: str | None = None,
        **vendor: dict[str, Any],
    ) -> bytes:
        shown = logprobs.wire() if logprobs is not None and self.body.logprobs is not None else None
        choice = {"index": index, "text": text, "logprobs": shown, "finish_reason": finish_reason, **vendor}
        counted = {"usage": None} if self.with_usage else {}
        return data({**self.head, "choices": [choice], **counted})


def usage(counts: Usage) -> dict[str, Any]:
    """The engine's counts in OpenAI's format."""
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }
