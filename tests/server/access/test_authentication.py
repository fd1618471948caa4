"""Who gets in: every route, with every kind of key."""

import asyncio
import json

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from server.access.authentication import ADMIN
from server.app import OPEN, create_app
from server.keyfile import new_key
from server.settings import Settings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
def keys(tmp_path):
    """A key file, and the keys in it by name."""
    path = tmp_path / "keys.jsonl"
    made = {
        "ann": new_key(path, name="ann"),
        "bob": new_key(path, name="bob", priority="batch"),
        "root": new_key(path, name="root", role="admin"),
        "slow": new_key(path, name="slow", requests_per_minute=2),
        "small": new_key(path, name="small", tokens_per_minute=100),
    }
    return path, made


@pytest.fixture
def locked(keys, make_client):
    """A client of a server with keys, and the keys."""
    return make_client(api_keys=keys[0]), keys[1]


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def routes(app):
    """Every registered path and method, wherever it is nested."""
    pairs, stack = set(), list(app.routes)
    while stack:
        route = stack.pop()
        if isinstance(route, APIRoute):
            pairs |= {(method, route.path_format) for method in route.methods or ()}
        for inside in (getattr(route, "original_router", None), getattr(route, "app", None), route):
            stack += [r for r in getattr(inside, "routes", ()) if r is not route]
    return sorted(pairs)


def test_the_matrix_finds_the_routes(locked):
    client, _ = locked
    found = {path for _, path in routes(client.app)}
    assert {"/v1/infill", "/v1/score", "/v1/models", "/live", "/metrics", "/docs"} <= found
    assert found >= set(client.app.openapi()["paths"])


def test_every_route_is_closed_unless_it_is_open_by_name(locked):
    client, keys = locked
    pairs = {*routes(client.app), *((method, path) for _, path in routes(client.app) for method in METHODS)}
    wrong = [{}, bearer("wrong"), bearer(keys["ann"][:-1]), bearer(keys["ann"] + "x"), bearer(""), {"x-api-key": ""}]
    wrong += [{"authorization": keys["ann"]}, {"authorization": f"Basic {keys['ann']}"}]
    wrong.append({"host": "localhost", "x-forwarded-host": "/live", "x-original-url": "/live"})
    for method, path in sorted(pairs):
        for headers in wrong:
            response = client.request(method, path, headers=headers)
            if path in OPEN and method in ("GET", "HEAD"):
                assert response.status_code in (200, 405), (method, path)
            else:
                assert response.status_code == 401, (method, path, headers)
                assert response.headers["www-authenticate"].startswith("Bearer")
                if method != "HEAD":
                    error = response.json()["error"]
                    if isinstance(error, str):  # as Ollama's and Hugging Face's errors
                        assert "a valid API key is needed" in error
                    else:
                        assert error["type"] == "authentication_error"
                assert keys["ann"][:-1] not in response.text


def test_what_is_not_a_route_is_closed_too(locked):
    client, _ = locked
    for path in ("/nothing", "//v1/infill", "/live/", "/live/../v1/models", "/v1/%6dodels", "/LIVE", "/docs/x"):
        assert client.get(path).status_code == 401, path


@pytest.mark.parametrize("path", ["//v1/infill", "/v1/infill", "/live/../v1/infill", "/v1/infill\x00", "", "*"])
def test_the_path_that_decides_is_the_one_that_routes(keys, engine, path, make_caller):
    async def call():
        caller = make_caller(path, {"text": "a"}, api_keys=keys[0])
        await caller.run()
        assert caller.status == 401

    asyncio.run(call())
    assert not engine.asked


@pytest.mark.parametrize(
    "form", [bearer, lambda key: {"x-api-key": key}, lambda key: {"authorization": f"bearer {key}"}]
)
def test_a_key_opens_what_is_closed(locked, engine, form):
    client, keys = locked
    assert client.post("/v1/infill", json={"text": "a"}, headers=form(keys["ann"])).status_code == 200
    assert client.get("/v1/models", headers=form(keys["ann"])).status_code == 200
    assert client.get("/metrics", headers=form(keys["ann"])).status_code == 200
    assert engine.asked[0].tenant == "ann"


