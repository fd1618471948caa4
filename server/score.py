"""`POST /v1/score`: the log-likelihood of what is already known. SGLang's route of that name is told by its fields."""

import time
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from server.answer import Answer, plain
from server.body import read_object
from server.catalog import named_adapter
from server.exchange import complete, complete_all, submit
from server.logprobs import LEAST
from server.openapi import takes
from server.schemas import ScoreRequest
from server.schemas_sglang import LabelsRequest, is_sglang
from server.service import Service, service_of

# What the engine calls the fields of SGLang's request.
LABEL_NAMES = {"context": "query", "targets": "label_token_ids"}

router = APIRouter()


@router.post("/v1/score", openapi_extra=takes(ScoreRequest, LabelsRequest), tags=["score"])
async def score(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Scores candidates for the blanks of a text, continuations of a context, or a text as it stands."""
    settings = service.settings
    raw = await read_object(request, settings.body_seconds)
    if is_sglang(raw):
        return await _labels(request, service, raw)
    body = ScoreRequest.model_validate(raw)
    card = service.engine.card
    adapter = named_adapter(service.engine, body.model, body.adapter)
    work = replace(body.score(settings.limits), adapter=adapter)
    work_id = f"score-{uuid4().hex}"
    head = {"id": work_id, "object": "score", "created": int(time.time()), "model": card.name}
    results, done = await complete(service, request, submit(service, request, work, work_id))
    ranking = {} if done.ranking is None else plain(done.ranking)
    return Answer({**head, "results": results, **ranking, "usage": done.usage})


async def _labels(request: Request, service: Service, raw: dict[str, Any]) -> Answer:
    """SGLang's answer: how probable each label token is behind each item."""
    body = LabelsRequest.model_validate(raw)
    card = service.engine.card
    adapter = named_adapter(service.engine, body.model)
    works = [replace(work, adapter=adapter) for work in body.scores(service.settings.limits)]
    work_id = f"score-{uuid4().hex}"
    streams = [submit(service, request, work, f"{work_id}-{number}", LABEL_NAMES) for number, work in enumerate(works)]
    outcomes = await complete_all(service, request, streams)
    logprobs = [[max(result.logprob, LEAST) for result in results] for results, _ in outcomes]
    num_tokens = sum(done.usage.prompt_tokens for _, done in outcomes)
    return Answer(
        {
            "scores": [body.probabilities(row) for row in logprobs],
            "token_logprobs": logprobs if body.return_token_logprobs else None,
            "model": card.name,
            "usage": {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens},
            "object": "scoring",
        }
    )
