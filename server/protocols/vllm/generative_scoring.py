"""`POST /generative_scoring`, vLLM's: how probable the first of some label tokens is, behind a query and each item.

A label stands in the place of the mask, if the text has one; otherwise behind its end. As in vLLM query and item are
tokenized apart.
"""

import math
import time
from dataclasses import replace
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from server.exchange.bodies import LEAST, names
from server.exchange.items import score_items
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.vllm.schemas import GenerativeScoringRequest
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/generative_scoring"
# What the engine calls the fields of a request.
NAMES = {"context": "query", "targets": "label_token_ids"}

router = APIRouter(tags=["clients"])


@router.post(PATH, openapi_extra=takes(GenerativeScoringRequest))
async def generative_scoring(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """vLLM's scores of items: the probability of the first label among all labels, or among all tokens."""
    raw = await read_object(request, service.settings.body_seconds)
    service.ignored.note(PATH, raw.keys() - names(GenerativeScoringRequest))
    body = GenerativeScoringRequest.model_validate(raw)
    engine = service.engine
    adapter = named_adapter(engine, body.model)
    work_id = f"generative-scoring-{uuid4().hex}"
    scores = body.scores(service.settings.limits)
    works = {f"{work_id}-{number}": replace(score, adapter=adapter) for number, score in enumerate(scores)}
    items, usage = await score_items(service, request, works, NAMES, "item")
    probabilities = [
        _score([max(result.logprob, LEAST) for result in results], body.apply_softmax) for results in items
    ]
    return Answer(
        {
            "id": work_id,
            "object": "list",
            "created": int(time.time()),
            "model": adapter or engine.card.name,
            "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(probabilities)],
            "usage": usage,
        }
    )


def _score(logprobs: list[float], is_among_labels: bool) -> float:
    """The probability of the first label."""
    if not is_among_labels:
        return math.exp(logprobs[0])
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    return weights[0] / math.fsum(weights)