@pytest.mark.parametrize("path", [*ADMIN, f"{ADMIN[0]}/name", f"{ADMIN[0]}/../adapters"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_admin_routes_need_the_key_of_an_admin(locked, refused, method, path, client):
    closed, keys = locked
    assert refused(closed.request(method, path, headers=bearer(keys["ann"])), 403)["type"] == "permission_error"
    assert closed.request(method, path).status_code == 401
    assert closed.request(method, path, headers=bearer(keys["root"])).status_code not in (401, 403)
    # Without a key file there is no admin, rather than everybody being one.
    assert client.request(method, path).status_code == 403


def test_metrics_are_open_without_keys_and_where_the_operator_says_so(locked, client, keys, make_client):
    assert locked[0].get("/metrics").status_code == 401
    assert client.get("/metrics").status_code == 200
    assert make_client(api_keys=keys[0], open_metrics=True).get("/metrics").status_code == 200


def test_a_key_of_priority_batch_cannot_be_interactive(locked, engine):
    client, keys = locked
    for body in ({"text": "a"}, {"text": "a", "priority": "interactive"}):
        client.post("/v1/infill", json=body, headers=bearer(keys["bob"]))
    client.post("/v1/infill", json={"text": "a", "priority": "batch"}, headers=bearer(keys["ann"]))
    assert [request.priority for request in engine.asked] == ["batch"] * 3


def test_rates_are_each_key_s_own(locked, refused):
    client, keys = locked
    statuses = [
        client.post("/v1/infill", json={"text": "a"}, headers=bearer(keys["slow"])).status_code for _ in range(3)
    ]
    assert statuses == [200, 200, 429]
    response = client.post("/v1/tokenize", json={"text": "a"}, headers=bearer(keys["slow"]))
    error = refused(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "requests_rate_exceeded")
    assert 0 < int(response.headers["retry-after"]) <= 30
    assert 0 < int(response.headers["retry-after-ms"]) <= 30_000
    assert client.post("/v1/infill", json={"text": "a"}, headers=bearer(keys["ann"])).status_code == 200
    assert (
        'rejected_total{reason="requests_rate_exceeded"} 2.0'
        in client.get("/metrics", headers=bearer(keys["ann"])).text
    )


def test_tokens_are_charged_by_estimate_and_settled_by_use(locked, refused):
    # 1 byte, 4 around it and 64 to generate are 69; the answer's usage says 6.
    client, keys = locked
    for _ in range(5):
        assert client.post("/v1/infill", json={"text": "a"}, headers=bearer(keys["small"])).status_code == 200
    response = client.post("/v1/infill", json={"text": "a", "max_tokens": 80}, headers=bearer(keys["small"]))
    assert refused(response, 429)["code"] == "tokens_rate_exceeded"
    assert response.headers["retry-after"]


def test_logs_and_errors_never_hold_keys(capsys, keys, make_client):
    path, keys = keys
    client = make_client(api_keys=path)  # made here, since it logs to what stderr is now
    for key in (keys["ann"], keys["ann"] + "x"):
        for headers in (bearer(key), {"x-api-key": key}):
            text = client.post("/v1/infill", json={"text": "a", "n": 99}, headers=headers).text
            assert keys["ann"] not in text
    logged = capsys.readouterr().err
    assert keys["ann"] not in logged
    assert '"client": "ann"' in logged


def test_cors_is_off(locked, client):
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for one, status in ((locked[0], 401), (client, 405)):
        response = one.options("/v1/infill", headers=asks)
        assert response.status_code == status
        assert not any(name.startswith("access-control") for name in response.headers)
        response = one.post("/v1/infill", json={"text": "a"}, headers=asks)
        assert not any(name.startswith("access-control") for name in response.headers)


def test_a_server_without_keys_can_have_rates(engine):
    client = TestClient(create_app(Settings(requests_per_minute=1), engine))
    statuses = [client.post("/v1/infill", json={"text": "a"}).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert client.get("/v1/models").status_code == 200


def test_keys_come_and_go_while_the_server_runs(keys, make_client, capsys):
    path, made = keys
    client = make_client(api_keys=path, log_level="info")

    def status(name):
        return client.get("/v1/models", headers=bearer(made[name])).status_code

    assert client.post("/v1/infill", json={"text": "a"}, headers=bearer(made["slow"])).status_code == 200
    made["eve"] = new_key(path, name="eve")
    assert status("eve") == 200
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"ann"' not in line))
    assert (status("ann"), status("eve"), status("bob")) == (401, 200, 200)
    # Whose line is as it was keeps what is left of its rate.
    codes = [client.post("/v1/infill", json={"text": "a"}, headers=bearer(made["slow"])).status_code for _ in range(2)]
    assert codes == [200, 429]
    for spoil in (lambda: path.write_text("{"), path.unlink):
        spoil()
        assert (status("ann"), status("eve")) == (401, 200)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(t["new"], t["gone"]) for t in told if t["event"] == "keys read"] == [(1, 0), (0, 1)]
    assert len([t for t in told if t["event"] == "keys not read"]) == 2
