"""`/v1/adapters`, and the names of adapters in requests."""

import os
from pathlib import Path

import pytest
from mistralai.client.models import BaseModelCard

from engine.events import AdapterCard
from engine.requests import RequestError
from server.keyfile import new_key
from server.protocols.native.adapters import folder_below
from tests.server.protocols.test_llama_cpp import writes


@pytest.fixture
def root(tmp_path):
    """A folder of adapters with one in it, and a secret beside it."""
    (tmp_path / "root/legal").mkdir(parents=True)
    (tmp_path / "root/legal/adapter_config.json").write_text("{}")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/adapter_config.json").write_text("{}")
    return tmp_path / "root"


@pytest.fixture
def admin(tmp_path, root, make_client):
    """A client of a server with an adapters' folder, and the headers of an admin."""
    key = new_key(tmp_path / "keys.jsonl", name="root", role="admin")
    new_key(tmp_path / "keys.jsonl", name="ann")
    client = make_client(api_keys=tmp_path / "keys.jsonl", adapter_root=root)
    client.headers["authorization"] = f"Bearer {key}"
    return client


def test_an_adapter_comes_and_goes(admin, engine, root):
    assert admin.get("/v1/adapters").json() == {"object": "list", "data": []}
    made = admin.post("/v1/adapters", json={"name": "legal-1", "path": "legal"})
    assert made.status_code == 200, made.text
    entry = {"id": "legal-1", "object": "model", "created": 1, "owned_by": "glm-infill", "parent": "demo"}
    assert made.json() == {**entry, "kind": "lora", "prefix_tokens": 0}
    listed = BaseModelCard.model_validate(admin.get("/v1/models/legal-1").json())  # as Mistral's client reads it
    assert (listed.capabilities.completion_fim, listed.max_context_length) == (True, 512)
    assert engine.life[-1] == "legal"
    assert admin.get("/v1/adapters").json()["data"] == [made.json()]
    base, adapter = admin.get("/v1/models").json()["data"]
    assert (base["id"], base["adapters"], adapter["id"], adapter["parent"]) == ("demo", ["legal-1"], "legal-1", "demo")
    gone = admin.delete("/v1/adapters/legal-1")
    assert (gone.status_code, gone.json()) == (200, {"id": "legal-1", "object": "model", "deleted": True})
    assert admin.get("/v1/models").json()["data"][0]["adapters"] == []


def test_an_adapter_that_is_not_there_cannot_go(admin, refused):
    error = refused(admin.delete("/v1/adapters/nobody"), 404, "name")
    assert error["code"] == "adapter_not_found"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "a"}, 400, "path"),
        ({"path": "legal"}, 400, "name"),
        ({"name": "a/b", "path": "legal"}, 400, "name"),
        ({"name": "", "path": "legal"}, 400, "name"),
        ({"name": "x" * 65, "path": "legal"}, 400, "name"),
        ({"name": "a\n", "path": "legal"}, 400, "name"),
        ({"name": "demo", "path": "legal"}, 409, "name"),
        ({"name": "a", "path": "legal", "more": 1}, 400, "more"),
        ({"name": "a", "path": ""}, 400, "path"),
        ({"name": "a", "path": 5}, 400, "path"),
        ({"name": "a", "path": "nowhere"}, 404, "path"),
        ({"name": "a", "path": "../secret"}, 400, "path"),
        ({"name": "a", "path": "legal/../../secret"}, 400, "path"),
        ({"name": "a", "path": "/etc"}, 400, "path"),
        ({"name": "a", "path": "leg\0al"}, 400, "path"),
        ({"name": "a", "path": "%2e%2e/secret"}, 404, "path"),
        ({"name": "a", "path": "legal/adapter_config.json"}, 404, "path"),
        ({"name": "a", "path": "x" * 1000}, 404, "path"),
    ],
)
def test_what_is_no_folder_below_the_root_is_refused(admin, engine, refused, body, status, param):
    refused(admin.post("/v1/adapters", json=body), status, param)
    assert engine.adapters == []


