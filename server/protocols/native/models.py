"""`GET /v1/models`: what is loaded, what it can do, and how much one request may ask of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from engine.events import AdapterCard, ModelCard
from server.exchange.service import Service, service_of
from server.settings import Limits
from server.wire.answer import Answer

router = APIRouter()


@router.get("/v1/models", tags=["models"])
async def models(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The loaded model, and each adapter as a model of its own whose parent it is."""
    card, adapters = service.engine.card, service.engine.adapters
    base = _entry(card, [adapter.name for adapter in adapters], service.settings.limits)
    return Answer({"object": "list", "data": [base, *(adapter_entry(adapter, card) for adapter in adapters)]})


def adapter_entry(adapter: AdapterCard, card: ModelCard) -> dict[str, Any]:
    """An adapter as clients see it; its name can stand for the model's."""
    return {
        "id": adapter.name,
        "object": "model",
        "created": adapter.created,
        "owned_by": "glm-infill",
        "parent": card.name,
        "kind": adapter.kind,
        "prefix_tokens": adapter.prefix_tokens,
    }


def _entry(card: ModelCard, adapters: list[str], limits: Limits) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "glm-infill",
        "family": card.family,
        "num_parameters": card.num_parameters,
        "capabilities": {
            "infill": True,
            "score": True,
            "stream": True,
            "suffix": "[MASK]" in card.masks,
            "echo": not card.masked,
            "masks": card.masks,
            "strategy": card.strategies[0],
            "strategies": card.strategies,
            "choices": True,
            "regex": True,
            "beams": not card.masked,
            "next_sentence": card.next_sentence,
        },
        "limits": {
            "max_context": card.max_context,
            "max_positions": card.max_positions,
            "max_span": card.max_span,
            "vocab_size": card.vocab_size,
            **limits.model_dump(),
        },
        "quantization": card.quant,
        "tp": card.tp,
        "kernels": card.kernels,
        "kv_cache_type": card.kv_cache_type,
        "kv_cache_tokens": card.kv_cache_tokens,
        "adapters": adapters,
    }
