"""Refusals: fields of other servers that promise something about an answer which is not to be had here.

A field that is only a hint is let pass. One that is refused is refused by name, unless it says what is so anyway.
"""

from typing import Any

from pydantic import create_model

from engine.requests import RequestError
from server.exchange.bodies import Lenient

NOTHING: tuple[Any, ...] = (None, False, "", [], {})


def refusing(name: str, *fields: str) -> type[Lenient]:
    """The base of a body that has such fields, so that they are described and known."""
    given: dict[str, Any] = dict.fromkeys(fields, (Any, None))
    body: type[Lenient] = create_model(name, __base__=Lenient, __doc__="Fields that are refused.", **given)
    return body


def check_refused(body: Lenient, refused: type[Lenient]) -> None:
    """Raises RequestError for the first field that asks for something."""
    for name in refused.model_fields:
        value = getattr(body, name)
        if not any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in NOTHING):
            raise RequestError(f"{name} is not supported here", name, "unsupported")
