#!/usr/bin/env bash
# outlines-core 0.2.14: keywords of a JSON schema that its expressions cannot keep to are passed over without a word.
#
# A good guess: `build_regex_from_schema` gives an expression of documents that are valid by the schema, and raises for a keyword
# that has none (as it does for some). Seen: `minimum`, `multipleOf`, `uniqueItems`, `maxProperties`, and a name in `required` that
# has no property are ignored, and `format: date` takes 31 September. So a constrained answer can be invalid by the very schema
# that it was constrained by; jsonschema refuses each of these documents.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check outlines_core==0.2.14 jsonschema==4.26.0 2> /dev/null
cd "$folder"
seen=$("$folder/venv/bin/python" -c '
import json, re
from importlib.metadata import version

import jsonschema
from outlines_core.json_schema import build_regex_from_schema

number = {"type": "integer"}
cases = [
    ({**number, "minimum": 10}, "3"),
    ({**number, "multipleOf": 5}, "7"),
    ({"type": "array", "items": number, "uniqueItems": True}, "[1, 1]"),
    ({"type": "object", "properties": {"a": number}, "required": ["a", "b"]}, "{\"a\": 1}"),
    ({"type": "object", "properties": {"a": number}, "maxProperties": 0}, "{\"a\": 1}"),
]
print(version("outlines_core"))
for schema, text in cases:
    matches = re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None
    print(text, "matches" if matches else "does not match",
          "valid" if jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)) else "invalid")
dates = build_regex_from_schema(json.dumps({"type": "string", "format": "date"}))
print("2026-09-31", "matches" if re.fullmatch(dates, "\"2026-09-31\"") else "does not match")
')
echo "$seen"
[ "$seen" = '0.2.14
3 matches invalid
7 matches invalid
[1, 1] matches invalid
{"a": 1} matches invalid
{"a": 1} matches invalid
2026-09-31 matches' ]
