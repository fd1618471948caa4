"""`/api/tags`, `/api/ps`, `/api/show` and `/api/version`: the loaded models in Ollama's format."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from engine.events import ModelCard
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.protocols.ollama.named_model import named_model
from server.protocols.ollama.schemas import ShowRequest
from server.protocols.ollama.timestamp import timestamp
from server.wire.answer import Answer
from server.wire.body import read_object

# The one whose fields `/api/generate` has: clients ask for it to know what they may send.
VERSION = "0.12.11"
# Clients look into it for `.Suffix`.
TEMPLATE = "{{ .Prompt }}{{ if .Suffix }}[MASK]{{ .Suffix }}{{ end }}"
PROMPT_ONLY = "{{ .Prompt }}"
NEVER = "9999-12-31T23:59:59Z"

router = APIRouter(tags=["clients"])


@router.get("/api/version")
async def version() -> Answer:
    """The version of Ollama's API that this server implements."""
    return Answer({"version": VERSION})


@router.get("/api/tags")
async def tags(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The model under each of its names, and each adapter as a model of its own."""
    return Answer({"models": _models(service)})


@router.get("/api/ps")
async def loaded(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The same list: all models stay loaded."""
    more = {"expires_at": NEVER, "size_vram": 0, "context_length": service.engine.card.max_context}
    return Answer({"models": [model | more for model in _models(service)]})


@router.post("/api/show", openapi_extra=takes(ShowRequest))
async def show(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """The details of a model and its abilities."""
    body = ShowRequest.model_validate(await read_object(request, service.settings.body_seconds, bare=True))
    engine = service.engine
    adapter = named_model(engine, body.named)
    card = engine.card
    can_insert = "[MASK]" in card.masks
    return Answer(
        {
            "modelfile": "",
            "parameters": "",
            "template": TEMPLATE if can_insert else PROMPT_ONLY,
            "details": _details(card, adapter),
            "model_info": {
                "general.architecture": card.family,
                "general.parameter_count": card.num_parameters,
                f"{card.family}.context_length": card.max_context,
            },
            "capabilities": ["completion", *(["insert"] if can_insert else [])],
            "modified_at": timestamp(card.created),
        }
    )


def _models(service: Service) -> list[dict[str, Any]]:
    card = service.engine.card
    adapters = service.engine.adapters
    own = [_model(card, name, None, card.created) for name in card.names]
    return [*own, *(_model(card, adapter.name, adapter.name, adapter.created) for adapter in adapters)]


def _model(card: ModelCard, name: str, adapter: str | None, created: int) -> dict[str, Any]:
    told = f"{name} {card.name} {card.quant} {card.quant_head} {card.num_parameters}"
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(created),
        "size": card.weight_bytes,
        "digest": hashlib.sha256(told.encode()).hexdigest(),
        "details": _details(card, adapter),
    }


def _details(card: ModelCard, adapter: str | None) -> dict[str, Any]:
    return {
        "parent_model": card.name if adapter is not None else "",
        "format": "safetensors",
        "family": card.family,
        "families": [card.family],
        "parameter_size": _short(card.num_parameters),
        "quantization_level": card.quant,
    }


def _short(count: int) -> str:
    return f"{count / 1e9:.4g}B" if count >= 1e9 else f"{count / 1e6:.4g}M"
