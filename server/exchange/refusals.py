"""Refusals: fields of other servers that promise a property of the answer that this server cannot give.

A field that is only a hint is ignored. A refused field is refused by name, unless its value asks for nothing.
"""

from typing import Any

from pydantic import create_model

from engine.requests import RequestError
from server.exchange.bodies import Lenient

NOTHING: tuple[Any, ...] = (None, False, "", [], {})


def refusing(name: str, *fields: str) -> type[Lenient]:
    """The base class of a body with such fields, which makes them known and described."""
    given: dict[str, Any] = dict.fromkeys(fields, (Any, None))
    body: type[Lenient] = create_model(name, __base__=Lenient, __doc__="Fields that are refused.", **given)
    return body


def check_refused(body: Lenient, refused: type[Lenient]) -> None:
    """Raises RequestError for the first of these fields that asks for something."""
    for name in refused.model_fields:
        value = getattr(body, name)
        if not any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in NOTHING):
            raise RequestError(f"{name} is not supported here", name, "unsupported")
