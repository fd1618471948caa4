"""Hugging Face's two protocols, which share paths: fill-mask, and the text generation of TGI."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.hugging_face import generation, info, root
from server.protocols.hugging_face.error_body import error_body
from server.protocols.hugging_face.schemas import FillMaskRequest, TextGenerationParameters, TextGenerationRequest

PARTS = (root.router, generation.router, info.router)

PROTOCOL = Protocol(
    "hugging_face",
    APIRouter(routes=[route for part in PARTS for route in part.routes]),
    bodies=(FillMaskRequest, TextGenerationRequest, TextGenerationParameters),
    work=frozenset({root.PATH, root.MODEL, generation.PATH, generation.STREAM}),
    error_body=error_body,
    below="/models/",
)
