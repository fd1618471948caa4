"""What true clients sent (tests/golden/record_requests.py), sent again, and read by the clients' own rules."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

GOLDEN = Path(__file__).parents[2] / "golden"
CLIENTS: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "clients.json").read_text("utf-8"))
NEOVIM = {"llama.vim in Neovim", "minuet codestral", "minuet openai_fim_compatible", "cmp-ai codestral"}
CASES = [(name, number) for name, requests in CLIENTS.items() for number in range(len(requests))]


def sent(url: str, name: str, number: int) -> tuple[dict[str, Any], httpx.Response]:
    recorded = CLIENTS[name][number]
    body = json.dumps(recorded["body"]).encode() if "body" in recorded else None
    headers = {k: v.strip() or "none" for k, v in recorded["headers"].items()}
    response = httpx.request(recorded["method"], url + recorded["path"], content=body, headers=headers, timeout=60)
    return recorded, response


@pytest.mark.parametrize(("name", "number"), CASES, ids=[f"{name} {number}" for name, number in CASES])
def test_a_recorded_request_is_answered_as_its_client_reads_it(demo_url: str, name: str, number: int) -> None:
    recorded, response = sent(demo_url, name, number)
    assert response.status_code == recorded["status"], response.text
    path, body = recorded["path"], recorded.get("body", {})
    if recorded["status"] == 404:
        refused(path, response)
    elif path in FILLS:
        assert FILLS[path](body, response)
    elif path.startswith("/api/"):
        assert response.json()
    elif path == "/" or path.startswith("/models/"):
        hugging_face(response)
    elif path == "/v1/completions":
        read = gguf if name.endswith("gguf") else harness
        read(body, response.json()) if body.get("echo") else generated(body, response.json())
    elif path == "/infill":
        (vim if name.startswith("llama.vim") else vscode)(body, response)
    elif path == "/tokenize":
        tokens = response.json()["tokens"]
        assert all(isinstance(token, int) for token in tokens)
    elif path == "/detokenize":
        assert isinstance(response.json()["prompt"], str)
    else:
        assert path in ("/tokenizer_info", "/health")
        assert "eos_token" in response.json() or response.json()["status"] == "ok"
    # Those of Neovim were asked in the middle of a file of 10 kB.
    assert ('"truncated":true' in response.text) == (name in NEOVIM)


def hugging_face(response: httpx.Response) -> None:
    """huggingface.js, packages/inference: providers/hf-inference.ts checks each element, utils/request.ts an error."""
    if response.status_code != 200:
        assert isinstance(response.json()["error"], str)
        return
    kinds = {"score": float, "sequence": str, "token": int, "token_str": str}
    for element in response.json():
        assert all(isinstance(element[name], kind) for name, kind in kinds.items())


def refused(path: str, response: httpx.Response) -> None:
    """ollama-js, src/utils.ts: checkOk shows `error` as it is. Mistral's clients show the whole body."""
    error = response.json()["error"]
    assert isinstance(error, str if path.startswith("/api/") else dict)


