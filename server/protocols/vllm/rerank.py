"""`POST /rerank` and `/v1/rerank`, as vLLM, Jina and Cohere have them: documents, the most relevant to a query first.

No model here was trained to compare two texts. What is told is the query's likelihood given the document (Ponte and
Croft 1998; by a language model: Sachan et al., arXiv 2204.07496): `relevance_score` is the geometric mean of the
probabilities of the query's tokens behind the document, between 0 and 1, and comparable for one query only.
"""

import math
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from engine.answers import FillResult, ScoreResult
from server.exchange.bodies import LEAST, names
from server.exchange.items import score_items
from server.exchange.named_adapter import named_adapter
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.vllm.schemas import RerankRequest
from server.wire.answer import Answer
from server.wire.body import read_object

PATH = "/rerank"
VERSIONED = "/v1/rerank"
# What the engine calls the fields of a request.
NAMES = {"context": "documents", "targets": "query"}

router = APIRouter(tags=["clients"])


@router.post(PATH, openapi_extra=takes(RerankRequest))
@router.post(VERSIONED, openapi_extra=takes(RerankRequest))
async def rerank(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """Documents by how probable a query is given each."""
    raw = await read_object(request, service.settings.body_seconds)
    service.ignored.note(PATH, raw.keys() - names(RerankRequest))
    body = RerankRequest.model_validate(raw)
    engine = service.engine
    adapter = named_adapter(engine, body.model)
    work_id = f"rerank-{uuid4().hex}"
    scores = body.scores(service.settings.limits)
    works = {f"{work_id}-{number}": replace(score, adapter=adapter) for number, score in enumerate(scores)}
    documents, usage = await score_items(service, request, works, NAMES, "document")
    found = [_result(index, body, result) for index, (result,) in enumerate(documents)]
    found.sort(key=lambda result: -result["relevance_score"])
    return Answer(
        {
            "id": work_id,
            "model": adapter or engine.card.name,
            "usage": usage,
            "results": found[: body.top_n or None],
        }
    )


def _result(index: int, body: RerankRequest, scored: FillResult | ScoreResult) -> dict[str, Any]:
    assert isinstance(scored, ScoreResult)
    document = {"document": {"text": body.texts[index]}} if body.return_documents else {}
    relevance = math.exp(scored.logprob / max(scored.num_tokens, 1))
    return {"index": index, **document, "relevance_score": relevance, "glm": {"logprob": max(scored.logprob, LEAST)}}
