"""Anthropic's messages, a chat API. This server has no chat, and says so in Anthropic's error format."""

from typing import Any

from fastapi import APIRouter

from server.exchange.protocol import Protocol
from server.wire.errors import TYPES, ApiError

KINDS = {**TYPES, 500: "api_error", 504: "timeout_error"}


def error_body(error: ApiError) -> dict[str, Any]:
    """An error in Anthropic's shape."""
    kind = KINDS.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


PROTOCOL = Protocol(
    "anthropic",
    APIRouter(),
    bodies=(),
    work=frozenset(),
    error_body=error_body,
    chats=frozenset({"/v1/messages", "/v1/messages/count_tokens"}),
)
