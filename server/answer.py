"""An answer as bytes: compact JSON that every client can parse."""

import json
from typing import Any

from starlette.responses import Response


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON. Raises ValueError for NaN and infinities: no JSON parser need accept them."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")


class Answer(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
