"""The application around the routes: errors of the framework, admission, draining, ids, documentation."""

import asyncio
import json

import pytest

from engine.answers import Usage
from engine.events import Done
from server.app import ROUTES
from server.pages.playground import PATHS


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/metrics/", 404, "not_found"),
        ("GET", "//v1/score", 404, "not_found"),
        ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/infill", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/score", 405, "method_not_allowed"),
    ],
)
def test_errors_of_the_framework_have_our_shape(client, refused, method, path, status, code):
    response = client.request(method, path)
    assert refused(response, status)["code"] == code
    assert ("allow" in response.headers) == (status == 405)


def test_engine_lives_with_the_application(make_client, engine):
    with make_client():
        assert engine.life == ["start"]
    assert engine.life == ["start", "stop"]


def test_draining_refuses_work_and_finishes_what_is_inside(make_app, make_caller, engine):
    release = asyncio.Event()

    async def script(request, work_id):
        await release.wait()
        yield Done(work_id, Usage())

    async def play():
        engine.script = script
        app = make_app()
        inside = make_caller("/v1/infill", {"text": "a"}, app=app)
        task = asyncio.create_task(inside.run())
        while not engine.num_open:
            await asyncio.sleep(0.001)
        app.state.drain()
        late = make_caller("/v1/infill", {"text": "a"}, app=app)
        await late.run()
        assert (late.status, json.loads(late.data)["error"]["code"]) == (503, "draining")
        release.set()
        await asyncio.wait_for(task, 2)
        assert inside.status == 200
        await asyncio.wait_for(app.state.service.gate.emptied(), 1)

    asyncio.run(play())


def test_draining_shows_in_readiness(client):
    client.app.state.drain()
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").json()["status"] == "draining"
    assert client.get("/live").status_code == 200


def test_burst_over_the_limit_is_503_and_the_rest_finishes(make_app, make_caller, engine):
    async def script(request, work_id):
        await asyncio.sleep(0.05)
        yield Done(work_id, Usage())

    async def play():
        engine.script = script
        app = make_app(max_queue=4)
        callers = [make_caller("/v1/infill", {"text": "a"}, app=app) for _ in range(40)]
        await asyncio.gather(*(caller.run() for caller in callers))
        assert sorted(caller.status for caller in callers) == [200] * 4 + [503] * 36
        assert app.state.service.gate.inside == 0

    asyncio.run(play())


@pytest.mark.parametrize(("given", "echoed"), [("abc-1.2_x", True), ("a b", False), ("x" * 65, False)])
def test_request_ids(client, given, echoed):
    response = client.get("/live", headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) == echoed
    assert response.headers["x-request-id"]


def test_log_is_json_without_prompts(capsys, make_client, engine):
    async def script(request, work_id):
        raise ValueError("my secret prompt")
        yield

    client = make_client()
    client.post("/v1/infill", json={"text": "my secret prompt"})
    client.post("/v1/infill", json={"text": "my secret prompt", "n": 9})
    engine.script = script
    client.post("/v1/infill", json={"text": "my secret prompt"})
    output = capsys.readouterr().err
    assert "secret" not in output
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line.get("status") for line in lines] == [200, 400, None, 500]
    assert {"request_id", "route", "status", "seconds", "outcome"} <= lines[0].keys()


def test_catalog(client):
    body = client.get("/v1/models").json()
    entry = body["data"][0]
    assert (body["object"], entry["id"], entry["object"], entry["adapters"]) == ("list", "demo", "model", [])
    assert (entry["limits"]["n"], entry["quantization"]) == (8, "int8")
    assert (entry["kv_cache_type"], entry["kv_cache_tokens"]) == ("int8", 4096)
    assert entry["capabilities"]["masks"] == ["[MASK]", "[gMASK]"]


def test_tokens(client, refused):
    body = client.post("/v1/tokenize", json={"text": "ab [MASK]"}).json()
    assert body == {"tokens": [2, 6], "count": 2}
    assert client.post("/v1/detokenize", json={"tokens": [2, 6]}).json() == {"text": "2 6"}
    refused(client.post("/v1/detokenize", json={"tokens": [100]}), 400, "tokens")
    refused(client.post("/v1/detokenize", json={"tokens": [-1]}), 400, "tokens.0")
    refused(client.post("/v1/tokenize", json={"text": "a", "x": 1}), 400, "x")


def test_documentation_needs_no_internet(client):
    api = client.get("/openapi.json").json()
    # The page is no part of the description; a POST to its path is.
    assert set(api["paths"]) == ROUTES - {"/docs", "/openapi.json"} - (set(PATHS) - {"/"})
    assert list(api["paths"]["/"]) == ["post"]
    for path in api["paths"].values():
        for operation in path.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for schema in content["schema"].get("anyOf", [content["schema"]]):
                    assert schema["$ref"].split("/")[-1] in api["components"]["schemas"]
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
