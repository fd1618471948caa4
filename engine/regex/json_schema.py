"""A JSON schema as a regular expression: every text that matches it fulfils the schema.

outlines-core writes the expression and ignores what it does not know. So this module first converts a schema to the few
forms that it handles correctly, and refuses any other keyword by name. Not every document that the schema allows
matches: members come in the schema's order, and there are no members that it does not name.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from outlines_core.json_schema import build_regex_from_schema

from engine.regex.anchors import plain
from quant.usage import UsageError

_SAYS_NOTHING = {
    "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator",
    "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip
_KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
}
# outlines-core's own date may be the 31st of February.
_DAYS = "(?:0[1-9]|1[0-9]|2[0-8])"
_LEAP = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_FORMATS: dict[str, str] = {
    "date": f"[1-9][0-9]{{3}}-(?:(?:0[1-9]|1[0-2])-{_DAYS}|"
    f"(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|{_LEAP}-02-29",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_ESCAPED = {*range(0x20), ord('"'), ord("\\")}
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")
Node = dict[str, Any]


class Unsupported(UsageError):
    """A keyword, or a use of it, without an expression."""


def expression(text: str, bytes_of: Callable[[str], set[int]]) -> str:
    """The regular expression of a schema, given as JSON. `bytes_of` gives the bytes of all texts of an expression.

    Raises UsageError with the reason, which names the keyword, if there is none.
    """
    try:
        root = json.loads(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    known = json.dumps(_Schema(root, bytes_of).node(root, "", ()), ensure_ascii=False)
    try:
        return str(build_regex_from_schema(known))
    except ValueError as error:
        raise UsageError(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Schema:
    root: Any
    bytes_of: Callable[[str], set[int]]

    def node(self, given: Any, path: str, within: tuple[str, ...]) -> Node:
        """A schema in a form that is known; `within` are the references that led to it."""
        if given is True:
            given = {}
        if not isinstance(given, dict):
            raise Unsupported(f"{path or 'a schema'} is {json.dumps(given)[:40]}, not an object")
        keys = given.keys() - _SAYS_NOTHING
        for keyword in _ALONE:
            if keyword in keys:
                _only(keys, {keyword}, path)
                return self._combined(keyword, given[keyword], _at(path, keyword), within)
        if keys & {"enum", "const"}:
            return _values(given, keys, path)
        return self._typed(given, keys, path, within)

    def _combined(self, keyword: str, given: Any, path: str, within: tuple[str, ...]) -> Node:
        if keyword == "$ref":
            if given in within:
                raise Unsupported(f"{path} {given} leads to itself")
            return self.node(self._found(given, path), path, (*within, given))
        if not isinstance(given, list) or not given:
            raise UsageError(f"{path} is not a list of schemas")
        nodes = [self.node(part, f"{path}.{number}", within) for number, part in enumerate(given)]
        if keyword == "allOf" and len(nodes) > 1:
            raise Unsupported(f"{path} has more than one schema")
        if keyword == "oneOf" and not all(_is_apart(a, b) for n, a in enumerate(nodes) for b in nodes[:n]):
            raise Unsupported(f"{path} has schemas that one value may fulfil together")
        return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _found(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise Unsupported(f"{path} {json.dumps(reference)[:80]} leads out of the schema, or to all of it")
        found = self.root
        for part in reference[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise UsageError(f"{path} {reference[:80]} leads to nothing")
            found = found[name]
        return found

    def _typed(self, given: Node, keys: set[str], path: str, within: tuple[str, ...]) -> Node:
        kinds = _kinds(given, keys, path)
        _only(keys, {"type"}.union(*(_KEYWORDS[kind] for kind in kinds)), path)
        make = {"object": self._object, "array": self._array, "string": self._string}
        nodes = [make[k](given, path, within) if k in make and keys & _KEYWORDS[k] else {"type": k} for k in kinds]
        return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _object(self, given: Node, path: str, within: tuple[str, ...]) -> Node:
        properties, required = given.get("properties", {}), given.get("required", [])
        for name in required:
            if name not in properties:
                raise Unsupported(f"{_at(path, 'required')} has {name[:80]!r}, which properties does not have")
        if not properties:
            others = given.get("additionalProperties", True)
            if "properties" in given or others is False:
                return {"type": "object", "properties": {}}
            if others is True:
                return {"type": "object"}
            return {"type": "object", "additionalProperties": self.node(others, f"{path}.additionalProperties", within)}
        at = _at(path, "properties")
        for name in properties:
            if json.dumps(name, ensure_ascii=False)[1:-1] != name:
                raise Unsupported(f"{at} has {name[:80]!r}, a name with characters that JSON escapes")
        nodes = {name: self.node(own, f"{at}.{name}", within) for name, own in properties.items()}
        return {"type": "object", "properties": nodes, "required": required}

    def _array(self, given: Node, path: str, within: tuple[str, ...]) -> Node:
        least, most = given.get("minItems", 0), given.get("maxItems")
        if "prefixItems" not in given:
            limits: Node = {name: given[name] for name in ("minItems", "maxItems") if name in given}
            return {"type": "array", "items": self.node(given.get("items", True), _at(path, "items"), within), **limits}
        at, first = _at(path, "prefixItems"), given["prefixItems"]
        if not first or least > len(first) or (most is not None and most < len(first)):
            raise Unsupported(f"{at} has {len(first)} schemas, and an array has just as many items")
        return {"type": "array", "prefixItems": [self.node(p, f"{at}.{n}", within) for n, p in enumerate(first)]}

    def _string(self, given: Node, path: str, within: tuple[str, ...]) -> Node:
        kept: Node = {name: given[name] for name in ("minLength", "maxLength", "pattern", "format") if name in given}
        if len(kept) > 1 and kept.keys() != {"minLength", "maxLength"}:
            raise Unsupported(f"{' and '.join(_at(path, name) for name in kept)} are not supported together")
        if "format" in kept and kept["format"] not in _FORMATS:
            raise Unsupported(f"{_at(path, 'format')} is {kept['format']!r}; known are {' and '.join(_FORMATS)}")
        if "format" in kept:
            return {"type": "string", "pattern": f"(?:{_FORMATS[kept['format']]})"}
        if "pattern" in kept:
            kept["pattern"] = self._pattern(kept["pattern"], _at(path, "pattern"))
        return {"type": "string", **kept}

    def _pattern(self, given: Any, path: str) -> str:
        """A pattern of a string's content. It must match the whole string, which is stricter than the schema."""
        if not isinstance(given, str):
            raise UsageError(f"{path} is not a string")
        try:
            body, is_extended = plain(given)
            met = self.bytes_of(given)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        if met & _ESCAPED:
            raise Unsupported(f"{path} lets quotes, backslashes or control characters come, which JSON escapes")
        return f"(?:{body}\n)" if is_extended else f"(?:{body})"


