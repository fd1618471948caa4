"""What becomes of texts that are too long, and of other models' templates, by route and by setting."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from engine.requests import Fill, Mask
from server.settings import Settings
from tests.server.conftest import CARD, FakeEngine

ZED = "<|code_prefix|>a = <|code_suffix|> + 1<|code_middle|>"
Make = Callable[..., TestClient]


def asked(engine: FakeEngine, client: TestClient, path: str, body: dict[str, Any]) -> Fill:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    fill = engine.asked[-1]
    assert isinstance(fill, Fill)
    return fill


def test_an_editor_s_blank_is_trimmed_and_its_length_capped(engine: FakeEngine, make_client: Make) -> None:
    with make_client() as client:
        fill = asked(engine, client, "/v1/completions", {"prompt": "a", "suffix": "b", "max_tokens": 4096})
        assert fill.fit
        assert fill.max_tokens == (CARD.max_span,)
        fill = asked(engine, client, "/v1/completions", {"prompt": "a [MASK] b", "max_tokens": 4096})
        assert fill.fit


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": "a", "echo": True, "logprobs": 1}, {"prompt": [5]}])
def test_a_prompt_without_a_blank_is_not(engine: FakeEngine, make_client: Make, body: dict[str, Any]) -> None:
    with make_client() as client:
        assert not asked(engine, client, "/v1/completions", {**body, "max_tokens": 8}).fit
        response = client.post("/v1/completions", json={**body, "max_tokens": 1025})
        assert response.json()["error"]["message"] == "max_tokens is 1025; the limit is 1024"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/fim/completions", {"prompt": "a"}),
        ("/api/generate", {"prompt": "a", "suffix": ""}),
        ("/api/generate", {"prompt": "a", "options": {"suffix": ""}}),
    ],
)
def test_an_editor_s_file_is_trimmed_at_its_end_too(
    engine: FakeEngine, make_client: Make, path: str, body: dict[str, Any]
) -> None:
    with make_client() as client:
        fill = asked(engine, client, path, body)
        assert fill.fit
        assert fill.inputs == (("a",),)
        assert not asked(engine, client, "/api/generate", {"prompt": "a"}).fit
    with make_client(long_texts="refuse") as client:
        assert not asked(engine, client, path, body).fit


def test_a_length_over_the_limit_is_called_as_the_client_calls_it(make_client: Make) -> None:
    with make_client() as client:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 1025}}
        assert client.post("/generate", json=body).json()["error"] == "max_new_tokens is 1025; the limit is 1024"


def test_native_texts_stay_whole_unless_the_operator_says_so(engine: FakeEngine, make_client: Make) -> None:
    body = {"text": "a [MASK]"}
    with make_client() as client:
        assert not asked(engine, client, "/v1/infill", body).fit
    with make_client(long_texts="trim") as client:
        assert asked(engine, client, "/v1/infill", body).fit
        assert not asked(engine, client, "/v1/infill", {"text": "[MASK] a [MASK]"}).fit
    with make_client(long_texts="refuse") as client:
        assert not asked(engine, client, "/v1/completions", {"prompt": "a", "suffix": "b"}).fit


def test_a_template_becomes_a_blank(engine: FakeEngine, make_client: Make) -> None:
    around = (("a = ", Mask("[MASK]"), " + 1"),)
    with make_client() as client:
        assert asked(engine, client, "/v1/completions", {"prompt": ZED}).inputs == around
        assert asked(engine, client, "/v1/completions", {"prompt": [ZED, "x"]}).inputs == (*around, ("x",))
        assert asked(engine, client, "/v1/infill", {"text": ZED}).inputs == ((ZED,),)
        scored = asked(engine, client, "/v1/completions", {"prompt": ZED, "echo": True, "logprobs": 1})
        assert scored.inputs == ((ZED,),)
    with make_client(fim_templates="qwen,glm") as client:
        assert asked(engine, client, "/v1/infill", {"text": ZED}).inputs == around


@pytest.mark.parametrize("before", ["a[MASK] = ", "[MASK] [gMASK]"])
def test_masks_in_a_template_are_text(engine: FakeEngine, make_client: Make, before: str) -> None:
    prompt = f"<|fim_prefix|>{before}<|fim_suffix|> + [sMASK]<|fim_middle|>"
    around = ((before, Mask("[MASK]"), " + [sMASK]"),)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": prompt},
        "/beta/completions": {"prompt": prompt},
        "/v1/fim/completions": {"prompt": prompt},
        "/completion": {"prompt": prompt},
        "/generate": {"inputs": prompt},
        "/api/generate": {"prompt": prompt, "stream": False},
    }
    with make_client() as client:
        for path, body in bodies.items():
            assert asked(engine, client, path, body).inputs == around, path
    with make_client(fim_templates="none") as client:
        response = client.post("/v1/completions", json={"prompt": prompt})
        assert response.json()["error"]["message"].endswith("where one text is the answer; the limit is 1")
        one = prompt.replace(before, "a [MASK]").replace("[sMASK]", "b")
        fill = asked(engine, client, "/v1/completions", {"prompt": one})
        assert fill.inputs == (("<|fim_prefix|>a ", Mask("[MASK]"), "<|fim_suffix|> + b<|fim_middle|>"),)


def test_a_template_may_have_an_empty_suffix_behind_it(engine: FakeEngine, make_client: Make) -> None:
    around = (("a = ", Mask("[MASK]"), " + 1"),)
    with make_client() as client:
        assert asked(engine, client, "/v1/completions", {"prompt": ZED, "suffix": ""}).inputs == around
        assert asked(engine, client, "/v1/fim/completions", {"prompt": ZED, "suffix": ""}).inputs == around
        assert asked(engine, client, "/v1/completions", {"prompt": "a", "suffix": ""}).inputs == (
            ("a", Mask("[MASK]"), ""),
        )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ZED, "suffix": "b"}),
        ("/v1/completions", {"prompt": f"{ZED} [MASK]"}),
        ("/v1/infill", {"text": f"{ZED} [MASK]"}),
    ],
)
def test_marks_around_a_blank_of_its_own_are_told(make_client: Make, path: str, body: dict[str, Any]) -> None:
    with make_client() as client:
        assert "template glm" in client.post(path, json=body).headers["x-glm-infill-warning"]
        read = client.post("/v1/completions", json={"prompt": "<|fim_prefix|>" + ZED + "<|fim_suffix|><|fim_middle|>"})
        assert "x-glm-infill-warning" not in read.headers


@pytest.mark.parametrize("stream", [False, True])
def test_marks_that_are_read_as_text_are_told(make_client: Make, stream: bool) -> None:
    told = "the text has the marks of the template glm; this route reads them as text"
    with make_client(fim_templates="none") as client:
        for path, field in (("/v1/infill", "text"), ("/v1/completions", "prompt"))[: 1 if stream else 2]:
            response = client.post(path, json={field: ZED, "stream": stream})
            assert response.headers["x-glm-infill-warning"] == told
            assert f'"warnings":["{told}"]' in response.text
        response = client.post("/v1/infill", json={"text": "a", "stream": stream})
        assert "x-glm-infill-warning" not in response.headers
        assert "warnings" not in response.text


def test_a_model_that_cannot_write_between_leaves_templates_as_text(engine: FakeEngine, make_client: Make) -> None:
    engine.changes = {"masks": ["[gMASK]"]}
    with make_client() as client:
        response = client.post("/v1/completions", json={"prompt": ZED})
        assert "x-glm-infill-warning" in response.headers


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValidationError, match="'gpt' is not a template; the templates are glm, codegeex"):
        Settings(fim_templates="qwen,gpt")