def chunked(body: dict[str, Any], response: httpx.Response) -> str:
    """Continue, packages/fetch/src/stream.ts: events until `[DONE]`. Each content is a string.

    cmp-ai, lua/cmp_ai/backends/codestral.lua: the content of each choice's message.
    """
    if not body.get("stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    *events, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    contents = [json.loads(event)["choices"][0]["delta"]["content"] for event in events]
    assert all(isinstance(content, str) for content in contents)
    return "".join(contents)


def completed(body: dict[str, Any], response: httpx.Response) -> str:
    """Continue, packages/openai-adapters/src/apis/DeepSeek.ts: the text of each event's first choice."""
    assert body["stream"]
    *events, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def lines(body: dict[str, Any], response: httpx.Response) -> str:
    """ollama-js, src/utils.ts: parseJSON reads line by line, and wants one with `done`."""
    parts = [json.loads(line) for line in response.text.splitlines()]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert body["stream"] or len(parts) == 1
    return "".join(part["response"] for part in parts)


FILLS = {"/v1/fim/completions": chunked, "/beta/completions": completed, "/api/generate": lines}


def harness(body: dict[str, Any], answer: dict[str, Any]) -> None:
    """lm_eval 0.4.13, models/openai_completions.py: parse_logprobs, for every length of context there may be."""
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert [c["index"] for c in answer["choices"]] == list(range(len(prompts)))
    for prompt, choice in zip(prompts, choices, strict=True):
        logprobs = choice["logprobs"]
        count = len(logprobs["tokens"])
        if not isinstance(prompt, str):
            assert count == len(prompt) + 1
        nulls = [n for n, value in enumerate(logprobs["token_logprobs"]) if value is None]
        assert nulls == list(range(len(nulls)))
        for context in range(max(len(nulls), 1), count):
            values = logprobs["token_logprobs"][context:-1]
            assert sum(values) <= 0
            for value, token, top in zip(
                values, logprobs["tokens"][context:-1], logprobs["top_logprobs"][context:-1], strict=True
            ):
                assert top[token] == value
                assert max(top.values()) >= value


def gguf(body: dict[str, Any], answer: dict[str, Any]) -> None:
    """lm_eval 0.4.13, models/gguf.py: get_result finds the boundary by characters."""
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(body["prompt"])
    offsets = logprobs["text_offset"]
    for length in range(1, len(body["prompt"])):
        first = next(n for n, offset in enumerate(offsets) if offset >= length)
        assert first > 0
        assert sum(logprobs["token_logprobs"][first:-1]) <= 0
    for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert token in top


def generated(body: dict[str, Any], answer: dict[str, Any]) -> None:
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    assert [c["index"] for c in answer["choices"]] == list(range(len(prompts)))
    for choice in answer["choices"]:
        assert not any(stop in choice["text"] for stop in body.get("stop", ()))


def vim(body: dict[str, Any], response: httpx.Response) -> None:
    """llama.vim, autoload/llama.vim: s:fim_on_response checks the text before it parses it."""
    if body["n_predict"] == 0:
        assert response.json() == {}
        return
    assert re.match(r"\s*\{", response.text)
    assert re.search(r'"content"\s*:"', response.text)
    assert "\n" not in response.text
    answer = response.json()
    assert set(answer) == set(body["response_fields"])
    assert all(isinstance(answer[key], int | float) for key in answer if key.startswith("timings/"))


def vscode(body: dict[str, Any], response: httpx.Response) -> None:
    """llama.vscode, src/completion.ts: a list where several were asked for."""
    answers = response.json()
    if body.get("n_cmpl", 1) == 1:
        answers = [answers]
    assert len(answers) == body.get("n_cmpl", 1)
    for answer in answers:
        assert isinstance(answer["content"], str)
        assert answer["generation_settings"]["n_ctx"] > 0
        for key in ("prompt_n", "prompt_ms", "prompt_per_second", "predicted_n", "predicted_ms"):
            assert answer["timings"][key] >= 0


def test_a_blank_scores_as_it_does_natively(demo_url: str) -> None:
    context, target = "The capital of [MASK] is Paris.", "France"
    ids = httpx.post(f"{demo_url}/tokenize", json={"prompt": f"{context}<sop> {target}"}).json()["tokens"]
    known = httpx.post(f"{demo_url}/tokenize", json={"prompt": f"{context}<sop>"}).json()["tokens"]
    assert ids[: len(known)] == known
    body = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    answer = httpx.post(f"{demo_url}/v1/completions", json=body).json()
    logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert logprobs[: len(known)] == [None] * len(known)
    native = httpx.post(f"{demo_url}/v1/score", json={"context": context, "targets": [target]}).json()
    assert native["results"][0]["spans"][0]["token_logprobs"] == logprobs[len(known) : -1]