def _at(path: str, keyword: str) -> str:
    return f"{path}.{keyword}" if path else keyword


def _only(keys: set[str], known: set[str], path: str) -> None:
    others = sorted(keys - known)
    if others:
        beside = f" beside {min(keys & known)}" if keys & known else ""
        raise Unsupported(f"the keyword {_at(path, others[0])}{beside} is not supported")


def _kinds(given: Node, keys: set[str], path: str) -> list[str]:
    """The types of a value: those that the schema names, else that of its keywords, else all."""
    if "type" not in keys:
        return [k for k, own in _KEYWORDS.items() if keys & own][:1] if keys else list(_KEYWORDS)
    kinds: list[Any] = given["type"] if isinstance(given["type"], list) else [given["type"]]
    if not kinds or any(kind not in _KEYWORDS for kind in kinds):
        raise UsageError(f"{_at(path, 'type')} is {json.dumps(given['type'])[:80]}")
    return kinds


def _values(given: Node, keys: set[str], path: str) -> Node:
    """An enumeration of values, of the type that is named."""
    _only(keys, {"enum", "const", "type"}, path)
    if keys >= {"enum", "const"}:
        raise Unsupported(f"{_at(path, 'const')} beside enum is not supported")
    values = given["enum"] if "enum" in keys else [given["const"]]
    if not isinstance(values, list) or not values:
        raise UsageError(f"{_at(path, 'enum')} is not a list of values")
    if "type" in keys:
        kinds = set(_kinds(given, keys, path))
        values = [value for value in values if kinds & set(_types(value))]
        if not values:
            raise UsageError(f"{_at(path, 'enum')} has no value of the type {json.dumps(given['type'])}")
    return {"enum": values}


def _types(value: Any) -> Iterator[str]:
    """The types of a value."""
    match value:
        case None:
            yield "null"
        case bool():
            yield "boolean"
        case int() | float():
            yield "number"
            if value == int(value):
                yield "integer"
        case str():
            yield "string"
        case _:
            yield "array" if isinstance(value, list) else "object"


def _is_apart(a: Node, b: Node) -> bool:
    """Whether no value fulfils two schemas, as far as their forms tell."""
    for one, other in ((a, b), (b, a)):
        if "anyOf" in one:
            return all(_is_apart(part, other) for part in one["anyOf"])
    if "enum" in a and "enum" in b:
        return not any(value == other for value in a["enum"] for other in b["enum"])
    if not set(_possible(a)) & set(_possible(b)):
        return True
    shared: Mapping[str, Any] = a.get("properties", {})
    both = set(a.get("required", ())) & set(b.get("required", ()))
    return any(name in shared and _is_apart(shared[name], b["properties"][name]) for name in both)


def _possible(node: Node) -> Iterator[str]:
    """The types of a schema's values; a number may be whole."""
    if "enum" in node:
        for value in node["enum"]:
            yield from _types(value)
    else:
        yield node["type"]
        if node["type"] in ("integer", "number"):
            yield from ("integer", "number")
