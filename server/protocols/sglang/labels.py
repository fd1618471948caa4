"""SGLang's scores of label tokens. Its fields tell it apart from the native route on the same path."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import Request

from server.exchange.bodies import LEAST
from server.exchange.exchange import complete_all, submit
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
    works = [replace(work, adapter=adapter) for work in body.scores(service.settings.limits)]
    work_id = f"score-{uuid4().hex}"
    streams = [submit(service, request, work, f"{work_id}-{number}", LABEL_NAMES) for number, work in enumerate(works)]
    outcomes = await complete_all(service, request, streams, "item")
    logprobs = [[max(result.logprob, LEAST) for result in results] for results, _ in outcomes]
    usages = [done.usage for _, done in outcomes]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return Answer(
        {
            "scores": [body.probabilities(row) for row in logprobs],
            "token_logprobs": logprobs if body.return_token_logprobs else None,
            "model": card.name,
            "usage": {name: sum(getattr(usage, name) for usage in usages) for name in names},
            "object": "scoring",
        }
    )
