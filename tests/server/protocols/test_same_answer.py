"""The same blank has the same fill and the same log-probabilities, whatever the protocol asks for it."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

BEFORE, AFTER = "The capital of ", " is Paris, and the river runs through it."
Answer = dict[str, Any]
Found = tuple[str, list[float]]


def native(answer: Answer) -> Found:
    blank = answer["results"][0]["blanks"][0]
    return blank["text"], blank["token_logprobs"]


def openai(answer: Answer) -> Found:
    (choice,) = answer["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"][:-1]  # the last is the end token's


def mistral(answer: Answer) -> Found:
    (choice,) = answer["choices"]
    return choice["message"]["content"], [token["logprob"] for token in choice["logprobs"]["content"]]


def ollama(answer: Answer) -> Found:
    return answer["response"], [token["logprob"] for token in answer["logprobs"]]


def llama_cpp(answer: Answer) -> Found:
    return answer["content"], [token["logprob"] for token in answer["completion_probabilities"]]


def tgi(answer: Any) -> Found:
    (answer,) = answer if isinstance(answer, list) else [answer]
    return answer["generated_text"], [t["logprob"] for t in answer["details"]["tokens"] if not t["special"]]


SIDES = {"prompt": BEFORE, "suffix": AFTER}
TGI = {"inputs": f"{BEFORE}[MASK]{AFTER}", "parameters": {"max_new_tokens": 8, "details": True}}
OPTIONS = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1}
CASES: dict[str, tuple[Answer, Callable[[Answer], Found]]] = {
    "/v1/completions": ({**SIDES, "temperature": 0, "max_tokens": 8, "logprobs": 1}, openai),
    "/beta/completions": ({**SIDES, "temperature": 0, "max_tokens": 8, "logprobs": 1}, openai),
    "/v1/fim/completions": ({**SIDES, "temperature": 0, "max_tokens": 8, "logprobs": True}, mistral),
    "/api/generate": ({**SIDES, "options": OPTIONS, "logprobs": True, "stream": False}, ollama),
    "/infill": (
        {"input_prefix": BEFORE, "input_suffix": AFTER, "temperature": 0, "n_predict": 8, "n_probs": 1},
        llama_cpp,
    ),
    "/generate": (TGI, tgi),
    "/": (TGI, tgi),
    "/models/glm-demo": (TGI, tgi),
    "/completion": ({"prompt": f"{BEFORE}[MASK]{AFTER}", "temperature": 0, "n_predict": 8, "n_probs": 1}, llama_cpp),
}


@pytest.fixture(scope="module")
def expected(demo_url: str) -> Found:
    body = {"segments": [BEFORE, {"mask": "[MASK]"}, AFTER], "max_tokens": 8}
    return native(httpx.post(f"{demo_url}/v1/infill", json=body).json())


@pytest.mark.parametrize("path", CASES)
def test_each_protocol_fills_alike(demo_url: str, expected: Found, path: str) -> None:
    body, found = CASES[path]
    answer = httpx.post(demo_url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert found(answer.json()) == expected
    assert expected[1]


def test_fill_mask_gives_its_probability(demo_url: str) -> None:
    text = f"{BEFORE}[MASK]{AFTER}"
    body = {"text": text, "max_tokens": 8}
    blank = httpx.post(f"{demo_url}/v1/infill", json=body, timeout=60).json()["results"][0]["blanks"][0]
    assert blank["end_logprob"] is not None
    asked = {"inputs": text, "parameters": {"targets": [blank["text"]]}}
    (found,) = httpx.post(demo_url, json=asked, timeout=60).json()
    assert (found["token"], found["token_str"]) == (blank["token_ids"][0], blank["text"])
    assert math.log(found["score"]) == pytest.approx(blank["logprob"] + blank["end_logprob"], abs=1e-4)
