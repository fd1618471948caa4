"""Mistral's, Ollama's, LiteLLM's and OpenAI's own clients fill a blank at a server with the demo model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from mistralai.client.models import BaseModelCard

BLANK: dict[str, Any] = {"prompt": "The capital of ", "suffix": " is Paris."}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
OPTIONS: dict[str, Any] = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1}
NO_CHAT = "this server fills blanks; there is no chat"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def fill(demo_url: str) -> str:
    """What stands in the blank, by the server's own route."""
    body = {"segments": [BLANK["prompt"], {"mask": "[MASK]"}, BLANK["suffix"]], "max_tokens": 8}
    text = httpx.post(f"{demo_url}/v1/infill", json=body).json()["results"][0]["blanks"][0]["text"]
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module")
def mistral(demo_url: str) -> Iterator[Mistral]:
    with Mistral(api_key="none", server_url=demo_url) as client:
        yield client


@pytest.fixture(scope="module")
def local(demo_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=demo_url) as client:
        yield client


def test_mistral_gets_a_fill(mistral: Mistral, fill: str) -> None:
    answer = mistral.fim.complete(model="glm-demo", **BLANK, **GREEDY, random_seed=7, stop=["\n"])
    (choice,) = answer.choices
    assert choice.message is not None
    assert (choice.message.content, choice.finish_reason) == (fill, "stop")
    usage = answer.usage
    assert usage.total_tokens == (usage.prompt_tokens or 0) + (usage.completion_tokens or 0) > 0


def test_mistral_s_stream_adds_up(mistral: Mistral, fill: str) -> None:
    with mistral.fim.stream(model="glm-demo", **BLANK, **GREEDY) as events:
        chunks = [event.data for event in events]
    contents = [chunk.choices[0].delta.content for chunk in chunks]
    assert all(isinstance(content, str) for content in contents)
    assert "".join(map(str, contents)) == fill
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].usage
    assert (
        chunks[-1].usage.completion_tokens == len(chunks) - 1
    )  # the first has no token; the last stands for the end token


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [({"model": "other"}, 404, "model"), ({"temperature": -1.0}, 400, "temperature")],
)
def test_mistral_shows_a_refusal(mistral: Mistral, changes: dict[str, Any], status: int, param: str) -> None:
    asked: dict[str, Any] = {"model": "glm-demo", **BLANK, **changes}
    with pytest.raises(SDKError) as refused:
        mistral.fim.complete(**asked)
    assert refused.value.status_code == status
    assert json.loads(refused.value.body)["error"]["param"] == param
    with pytest.raises(SDKError) as streamed:
        mistral.fim.stream(**asked)
    assert streamed.value.status_code == status


def test_mistral_lists_models(mistral: Mistral) -> None:
    for listed in (*(mistral.models.list().data or []), mistral.models.retrieve(model_id="glm-demo")):
        assert isinstance(listed, BaseModelCard)
        assert (listed.id, listed.capabilities.completion_fim, listed.max_context_length) == ("glm-demo", True, 512)


def test_mistral_s_chat_is_refused(mistral: Mistral) -> None:
    with pytest.raises(SDKError, match=NO_CHAT) as refused:
        mistral.chat.complete(model="glm-demo", messages=HELLO)
    assert refused.value.status_code == 404


def test_ollama_gets_a_fill(local: ollama.Client, fill: str) -> None:
    answer = local.generate(model="glm-demo", **BLANK, options=OPTIONS, logprobs=True, top_logprobs=2)
    assert (answer.response, answer.done, answer.done_reason) == (fill, True, "stop")
    assert answer.logprobs is not None
    assert len(answer.logprobs) + 1 == answer.eval_count  # the end token has no text
    for token in answer.logprobs:
        assert token.top_logprobs is not None
        assert token.top_logprobs[0].logprob == token.logprob  # greedy
        assert len(token.top_logprobs) == 2
    assert answer.total_duration is not None
    assert answer.total_duration > 0


def test_ollama_s_stream_adds_up(local: ollama.Client, fill: str) -> None:
    parts = list(local.generate(model="glm-demo:latest", **BLANK, options=OPTIONS, stream=True))
    assert "".join(part.response or "" for part in parts) == fill
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == len(parts)  # the last stands for the end token


def test_ollama_lists_and_shows(local: ollama.Client) -> None:
    assert [model.model for model in local.list().models] == ["glm-demo"]
    assert [model.model for model in local.ps().models] == ["glm-demo"]
    shown = local.show("glm-demo")
    assert shown.capabilities == ["completion", "insert"]
    assert ".Suffix" in (shown.template or "")
    assert shown.modelinfo is not None
    assert shown.modelinfo["glm.context_length"] == 512


def test_ollama_shows_refusals(local: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        local.generate(model="other", prompt="a")
    with pytest.raises(ollama.ResponseError) as streamed:
        list(local.generate(model="other", prompt="a", stream=True))
    with pytest.raises(ollama.ResponseError) as wrong:
        local.generate(model="glm-demo", prompt="a", options={"temperature": -1})
    with pytest.raises(ollama.ResponseError) as chat:
        local.chat(model="glm-demo", messages=HELLO)
    with pytest.raises(ollama.ResponseError) as embedding:
        local.embed(model="glm-demo", input="a")
    statuses = [error.value.status_code for error in (unknown, streamed, wrong, chat, embedding)]
    assert statuses == [404, 404, 400, 404, 404]
    assert unknown.value.error == streamed.value.error == "no such model is loaded; there is only 'glm-demo'"
    assert wrong.value.error.startswith("options.temperature: ")
    assert chat.value.error.startswith(NO_CHAT)
    assert "/api/generate" in embedding.value.error


@pytest.fixture(scope="module")
def by_litellm(demo_url: str) -> dict[str, Any]:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, str(GOLDEN / "litellm_fills.py"), demo_url]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("provider", ["codestral", "ollama", "openai", "deepseek"])
def test_litellm_gets_a_fill(by_litellm: dict[str, Any], fill: str, provider: str) -> None:
    found = by_litellm[provider]
    assert (found["text"], found["reason"], found["streamed"]) == (fill, "stop", fill)
    prompt, completion, total = found["usage"]
    assert total == prompt + completion > 0
    assert "no such model is loaded; there is only 'glm-demo'" in found["refusal"]


def test_openai_s_client_fills_by_deepseek_s_path(demo_url: str, fill: str) -> None:
    with openai.OpenAI(base_url=f"{demo_url}/beta", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["glm-demo"]
        answer = client.completions.create(model="glm-demo", **BLANK, **GREEDY)
        chunks = list(client.completions.create(model="glm-demo", **BLANK, **GREEDY, stream=True))
        with pytest.raises(openai.NotFoundError, match=NO_CHAT):
            client.chat.completions.create(model="glm-demo", messages=HELLO)
    assert answer.choices[0].text == "".join(chunk.choices[0].text for chunk in chunks) == fill


def test_openai_s_client_shows_that_there_is_no_chat(demo_url: str) -> None:
    with openai.OpenAI(base_url=f"{demo_url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match=NO_CHAT):
            client.chat.completions.create(model="glm-demo", messages=HELLO)
        with pytest.raises(openai.NotFoundError, match=NO_CHAT):
            client.responses.create(model="glm-demo", input="Hello")
