"""SGLang's scores of label tokens. Its fields tell it apart from the native route on the same path."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import Request

from server.exchange.bodies import LEAST
from server.exchange.items import score_items
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service
from server.protocols.sglang.schemas import LabelsRequest
from server.wire.answer import Answer

# What the engine calls the fields of SGLang's request.
LABEL_NAMES = {"context": "query", "targets": "label_token_ids"}


async def labels(request: Request, service: Service, raw: dict[str, Any]) -> Answer:
    """SGLang's answer: the probability of each label token behind each item.

    Raises RequestError for fields that do not go together, and ApiError for work that fails.
    """
    body = LabelsRequest.model_validate(raw)
    card = service.engine.card
    adapter = named_adapter(service.engine, body.model)
    work_id = f"score-{uuid4().hex}"
    scores = body.scores(service.settings.limits)
    works = {f"{work_id}-{number}": replace(score, adapter=adapter) for number, score in enumerate(scores)}
    items, usage = await score_items(service, request, works, LABEL_NAMES, "item")
    logprobs = [[max(result.logprob, LEAST) for result in results] for results in items]
    return Answer(
        {
            "scores": [body.probabilities(row) for row in logprobs],
            "token_logprobs": logprobs if body.return_token_logprobs else None,
            "model": card.name,
            "usage": usage,
            "object": "scoring",
        }
    )
