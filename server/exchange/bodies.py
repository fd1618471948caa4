"""The common parts of all protocols' bodies: strictness, shared fields and limits.

A protocol's body is a pydantic model that becomes the engine's `Fill` or `Score`.
"""

import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from engine.requests import JsonSchema, Mask, RequestError, Segments
from server.settings import Limits

MASKS = re.compile(r"(\[[sg]?MASK\])")
SURROGATES = re.compile("[\ud800-\udfff]")
INT32 = 2**31 - 1
# What stands for a probability of nought where a protocol has no other word for it, as in vLLM.
LEAST = -9999.0
Item = TypeVar("Item")


def _whole(text: str) -> str:
    """JSON can escape half of a surrogate pair; such a string has no UTF-8, so no tokenizer takes it."""
    if not text.isascii() and SURROGATES.search(text):
        raise ValueError("the string has half of a surrogate pair")
    return text


String = Annotated[str, AfterValidator(_whole)]
Number = Annotated[int, Field(ge=0, le=INT32)]
Positive = Annotated[int, Field(ge=1, le=INT32)]
TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
StopString = Annotated[String, Field(min_length=1, max_length=256)]
Choice = Annotated[String, Field(min_length=1, max_length=4096)]

# Unions are told apart by the JSON type, so that an error speaks of one branch only; `errors` drops the tags.
ONE_OR_LIST = Discriminator(lambda value: "<list>" if isinstance(value, list) else "<one>")
Text = Annotated[
    Annotated[String, Tag("<one>")] | Annotated[list[String], Field(min_length=1), Tag("<list>")], ONE_OR_LIST
]
Stop = Annotated[Annotated[StopString, Tag("<one>")] | Annotated[list[StopString], Tag("<list>")], ONE_OR_LIST]


def _as_number(value: Any) -> Any:
    """A number without a fraction as an integer, which a field of any number takes too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Wire(BaseModel):
    """The strict base of bodies: no unknown field, no conversion, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Lenient(Wire):
    """The base of other servers' bodies: it ignores unknown fields, null means absent, and 16.0 is a whole number."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: _as_number(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def names(body: type[BaseModel]) -> set[str]:
    """The names of a body's fields on the wire."""
    return {field.alias or name for name, field in body.model_fields.items()}


def split(text: str) -> Segments:
    """A text with its masks as segments of their own. The engine checks whether the checkpoint has them."""
    return tuple(Mask(part) if MASKS.fullmatch(part) else part for part in MASKS.split(text) if part)


def schema_of(param: str, given: dict[str, Any] | str, limits: Limits) -> JsonSchema:
    """A JSON schema, given as an object or as a string of JSON.

    Raises RequestError for one over the limit, and for anything but an object.
    """
    text = given if isinstance(given, str) else json.dumps(given, separators=(",", ":"))
    at_most(param, len(text), limits.json_schema, "characters")
    if isinstance(given, str):
        try:
            is_object = isinstance(json.loads(given), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise RequestError(f"{param} is not a JSON object", param)
    return JsonSchema(text)


def count_blanks(text: Segments) -> int:
    """Number of masks in a text."""
    return sum(isinstance(segment, Mask) for segment in text)


def many(value: Item | list[Item]) -> tuple[Item, ...]:
    """A list, from one value or a list."""
    return tuple(value) if isinstance(value, list) else (value,)


def at_most(param: str, value: float, limit: float, what: str = "") -> None:
    """Raises RequestError, naming field and limit, for a value above the limit."""
    if value > limit:
        # A factorial has more digits than anyone wants to read, hence the float form.
        subject = f"{param} has {value:g} {what}" if what else f"{param} is {value:g}"
        raise RequestError(f"{subject}; the limit is {limit:g}", param)
