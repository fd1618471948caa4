"""A protocol is added by one file: it answers, is described, goes through the queue, and refuses in its own shape."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.addition.conftest import Run
from tests.addition.served import SERVED


def test_a_protocol_is_one_file(addition: Callable[[str], Run], tiny_checkpoint: Callable[..., Path]) -> None:
    asked = [
        ("POST", "/toy", {"before": "the ", "after": " sang"}),
        ("POST", "/v1/infill", {"text": "the [MASK] sang", "max_tokens": 3}),
        ("POST", "/toy", {"before": "the ", "after": " sang", "presence_penalty": 3}),
        ("GET", "/toy", None),
        ("GET", "/openapi.json", None),
    ]
    found = addition("protocols/toy.py")(SERVED, str(tiny_checkpoint()), json.dumps(asked), "")
    toy, native, refused, unknown, api = found["answers"]
    assert toy == [200, {"between": [native[1]["results"][0]["blanks"][0]["text"]]}]
    assert refused == [400, {"toy": "presence_penalty: Input should be less than or equal to 2"}]
    assert unknown == [405, {"toy": "GET /toy: this route takes POST; /docs describes it"}]
    assert "ToyRequest" in api[1]["components"]["schemas"]
    assert "/toy" in api[1]["paths"]


def test_its_work_goes_through_the_queue_and_into_batches(addition: Callable[[str], Run]) -> None:
    code = """
import json
from server.app import ROUTES, WORK
from server.commands.batch import BODIES
print(json.dumps(["/toy" in ROUTES, "/toy" in WORK, "/toy" in BODIES]))
"""
    assert addition("protocols/toy.py")(code) == [True, True, True]
