"""A fill or a score as a stream: the events of `/v1/infill` and `/v1/score`."""

from collections.abc import Mapping
from typing import Any

from engine.events import BlankDelta, BlankDone, Done, Event, ResultDone
from server.exchange.streaming import sse
from server.wire.answer import plain
from server.wire.errors import ApiError


class NamedEvents:
    """The events of a request, each with its name. `head` are the first fields of the answer."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self.head = head

    def event(self, event: Event) -> bytes:
        place = {"index": getattr(event, "index", 0), "input_index": getattr(event, "input_index", 0)}
        match event:
            case BlankDelta():
                text = {"text": event.text, "token_ids": event.token_ids, "logprobs": event.logprobs}
                return sse("blank.delta", {**place, "blank": event.blank, **text})
            case BlankDone():
                return sse("blank.done", {**place, "blank": event.blank})
            case ResultDone():
                return sse("result.done", plain(event.result))
            case Done():
                ranking = {} if event.ranking is None else plain(event.ranking)
                return sse("done", {**self.head, **ranking, "usage": event.usage})
        return b""

    def error(self, error: ApiError) -> bytes:
        return sse("error", error.body)
