"""`POST /infill`, as llama.cpp's editors speak it: what stands between the text before the cursor and that behind it.

The model reads both sides at once, so nothing of a text is cached from one key to the next: `tokens_cached` says so.
A text that is too long loses what is farthest from the cursor, and `truncated` says so.
"""

import time
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from engine.events import Failed
from server.answer import Answer
from server.body import read_object
from server.editing import Completion, Edit, edited, wire
from server.errors import LLAMA_CPP, ApiError
from server.exchange import attended, submit
from server.openapi import takes
from server.schemas_llama_cpp import EditorRequest
from server.service import Service, service_of

# What the engine calls the fields of a request.
NAMES = {"text": "input_prefix", "max_tokens": "n_predict"}

router = APIRouter()


@router.post(LLAMA_CPP, openapi_extra=takes(EditorRequest), tags=["clients"])
async def infill(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """llama.cpp's infill, for llama.vim and llama.vscode."""
    limits, card = service.settings.limits, service.engine.card
    raw = await read_object(request, service.settings.body_seconds)
    if card.infill_mask is None:
        raise ApiError(501, "Infill is not supported by this model", "unsupported")
    service.ignored.note(LLAMA_CPP, raw.keys() - EditorRequest.model_fields)
    body = EditorRequest.model_validate(raw)
    # Editors send whatever name they were given: only that of an adapter means something.
    adapter = next((a.name for a in service.engine.adapters if a.name == body.model), None)
    work = replace(body.fill(limits, card, card.infill_mask), adapter=adapter)
    if body.num_tokens(limits, card):
        events = submit(service, request, work, f"infill-{uuid4().hex}", NAMES)
        follow = edited(events, body.n_cmpl, body.n_indent, body.t_max_predict_ms)
        edit = await attended(service, request, follow, [events])
        if isinstance(edit, Failed):
            raise service.failed(edit, request.state.request_id)
    else:  # an editor warms a server up; there is nothing to be kept warm
        now = time.monotonic()
        edit = Edit([Completion(stop_type="limit") for _ in range(body.n_cmpl)], now, ended=now)
    fields = {
        "id_slot": body.id_slot,
        "model": adapter or card.name,
        "prompt": f"{body.before}{card.infill_mask}{body.input_suffix}",
        "generation_settings": body.settings(limits, card),
    }
    answers = [
        _chosen({"index": index, **wire(completion, edit, fields, body.return_tokens)}, body.response_fields)
        for index, completion in enumerate(edit.completions)
    ]
    return Answer(answers if body.n_cmpl > 1 else answers[0])


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
