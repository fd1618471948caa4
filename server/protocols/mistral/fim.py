"""`POST /v1/fim/completions`: the text between a prompt and a suffix, in an answer of a chat's shape."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from engine.answers import FilledBlank, FillResult
from engine.events import Begun, BlankDelta, BlankDone, Done, Event
from server.exchange.blank_rules import ruled, warned
from server.exchange.bodies import names
from server.exchange.exchange import complete, submit
from server.exchange.named_adapter import named_adapter
from server.exchange.nothing import nothing
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream, data
from server.exchange.takes import takes
from server.exchange.token_logprobs import Objects, of_blank, of_delta
from server.protocols.mistral.schemas import FimRequest
from server.protocols.openai.completion_stream import DONE, usage
from server.wire.answer import Answer
from server.wire.body import read_object
from server.wire.errors import ApiError

PATH = "/v1/fim/completions"
# What the engine calls the fields of a request.
NAMES = {"text": "prompt"}
ENDS = {"deadline": "length"}

router = APIRouter()


@router.post(PATH, openapi_extra=takes(FimRequest), tags=["clients"])
async def fim(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Mistral's fill-in-the-middle: text between a prompt and a suffix."""
    settings, engine = service.settings, service.engine
    raw = await read_object(request, settings.body_seconds)
    service.ignored.note(PATH, raw.keys() - names(FimRequest))
    body = FimRequest.model_validate(raw)
    adapter = named_adapter(engine, body.model)
    work = ruled(service, request, replace(body.fill(settings.limits, engine.card), adapter=adapter), editor=True)
    work_id = f"fim-{uuid4().hex}"
    head = {"id": work_id, "created": int(time.time()), "model": adapter or engine.card.name, **warned(request)}
    if body.max_tokens == 0:
        events = nothing(work, engine, work_id, NAMES)
    else:
        events = submit(service, request, work, work_id, NAMES)
    if body.stream:
        return EventStream(service, Stream(events, Chunks(head, work.logprobs is not None), request.state.request_id))
    (result,), done = await complete(service, request, events)
    assert isinstance(result, FillResult)
    (blank,) = result.blanks
    message = {"role": "assistant", "content": blank.text, "tool_calls": None}
    choice = {"index": 0, "message": message, "finish_reason": _reason(blank)}
    if work.logprobs is not None:
        choice["logprobs"] = {"content": of_blank(blank)}
    head |= {"object": "chat.completion"}
    return Answer({**head, "choices": [choice], "usage": usage(done.usage), "truncated": bool(result.fitted)})


class Chunks:
    """The events of one request as chunks of a chat. The last chunk has the reason and the usage; `[DONE]` follows."""

    def __init__(self, head: Mapping[str, Any], with_logprobs: bool) -> None:
        self.head = {**head, "object": "chat.completion.chunk"}
        self.with_logprobs = with_logprobs
        self._num_sent = 0
        self._truncated = False
        self._last: FilledBlank | None = None

    def event(self, event: Event) -> bytes:
        match event:
            case Begun():
                self._truncated = event.fitted
                return self._chunk({"role": "assistant", "content": ""}, [])
            case BlankDelta():
                self._num_sent += len(event.tokens)
                return self._chunk({"content": event.text}, of_delta(event))
            case BlankDone():
                self._last = event.blank
            case Done():
                assert self._last is not None
                rest = of_blank(self._last, self._num_sent)
                more = {"usage": usage(event.usage), "truncated": self._truncated}
                return self._chunk({"content": ""}, rest, _reason(self._last), **more) + DONE
        return b""

    def error(self, error: ApiError) -> bytes:
        return data(error.body) + DONE

    def _chunk(self, delta: dict[str, str], logprobs: Objects, reason: str | None = None, **more: Any) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        if self.with_logprobs:
            choice["logprobs"] = {"content": logprobs}
        return data({**self.head, "choices": [choice], **more})


def _reason(blank: FilledBlank) -> str:
    reason = blank.finish_reason or "stop"
    return ENDS.get(reason, reason)
