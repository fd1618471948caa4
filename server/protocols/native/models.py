"""`GET /v1/models`: the loaded model, its abilities, and the limits of one request."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from engine.events import AdapterCard, ModelCard
from engine.requests import RequestError
from server.exchange.service import Service, service_of
from server.settings import Limits
from server.wire.answer import Answer

PATH = "/v1/models"
ONE = PATH + "/{name:path}"  # a name may have slashes

router = APIRouter(tags=["models"])


@router.get(PATH)
async def models(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The loaded model under each of its names, and each adapter as a model whose parent is the model."""
    return Answer({"object": "list", "data": list(_entries(service).values())})


@router.get(ONE)
async def model(name: str, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """One entry of the list, by its name. The status is 404 for an unknown name."""
    entries = _entries(service)
    if name not in entries:
        known = ", ".join(map(repr, entries))
        raise RequestError(f"no model {name[:80]!r} is loaded; there is only {known}", "model", "model_not_found")
    return Answer(entries[name])


def _entries(service: Service) -> dict[str, dict[str, Any]]:
    """The entries of everything that a request may name as its model."""
    card, adapters = service.engine.card, service.engine.adapters
    base = _entry(card, [adapter.name for adapter in adapters], service.settings.limits)
    known = {"capabilities": _for_mistral(card), **_card_of_mistral(card)}
    own = {adapter.name: adapter_entry(adapter, card) | known for adapter in adapters}
    return {name: {**base, "id": name} for name in card.names} | own


def adapter_entry(adapter: AdapterCard, card: ModelCard) -> dict[str, Any]:
    """An adapter as clients see it. Requests may give its name as the model's."""
    return {
        "id": adapter.name,
        "object": "model",
        "created": adapter.created,
        "owned_by": "glm-infill",
        "parent": card.name,
        "kind": adapter.kind,
        "prefix_tokens": adapter.prefix_tokens,
    }


def _for_mistral(card: ModelCard) -> dict[str, bool]:
    """What a model can do, in the words that Mistral's clients look for."""
    return {"completion_fim": "[MASK]" in card.masks, "completion_chat": False}


def _card_of_mistral(card: ModelCard) -> dict[str, Any]:
    """The fields without which Mistral's clients take no model."""
    return {"type": "base", "max_context_length": card.max_context}


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
            "mask_token": card.mask_token,
            "strategy": card.strategies[0],
            "strategies": card.strategies,
            "choices": True,
            "regex": True,
            "beams": not card.masked,
            "next_sentence": card.next_sentence,
            **_for_mistral(card),
        },
        **_card_of_mistral(card),
        "limits": {
            "max_context": card.max_context,
            "max_positions": card.max_positions,
            "max_span": card.max_span,
            "vocab_size": card.vocab_size,
            **limits.model_dump(),
        },
        "quantization": card.quant,
        "quantization_head": card.quant_head,
        "tp": card.tp,
        "kernels": card.kernels,
        "kv_cache_type": card.kv_cache_type,
        "kv_cache_tokens": card.kv_cache_tokens,
        "adapters": adapters,
    }
