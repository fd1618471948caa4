"""`GET /info`: what TGI's clients ask of the model and its limits."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from server.exchange.service import Service, service_of
from server.wire.answer import Answer

router = APIRouter(tags=["clients"])


@router.get("/info")
async def info(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """TGI's description of the model and of what a request may ask for."""
    card, settings = service.engine.card, service.settings
    longest = card.max_context + min(settings.limits.max_tokens, card.max_span)
    return Answer(
        {
            "model_id": card.name,
            "model_sha": None,
            "model_pipeline_tag": "fill-mask" if card.masked else "text-generation",
            "max_concurrent_requests": settings.max_queue,
            "max_best_of": settings.limits.n,
            "max_stop_sequences": settings.limits.stop,
            "max_input_tokens": card.max_context,
            "max_total_tokens": min(longest, card.kv_cache_tokens),
            "validation_workers": 1,
            "max_client_batch_size": settings.limits.inputs,
            "router": "glm-infill",
            "version": request.app.version,
            "sha": None,
            "docker_label": None,
        }
    )