def test_links_and_devices_are_refused(root):
    (root / "out").symlink_to(root.parent / "secret")
    (root / "loop").symlink_to(root / "loop")
    (root / "inside").symlink_to(root / "legal")
    for name, make in (
        ("file", lambda p: p.symlink_to(root.parent / "secret/adapter_config.json")),
        ("device", lambda p: p.symlink_to("/dev/zero")),
        ("pipe", os.mkfifo),
        ("broken", lambda p: p.symlink_to(root / "nowhere")),
    ):
        (root / name).mkdir()
        make(root / name / "adapter_model.bin")
        with pytest.raises(RequestError):
            folder_below(root, name)
    for name in ("out", "loop"):
        with pytest.raises(RequestError):
            folder_below(root, name)
    assert folder_below(root, "inside") == Path("legal")
    assert folder_below(root, "legal/.") == Path("legal")


def test_without_a_root_nothing_can_be_loaded(tmp_path, make_client, refused):
    key = new_key(tmp_path / "keys.jsonl", name="root", role="admin")
    client = make_client(api_keys=tmp_path / "keys.jsonl")
    response = client.post("/v1/adapters", json={"name": "a", "path": "b"}, headers={"authorization": f"Bearer {key}"})
    assert "--adapter-root" in refused(response, 400, "path")["message"]


@pytest.mark.parametrize(
    ("code", "status"), [("adapter_in_use", 409), ("adapters_full", 409), ("invalid_adapter", 400)]
)
def test_the_engine_s_refusals_have_their_status(admin, engine, refused, code, status, monkeypatch):
    async def refuse(*_):
        raise RequestError("adapter legal: not now", "path", code)

    monkeypatch.setattr(engine, "load_adapter", refuse)
    response = admin.post("/v1/adapters", json={"name": "a", "path": "legal"})
    assert refused(response, status, "path")["code"] == code


class TestNames:
    """Which adapter a request goes by."""

    @pytest.fixture(autouse=True)
    def _two(self, engine):
        engine.adapters = [AdapterCard("a", "lora", 1), AdapterCard("b", "prefix", 1, 8)]

    @pytest.mark.parametrize(
        ("names", "adapter"),
        [
            ({}, None),
            ({"model": "demo"}, None),
            ({"adapter": "a"}, "a"),
            ({"model": "b"}, "b"),
            ({"model": "demo", "adapter": "b"}, "b"),
            ({"model": "a", "adapter": "a"}, "a"),
        ],
    )
    @pytest.mark.parametrize(
        ("path", "body"), [("/v1/infill", {"text": "a [MASK]"}), ("/v1/score", {"text": "a [MASK]", "spans": ["b"]})]
    )
    def test_native_routes(self, client, engine, path, body, names, adapter):
        assert client.post(path, json=body | names).status_code == 200
        assert engine.asked[0].adapter == adapter

    @pytest.mark.parametrize(
        ("names", "status", "param"),
        [
            ({"adapter": "c"}, 404, "adapter"),
            ({"model": "c"}, 404, "model"),
            ({"model": "c", "adapter": "a"}, 404, "model"),
            ({"model": "a", "adapter": "b"}, 400, "adapter"),
        ],
    )
    def test_unknown_and_contradicting_names(self, client, refused, names, status, param):
        refused(client.post("/v1/infill", json={"text": "a"} | names), status, param)

    def test_clients_name_an_adapter_in_the_model_s_place(self, client, engine):
        answer = client.post("/v1/completions", json={"model": "a", "prompt": "x", "max_tokens": 2}).json()
        assert (engine.asked[0].adapter, answer["model"]) == ("a", "a")
        labels = {"query": "a", "items": ["b"], "label_token_ids": [1], "model": "b"}
        client.post("/v1/score", json=labels)
        assert engine.asked[1].adapter == "b"

    @pytest.mark.parametrize(("model", "adapter"), [("a", "a"), ("whatever", None)])
    def test_editors_too(self, client, engine, model, adapter):
        engine.script = writes
        body = {"input_prefix": "x", "input_suffix": "y", "model": model, "n_predict": 2}
        answer = client.post("/infill", json=body).json()
        assert (engine.asked[-1].adapter, answer["model"]) == (adapter, adapter or "demo")


def test_settings_take_adapters_by_name(make_app):
    assert make_app(adapters={"a": "x"}).state.service.settings.adapters == {"a": Path("x")}
    with pytest.raises(ValueError, match="a name has letters"):
        make_app(adapters={"a b": "x"})
