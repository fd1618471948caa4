"""Models by name, as openai's own client asks for them."""

from collections.abc import Callable, Iterator

import openai
import pytest
from starlette.testclient import TestClient

from engine.config import EngineConfig
from engine.events import AdapterCard
from engine.loading import load_runner
from engine.model_card import model_card
from server.keyfile import new_key
from server.settings import Settings


@pytest.fixture
def openai_client(client: TestClient, engine) -> Iterator[openai.OpenAI]:
    engine.changes = {"name": "THUDM/glm-10b", "aliases": ["gpt-3.5-turbo-instruct", "glm 10b"]}
    engine.adapters = [AdapterCard("poems", "lora", 3)]
    with openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=client) as made:
        yield made


@pytest.mark.parametrize("name", ["THUDM/glm-10b", "gpt-3.5-turbo-instruct", "glm 10b", "poems"])
def test_each_name_of_the_list_can_be_retrieved(openai_client: openai.OpenAI, name: str) -> None:
    listed = {model.id: model for model in openai_client.models.list().data}
    assert list(listed) == ["THUDM/glm-10b", "gpt-3.5-turbo-instruct", "glm 10b", "poems"]
    found = openai_client.models.retrieve(name)
    assert found == listed[name]
    assert (found.id, found.object, found.owned_by) == (name, "model", "glm-infill")
    assert (name == "poems") == (getattr(found, "parent", None) == "THUDM/glm-10b")


@pytest.mark.parametrize("name", ["THUDM", "THUDM/glm-10b/x", "poem", "x" * 300])
def test_another_name_is_not_found(openai_client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.models.retrieve(name)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_name_does_not_become_a_label(openai_client: openai.OpenAI, client: TestClient) -> None:
    openai_client.models.retrieve("THUDM/glm-10b")
    text = client.get("/metrics").text
    assert 'route="/v1/models/{name}"' in text
    assert 'route="/v1/models/THUDM' not in text


@pytest.mark.parametrize("name", ["THUDM/glm-10b", "gpt-3.5-turbo-instruct", "", None])
def test_answers_have_the_first_name_whatever_they_were_asked_by(
    openai_client: openai.OpenAI, client: TestClient, name: str | None
) -> None:
    """vLLM's --served-model-name: all are answered, the first is in the answer. An empty name is none."""
    answer = client.post("/v1/completions", json={"model": name, "prompt": "a"}).json()
    assert answer["model"] == "THUDM/glm-10b"
    for path, body in (
        ("/v1/infill", {"text": "a"}),
        ("/v1/score", {"text": "a"}),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1]}),
    ):
        response = client.post(path, json=body if name is None else {**body, "model": name})
        assert response.json()["model"] == "THUDM/glm-10b", response.text


def test_a_model_that_is_not_there_is_not_found(client: TestClient, refused: Callable[..., object]) -> None:
    refused(client.post("/v1/infill", json={"text": "a", "model": "other"}), 404, "model")
    refused(client.post("/v1/infill", json={"text": "a", "adapter": "other"}), 404, "adapter")


def test_an_adapter_cannot_take_a_served_name(make_client, engine, refused, tmp_path) -> None:
    key = new_key(tmp_path / "keys.jsonl", name="root", role="admin")
    client = make_client(adapter_root=tmp_path, api_keys=tmp_path / "keys.jsonl")
    asked = {"headers": {"authorization": f"Bearer {key}"}, "json": {"name": "poems", "path": "none"}}
    refused(client.post("/v1/adapters", **asked), 404, "path")
    engine.changes = {"name": "demo", "aliases": ["poems"]}
    refused(client.post("/v1/adapters", **asked), 409, "name")


@pytest.mark.parametrize(
    ("given", "names"),
    [("a, THUDM/glm-10b,a", ("a", "THUDM/glm-10b")), (["x y", "b"], ("x y", "b")), ("", ()), ([], ())],
)
def test_names_are_given_by_flags_or_by_commas(given: object, names: tuple[str, ...]) -> None:
    settings = Settings.model_validate({"served_model_names": given})
    assert settings.served_model_names == names
    assert EngineConfig.of(settings).served_model_names == names


@pytest.mark.parametrize(
    "given", [["a,b"], [""], ["a\nb"], ["x" * 257], {"served_model_names": ["a"], "adapters": {"a": "/x"}}]
)
def test_what_is_no_name_is_refused(given: object) -> None:
    whole = given if isinstance(given, dict) else {"served_model_names": given}
    with pytest.raises(ValueError, match="served_model_names"):
        Settings.model_validate(whole)


def test_a_card_has_the_served_names_or_its_folder_s(tiny_checkpoint) -> None:
    folder = tiny_checkpoint()
    loaded = load_runner(EngineConfig(str(folder), kv_cache_gb=0.01))
    assert model_card(loaded, 1).names == [folder.name]
    assert model_card(loaded, 1, ("a", "b/c")).names == ["a", "b/c"]
    assert model_card(loaded, 1, ("a", "b/c")).name == "a"
