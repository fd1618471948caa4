"""A sampling parameter is added by one file: every protocol and the command line have it, and the engine obeys it."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.addition.conftest import Run
from tests.addition.served import SERVED

TEXT = {"text": "the [MASK] sang", "max_tokens": 4, "min_tokens": 4}
PROMPT = {"prompt": "the [MASK] sang", "max_tokens": 4, "min_tokens": 4, "temperature": 0}
EDIT = {"input_prefix": "the ", "input_suffix": " sang", "n_predict": 4, "temperature": 0, "return_tokens": True}
ODD = {"odd_penalty": 1000}


def test_a_sampling_parameter_is_one_file(addition: Callable[[str], Run], tiny_checkpoint: Callable[..., Path]) -> None:
    asked = [
        ("POST", "/v1/infill", TEXT),
        ("POST", "/v1/infill", TEXT | ODD),
        ("POST", "/v1/infill", TEXT | {"odd_penalty": 1001}),
        ("POST", "/v1/completions", PROMPT | ODD),
        ("POST", "/infill", EDIT | ODD),
    ]
    found = addition("logit_rules/odd.py")(SERVED, str(tiny_checkpoint()), json.dumps(asked), "fill --help")
    plain, even, refused, completion, edit = found["answers"]
    assert any(token % 2 for token in plain[1]["results"][0]["blanks"][0]["token_ids"])
    blank = even[1]["results"][0]["blanks"][0]
    assert not any(token % 2 for token in blank["token_ids"])
    assert refused[0] == 400
    assert refused[1]["error"]["param"] == "odd_penalty"
    assert completion[1]["choices"][0]["text"] == blank["text"]
    assert not any(token % 2 for token in edit[1]["tokens"])
    assert "--odd-penalty" in found["shown"]
