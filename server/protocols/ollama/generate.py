"""`POST /api/generate`: the text behind a prompt, or between a prompt and a suffix, as lines of JSON."""

import time
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
from server.exchange.service import Service, service_of
from server.exchange.streaming import EventStream, Stream
from server.exchange.takes import takes
from server.exchange.token_logprobs import Objects, of_blank, of_delta
from server.protocols.ollama.error_body import error_body
from server.protocols.ollama.named_model import named_model
from server.protocols.ollama.schemas import GenerateOptions, GenerateRequest
from server.protocols.ollama.timestamp import timestamp
from server.wire.answer import Answer, encode
from server.wire.body import read_object
from server.wire.errors import ApiError

PATH = "/api/generate"
# What the engine calls the fields of a request.
NAMES = {"text": "prompt", "max_tokens": "options.num_predict", "json_schema": "format"}
LINES = "application/x-ndjson"

router = APIRouter()


@router.post(PATH, openapi_extra=takes(GenerateRequest), tags=["clients"])
async def generate(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Ollama's generation: text behind a prompt, or between a prompt and a suffix."""
    settings, engine = service.settings, service.engine
    raw = await read_object(request, settings.body_seconds, bare=True)
    service.ignored.note(PATH, raw.keys() - names(GenerateRequest))
    body = GenerateRequest.model_validate(raw)
    unknown = (raw.get("options") or {}).keys() - names(GenerateOptions)
    service.ignored.note(PATH, (f"options.{name}" for name in unknown))
    adapter = named_model(engine, body.model)
    work = ruled(service, request, replace(body.fill(settings.limits, engine.card), adapter=adapter), editor=True)
    lines = Lines(adapter or engine.card.name, work.logprobs is not None, warned(request))
    if not body.prompt and body.behind is None:
        # So a client has a model loaded before it is needed. It is.
        return Answer(lines.line("", done=True, done_reason="load"))
    events = submit(service, request, work, f"generate-{uuid4().hex}", NAMES)
    if body.stream:
        heartbeat = encode(lines.line("")) + b"\n"
        return EventStream(service, Stream(events, lines, request.state.request_id, LINES, heartbeat))
    (result,), done = await complete(service, request, events)
    assert isinstance(result, FillResult)
    (blank,) = result.blanks
    return Answer(lines.last(blank.text, blank, of_blank(blank), done, bool(result.fitted)))


class Lines:
    """The events of one request as lines: pieces of text, then the reason of the end with counts and times."""

    def __init__(self, model: str, with_logprobs: bool, warnings: dict[str, list[str]]) -> None:
        self.model = model
        self.with_logprobs = with_logprobs
        self.warnings = warnings
        self.began = time.monotonic_ns()
        self._num_sent = 0
        self._truncated = False
        self._blank: FilledBlank | None = None

    def line(self, text: str, done: bool = False, **more: Any) -> dict[str, Any]:
        """One line: an answer, or a piece of one."""
        return {"model": self.model, "created_at": timestamp(time.time()), "response": text, "done": done, **more}

    def last(self, text: str, blank: FilledBlank, logprobs: Objects, done: Done, truncated: bool) -> dict[str, Any]:
        """The last line, which is the only one of an unstreamed answer. Times are in nanoseconds."""
        total = time.monotonic_ns() - self.began
        first = min(int(done.first_token_s * 1e9), total)
        return self.line(
            text,
            done=True,
            done_reason="length" if blank.finish_reason in ("length", "deadline") else "stop",
            truncated=truncated,
            total_duration=total,
            load_duration=0,
            prompt_eval_count=done.usage.prompt_tokens,
            prompt_eval_duration=first,
            eval_count=done.usage.completion_tokens,
            eval_duration=total - first,
            **self._shown(logprobs),
            **self.warnings,
        )

    def event(self, event: Event) -> bytes:
        match event:
            case Begun():
                self._truncated = event.fitted
            case BlankDelta():
                self._num_sent += len(event.tokens)
                return _wire(self.line(event.text, **self._shown(of_delta(event))))
            case BlankDone():
                self._blank = event.blank
            case Done():
                assert self._blank is not None
                rest = of_blank(self._blank, self._num_sent)
                return _wire(self.last("", self._blank, rest, event, self._truncated))
        return b""

    def error(self, error: ApiError) -> bytes:
        return _wire(error_body(error))

    def _shown(self, logprobs: Objects) -> dict[str, Any]:
        return {"logprobs": logprobs} if self.with_logprobs else {}


def _wire(line: dict[str, Any]) -> bytes:
    return encode(line) + b"\n"
