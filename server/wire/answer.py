"""An answer as bytes: compact JSON that every client can parse."""

import json
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from starlette.responses import Response

from engine.answers import INTERNAL, OPTIONAL


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON, also of the engine's answers. Raises ValueError for NaN and infinities, which are not
    JSON."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=plain)
    return text.encode("utf-8", errors="replace")


def plain(answer: Any) -> dict[str, Any]:
    """The fields of an answer (`engine.answers`) without the internal ones."""
    values = ((name, getattr(answer, name), optional) for name, optional in _fields(answer.__class__))
    return {name: value for name, value, optional in values if not (optional and value is None)}


@cache
def _fields(kind: Any) -> tuple[tuple[str, bool], ...]:
    """The names of fields, and whether each is left out where it is None."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no answer")
    return tuple((f.name, f.metadata == OPTIONAL) for f in fields(kind) if f.metadata != INTERNAL)


class Answer(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The JSON of the content. Raises ValueError for NaN and infinities."""
        return encode(content)
