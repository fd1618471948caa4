"""`GET /props`: the facts that llama.cpp's clients read from a server."""

from typing import Annotated

from fastapi import APIRouter, Depends

from server.exchange.service import Service, service_of
from server.protocols.llama_cpp.schemas import PromptRequest
from server.wire.answer import Answer

PATH = "/props"

router = APIRouter()


@router.get(PATH, tags=["clients"])
async def props(service: Annotated[Service, Depends(service_of)]) -> Answer:
    """llama.cpp's properties: the defaults of a completion, and facts of the model. It has no chat template."""
    settings, card = service.settings, service.engine.card
    params = PromptRequest.model_validate({"prompt": ""}).settings(settings.limits, card)
    return Answer(
        {
            "default_generation_settings": {
                "id": 0,
                "id_task": -1,
                "n_ctx": card.max_context,
                "speculative": False,
                "is_processing": False,
                "params": params,
            },
            "total_slots": settings.max_queue,
            "model_path": card.name,
            "model_alias": card.name,
            "chat_template": "",
            "chat_template_caps": {},
            "modalities": {"vision": False, "audio": False},
            "bos_token": card.special_tokens.get("bos", ""),
            "eos_token": card.special_tokens.get("eos", ""),
            "build_info": "glm-infill",
            "is_sleeping": False,
        }
    )
