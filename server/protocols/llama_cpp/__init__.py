"""llama.cpp's own routes, for its editors and other clients. All errors on them have llama.cpp's shape."""

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.protocols.llama_cpp import completion, infill, props
from server.protocols.llama_cpp.error_body import error_body
from server.protocols.llama_cpp.schemas import EditorRequest, PromptRequest

PARTS = (infill.router, completion.router, props.router)

PROTOCOL = Protocol(
    "llama_cpp",
    APIRouter(routes=[route for part in PARTS for route in part.routes]),
    bodies=(EditorRequest, PromptRequest),
    work=frozenset({infill.PATH, completion.PATH}),
    error_body=error_body,
)
