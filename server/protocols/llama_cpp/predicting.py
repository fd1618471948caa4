"""The answer to `/infill` and `/completion`: one object, several, or a stream of pieces."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import Request
from starlette.responses import Response

from engine.answers import EMPTY, Usage
from engine.client import EngineClient
from engine.events import BlankDelta, BlankDone, Done, Event, Failed
from engine.requests import Fill, Mask, Segments, Tokens
from server.exchange.blank_rules import ruled, warned
from server.exchange.exchange import Events, attended, submit
from server.exchange.prompt import prompt_text, readings
from server.exchange.service import Service
from server.exchange.streaming import EventStream, Stream, data
from server.protocols.llama_cpp.editing import Completion, Edit, edited, wire
from server.protocols.llama_cpp.error_body import error_body
from server.protocols.llama_cpp.schemas import Prediction
from server.wire.answer import Answer
from server.wire.errors import ApiError


async def predict(
    service: Service, request: Request, body: Prediction, segments: Segments, text_field: str
) -> Response:
    """Fills the blank of the segments. `text_field` is the client's name of their text.

    Raises ApiError or RequestError for work that is not admitted or fails.
    """
    limits, card = service.settings.limits, service.engine.card
    # Editors send whatever name they were given: only that of an adapter means something.
    adapter = next((a.name for a in service.engine.adapters if a.name == body.model), None)
    ids = {text: await service.engine.tokenize(text, masks=False) for text in body.biased_texts}
    work = replace(body.fill(segments, limits, card, body.biases(limits, ids)), adapter=adapter)
    work = ruled(service, request, work, editor=True)
    edit = Edit([Completion() for _ in range(body.n_cmpl)], time.monotonic())
    fields = {
        "id_slot": body.id_slot,
        "model": adapter or card.name,
        "prompt": "".join([await _shown(service, segment) for segment in work.inputs[0]]),
        "generation_settings": body.settings(limits, card),
        **warned(request),
    }
    answers = EditEvents(body, edit, fields)
    names = {"text": text_field, "max_tokens": "n_predict"}
    if body.num_tokens(limits, card):
        events = submit(service, request, work, f"infill-{uuid4().hex}", names)
        events = edited(events, edit, body.n_indent, body.t_max_predict_ms)
    else:
        events = _nothing(work, service.engine, edit, names)
    if body.stream:
        return EventStream(service, Stream(events, answers, request.state.request_id))
    failed = await attended(service, request, _last(events), [events])
    if isinstance(failed, Failed):
        raise service.failed(failed, request.state.request_id)
    whole = [answers.whole(index) for index in range(body.n_cmpl)]
    return Answer(whole if body.n_cmpl > 1 else whole[0])


async def _shown(service: Service, segment: str | Tokens | Mask) -> str:
    """A piece of the prompt as the answer repeats it. Raises RequestError for an id outside the vocabulary."""
    return segment.name if isinstance(segment, Mask) else await prompt_text(segment, service.engine)


async def _last(events: Events) -> Event:
    """The event that a request ends with."""
    async for event in events:
        last = event
    return last


async def _nothing(work: Fill, engine: EngineClient, edit: Edit, names: Mapping[str, str]) -> Events:
    """What comes of no tokens: an editor warms a server up, and there is nothing to be kept warm. The text is counted
    all the same."""
    (read,) = await readings(work, engine, names)
    edit.usage, edit.fitted = Usage(read.num_tokens, 0, read.num_tokens), read.fitted
    edit.ended = edit.began
    for index, completion in enumerate(edit.completions):
        completion.stop_type = "limit"
        yield BlankDone("", index, 0, EMPTY)
    yield Done("", edit.usage)


class EditEvents:
    """The events of a request in llama.cpp's format, as `edit` grows.

    They are pieces, and after a completion's last piece all its fields but text and probabilities. `fields` are the
    same for all completions.
    """

    def __init__(self, body: Prediction, edit: Edit, fields: dict[str, Any]) -> None:
        self.body = body
        self.edit = edit
        self.fields = fields
        # Characters, tokens and probabilities of those that go on.
        self._sent = dict.fromkeys(range(body.n_cmpl), (0, 0, 0))

    def whole(self, index: int, **changes: Any) -> dict[str, Any]:
        """The answer of one completion, with the requested fields."""
        answer = wire(self.edit.completions[index], self.edit, self.fields, self.body.return_tokens)
        return _chosen({"index": index, **answer, **changes}, self.body.response_fields)

    def event(self, event: Event) -> bytes:
        if not isinstance(event, BlankDelta | BlankDone) or event.index not in self._sent:
            return b""
        completion, (chars, tokens, probabilities) = self.edit.completions[event.index], self._sent[event.index]
        self._sent[event.index] = len(completion.text), len(completion.token_ids), len(completion.probabilities)
        piece = {
            "index": event.index,
            "content": completion.text[chars:],
            "tokens": completion.token_ids[tokens:],
            "stop": False,
            "id_slot": self.body.id_slot,
            "tokens_predicted": completion.num_predicted,
            "tokens_evaluated": self.edit.usage.prompt_tokens,
        }
        if self.body.n_probs:
            piece["completion_probabilities"] = completion.probabilities[probabilities:]
        sent = data(piece) if piece["content"] or piece["tokens"] or piece.get("completion_probabilities") else b""
        if completion.ended:
            del self._sent[event.index]
            completion.probabilities = []  # as in llama.cpp the pieces have them
            sent += data(self.whole(event.index, content="", tokens=[]))
        return sent

    def error(self, error: ApiError) -> bytes:
        return data(error_body(error))


def _chosen(answer: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """The fields that were asked for, each under its whole path; all of them if none was."""
    if not paths:
        return answer
    chosen = {}
    for path in paths:
        value: Any = answer
        for part in path.split("/"):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            chosen[path] = value
    return chosen
