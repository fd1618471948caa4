"""The constraints on a completion's text, with the fields of OpenAI, of several versions of vLLM, and of SGLang."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from engine.requests import Regex, RequestError
from server.exchange.bodies import Choice, Lenient, String, at_most, schema_of
from server.settings import Limits

ANY_OBJECT = {"type": "object"}
Schema = dict[str, Any]


class NamedSchema(Lenient):
    """`response_format.json_schema`."""

    schema_: Annotated[Schema, Field(alias="schema")]


class ResponseFormat(Lenient):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "grammar"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(Lenient):
    """`structured_outputs`."""

    json_: Annotated[Schema | String | None, Field(alias="json")] = None
    regex: String | None = None
    choice: Annotated[list[Choice], Field(min_length=1)] | None = None
    json_object: bool | None = None
    grammar: Any = None
    structural_tag: Any = None
    whitespace_pattern: Any = None
    disable_any_whitespace: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint: the field that holds it, and its content."""

    field: str
    regex: Regex | None = None
    choices: tuple[str, ...] = ()


class ConstraintFields(Lenient):
    """The fields of a completion that constrain its text."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | String | None = None
    guided_regex: String | None = None
    guided_choice: Annotated[list[Choice], Field(min_length=1)] | None = None
    regex: String | None = None
    json_schema: Schema | String | None = None

    def constraint(self, limits: Limits) -> Constraint | None:
        """The only constraint; None if there is none. Raises RequestError for several, and for an unsupported one."""
        found = [*self._formatted(limits), *self._structured(limits), *self._guided(limits), *self._plain(limits)]
        if len(found) > 1:
            fields = " and ".join(constraint.field for constraint in found)
            raise RequestError(f"only one of {fields} may be given", found[1].field)
        return found[0] if found else None

    def _formatted(self, limits: Limits) -> Iterator[Constraint]:
        given, field = self.response_format, "response_format"
        if given is None or given.type == "text":
            return
        if given.type in ("structural_tag", "grammar"):
            raise RequestError(f"{field} of the type {given.type} is not supported", field, "unsupported")
        if given.type == "json_object":
            yield Constraint(field, schema_of(field, ANY_OBJECT, limits))
        elif given.json_schema is None:
            raise RequestError(f"{field} of the type json_schema needs its json_schema", field)
        else:
            yield Constraint(field, schema_of(field, given.json_schema.schema_, limits))

    def _structured(self, limits: Limits) -> Iterator[Constraint]:
        given, field = self.structured_outputs, "structured_outputs"
        if given is None:
            return
        for name in ("grammar", "structural_tag", "whitespace_pattern", "disable_any_whitespace"):
            if getattr(given, name):
                raise RequestError(f"{field}.{name} is not supported", f"{field}.{name}", "unsupported")
        if given.json_ is not None:
            yield Constraint(f"{field}.json", schema_of(f"{field}.json", given.json_, limits))
        if given.json_object:
            yield Constraint(f"{field}.json_object", schema_of(field, ANY_OBJECT, limits))
        yield from _pattern(f"{field}.regex", given.regex, limits)
        yield from _choice(f"{field}.choice", given.choice, limits)

    def _guided(self, limits: Limits) -> Iterator[Constraint]:
        if self.guided_json is not None:
            yield Constraint("guided_json", schema_of("guided_json", self.guided_json, limits))
        yield from _pattern("guided_regex", self.guided_regex, limits)
        yield from _choice("guided_choice", self.guided_choice, limits)

    def _plain(self, limits: Limits) -> Iterator[Constraint]:
        """SGLang's, of which llama.cpp has the second too."""
        yield from _pattern("regex", self.regex, limits)
        if self.json_schema is not None:
            yield Constraint("json_schema", schema_of("json_schema", self.json_schema, limits))


def _pattern(field: str, regex: str | None, limits: Limits) -> Iterator[Constraint]:
    if regex is not None:
        at_most(field, len(regex), limits.regex, "characters")
        yield Constraint(field, regex)


def _choice(field: str, choices: list[str] | None, limits: Limits) -> Iterator[Constraint]:
    if choices is not None:
        at_most(field, len(choices), limits.choices, "choices")
        yield Constraint(field, choices=tuple(choices))
