"""JSON schemas as patterns, against the validator of the package jsonschema: whatever can be written is valid."""

import json
import random
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from engine.regex.automaton import Automaton
from engine.regex.child import compiled_schema
from engine.regex.compiler import compile_regex
from engine.requests import JsonSchema, RequestError
from quant.usage import UsageError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "title": "Person",
    "$defs": {"Tag": {"enum": ["old", "new", 'a"b', "é\n"], "type": "string", "title": "Tag"}},
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "string"}, {"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "pattern": "^[a-c]+$"},
    {"type": "string", "pattern": "^yes$|^no$"}, {"type": "string", "format": "uuid"}, {"type": "integer"},
    {"type": "number"}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 2},
    {"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]},
    {"enum": ["a", 1, None, 1.5, True, {"a": [1, "x"]}]}, {"const": "a.b\\c"}, {"type": "integer", "enum": [1, "a", 2]},
    {"type": "array"}, {"type": "array", "items": {"type": "integer"}, "minItems": 2}, {"items": {"type": "null"}},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "minItems": 1},
    {"type": "object"}, {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {}}, {"type": "object", "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
    {"properties": {"any": {}, "more": True, "b": {"type": "boolean"}}, "required": ["b"]},
    {"type": "object", "properties": {n: {"type": "integer"} for n in "abcd"}, "required": ["b"]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]}, {"allOf": [{"type": "boolean"}]},
    {"oneOf": [{"properties": {"k": {"const": k}, "v": {"type": "null"}}, "required": ["k"]} for k in "ab"]},
    {"definitions": {"x/y": {"type": "null"}}, "anyOf": [{"$ref": "#/definitions/x~1y"}, {"type": "boolean"}]},
]  # fmt: skip


def texts(automaton: Automaton, count: int) -> list[str]:
    """Texts that an automaton takes, found by walks that turn to an end after a while."""
    table, accepting = automaton.table[:-1], automaton.accepting[:-1]
    distance = np.where(accepting, 0, 1 << 20)
    for _ in range(len(table)):
        shorter = np.minimum(distance, np.where(table >= 0, distance[table], 1 << 20).min(1) + 1)
        if (shorter == distance).all():
            break
        distance = shorter
    rng, found = random.Random(1), []
    for _ in range(count):
        state, data, patience = automaton.start, bytearray(), rng.randrange(30)
        while not (accepting[state] and (rng.random() < 0.3 or len(data) > patience or (table[state] < 0).all())):
            steps = np.flatnonzero(table[state] >= 0)
            if len(data) > patience:
                steps = steps[distance[table[state][steps]] < distance[state]]
            byte = int(rng.choice(steps))
            data.append(byte)
            state = int(table[state, byte])
        found.append(data.decode())
    return found


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_whatever_matches_is_valid(schema: Any) -> None:
    automaton = Automaton.read(compiled_schema(json.dumps(schema)))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for text in texts(automaton, 150):
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (PERSON, {"name": "Ann", "age": None, "tags": ["old", 'a"b']}),
        (PERSON, {"name": "", "age": 12, "born": "1900-01-02", "tags": ["é\n"]}),
        ({"type": "object"}, {"a": [1, {"b": None}], "c": "x y"}),
        ({"type": "number"}, -1.5e-7),
        ({"properties": {"any": {}, "b": {"type": "boolean"}}, "required": ["b"]}, {"any": {"x": [1]}, "b": True}),
    ],
)
def test_usual_documents_can_be_written(schema: Any, value: Any) -> None:
    automaton = Automaton.read(compiled_schema(json.dumps(schema)))
    for separators in ((", ", ": "), (",", ":")):
        text = json.dumps(value, ensure_ascii=False, separators=separators)
        assert automaton.accepting[automaton.after(automaton.start, text.encode())], text


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "minimum": 3}, "the keyword minimum beside type is not supported"),
        ({"properties": {"a": {"type": "number", "multipleOf": 2}}}, "the keyword properties.a.multipleOf"),
        ({"type": "array", "uniqueItems": True}, "the keyword uniqueItems"),
        ({"type": "object", "minProperties": 1}, "the keyword minProperties"),
        ({"type": "object", "patternProperties": {"a": {}}}, "the keyword patternProperties"),
        ({"not": {"type": "null"}}, "the keyword not"),
        ({"if": {}, "then": {}}, "the keyword if"),
        ({"anyOf": [{"type": "null"}], "type": "string"}, "the keyword type beside anyOf"),
        ({"allOf": [{"type": "null"}, {}]}, "allOf has more than one schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf has schemas that one value may fulfil together"),
        ({"type": "string", "pattern": ".*"}, "pattern lets quotes, backslashes or control characters come"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern: it has look-ahead"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "maxLength and pattern are not supported together"),
        ({"type": "string", "format": "ipv4"}, "format is 'ipv4'"),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}},
            "items.$ref #/$defs/n leads to itself",
        ),
        ({"$ref": "http://a/b"}, "leads out of the schema"),
        ({"$ref": "#/$defs/n"}, "leads to nothing"),
        ({"type": "object", "required": ["a"]}, "required has 'a', which properties does not have"),
        ({"properties": {'a"b': {}}}, "a name with characters that JSON escapes"),
        ({"type": "object", "properties": {"a": False}}, "properties.a is false, not an object"),
        ({"type": "strong"}, 'type is "strong"'),
        ({"enum": []}, "enum is not a list of values"),
        ({"prefixItems": [{}], "minItems": 2}, "prefixItems has 1 schemas"),
    ],
)
def test_what_would_not_be_kept_to_is_refused_by_name(schema: Any, reason: str) -> None:
    """outlines-core 0.2.14 passes over most of these."""
    with pytest.raises(UsageError, match=re.escape(reason)):
        compiled_schema(json.dumps(schema))


def test_the_engine_is_told_the_field_and_the_code() -> None:
    assert compile_regex(JsonSchema('{"type": "boolean"}')).num_states > 4
    with pytest.raises(RequestError, match="json_schema cannot be used: the keyword minimum") as caught:
        compile_regex(JsonSchema('{"type": "integer", "minimum": 3}'))
    assert (caught.value.param, caught.value.code) == ("json_schema", "unsupported")
    deep: Any = {"type": "null"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    with pytest.raises(RequestError) as caught:
        compile_regex(JsonSchema(json.dumps(deep)))
    assert caught.value.param == "json_schema"
