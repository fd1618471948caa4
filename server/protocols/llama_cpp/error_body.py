"""An error in llama.cpp's shape."""

from typing import Any

from server.wire.errors import TYPES, ApiError

KINDS = {**TYPES, 429: "unavailable_error", 503: "unavailable_error"}


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error. Its code is the HTTP status."""
    kind = KINDS.get(error.status, "invalid_request_error")
    return {"error": {"code": error.status, "message": error.message, "type": kind}}
