"""What a client is told of a wrong value."""

import json

import pytest


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": ""}, "inputs: String should have at least 1 character after validation, not 0"),
        (
            {"inputs": "a", "parameters": {"stop": ["x" * 257]}},
            "parameters.stop.0: String should have at most 256 characters after validation, not 257",
        ),
        ({"inputs": "\ud800"}, "inputs: the string has half of a surrogate pair"),
    ],
)
def test_a_string_is_called_a_string(client, body, message):
    answer = client.post("/generate", content=json.dumps(body), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, message)
