"""Characters that come in parts or not at all, in answers of the demo: the right values are Python's of the bytes."""

import json
from typing import Any

import httpx
import pytest

# Ids of the demo.
HALF, OTHER_HALF, END = 196, 170, 12006  # the bytes 0xC3 and 0xA9 of é, and <eop>
ASKED = {"prompt": "And he said", "temperature": 0, "logprobs": 1}


@pytest.fixture(scope="module")
def ask(demo_url: str) -> Any:
    return lambda path, **body: httpx.post(f"{demo_url}{path}", json=body, timeout=60).raise_for_status()


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_offsets_of_broken_bytes_count_them(ask: Any) -> None:
    (choice,) = ask("/v1/completions", **ASKED, max_tokens=6, logit_bias={HALF: 100}).json()["choices"]
    assert choice["text"] == "\ufffd" * 6
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]


def test_broken_bytes_are_streamed_as_they_come(ask: Any) -> None:
    chunks = events(ask("/v1/completions", **ASKED, max_tokens=60, logit_bias={HALF: 100}, stream=True))
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    # Each but the last is certain with the byte behind it.
    assert texts == ["\ufffd"] * 58 + ["\ufffd" * 2, ""]


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        ([411, HALF], {OTHER_HALF: 100}, 1, " untoé", [0, 5, 5]),
        ([411, HALF], {OTHER_HALF: 100}, 2, " untoé\ufffd", [0, 5, 5, 6]),
        ([411, HALF], {HALF: 100}, 1, " unto\ufffd\ufffd", [0, 5, 6]),
        ([411, HALF], {}, 0, " unto\ufffd", [0, 5]),
        ([HALF, OTHER_HALF], {HALF: 100}, 1, "é\ufffd", [0, 0, 1]),
    ],
)
def test_a_prompt_that_ends_inside_a_character_is_finished_by_what_follows(
    ask: Any, stream: bool, logprobs: int | None, case: tuple[list[int], dict[int, int], int, str, list[int]]
) -> None:
    prompt, likely, most, text, offsets = case
    bias = {END: -100, **likely}
    body = {"prompt": prompt, "max_tokens": most, "temperature": 0, "echo": True, "logit_bias": bias}
    response = ask("/v1/completions", **body, logprobs=logprobs, stream=stream)
    parts = events(response) if stream else [response.json()]
    choices = [part["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == text
    if logprobs is not None:
        assert [at for choice in choices for at in choice["logprobs"]["text_offset"]] == offsets


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_llama_cpp_s_probabilities_are_the_tokens_own(ask: Any, stream: bool) -> None:
    body = {"input_prefix": "And he said", "input_suffix": ".", "n_predict": 4, "temperature": 0, "n_probs": 3}
    response = ask("/infill", **body, logit_bias=[[HALF, 100]], stream=stream)
    parts = events(response)[:-1] if stream else [response.json()]
    found = [entry for part in parts for entry in part["completion_probabilities"]]
    assert [entry["bytes"] for entry in found] == [[0xC3]] * 4
    assert "".join(part["content"] for part in parts) == "\ufffd" * 4
    assert all(len(entry["top_logprobs"]) == 3 for entry in found)
    plain = ask("/infill", **body, stream=stream)
    parts = events(plain)[:-1] if stream else [plain.json()]
    found = [entry for part in parts for entry in part["completion_probabilities"]]
    assert bytes(b for entry in found for b in entry["bytes"]).decode() == "".join(part["content"] for part in parts)


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_behind_a_stop_string_has_no_probability_in_a_stream_either(ask: Any, stream: bool) -> None:
    """llama.cpp leaves it out (tools/server/server-context.cpp, send_final_response). The half character is told with
    the token that shows that it is broken."""
    comma = 259
    body = {"prompt": ["And he said", HALF], "n_predict": 4, "temperature": 0, "n_probs": 1, "stop": [","]}
    response = ask("/completion", **body, logit_bias=[[comma, 100]], stream=stream)
    parts = events(response) if stream else [response.json()]
    assert "".join(part["content"] for part in parts) == "\ufffd"
    assert parts[-1]["stop_type"] == "word"
    assert [entry["id"] for part in parts for entry in part.get("completion_probabilities", [])] == []


def test_stop_strings_wait_for_the_minimum(ask: Any) -> None:
    body = {**ASKED, "max_tokens": 8, "stop": ["unto"]}
    early = ask("/v1/completions", **body).json()["choices"][0]
    assert len(early["logprobs"]["tokens"]) == 1
    late = ask("/v1/completions", **body, min_tokens=6).json()["choices"][0]
    free = ask("/v1/completions", **{**body, "stop": None}, min_tokens=6).json()["choices"][0]
    assert len(late["logprobs"]["tokens"]) >= 6
    assert free["text"].startswith(late["text"])
    assert "unto" in late["text"]
