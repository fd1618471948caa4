"""What a client is told that asks for a path or a method that is not here."""

import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from server.wire.signpost import Signpost


def message(client: TestClient, method: str, path: str) -> str:
    text = client.request(method, path).json()["error"]["message"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("path", "closest"),
    [
        ("/v1/infil", "POST /v1/infill"),
        ("/v1/infill/", "POST /v1/infill"),
        ("/completions", "POST /v1/completions"),  # a base address without /v1
        ("/v1/v1/completions", "POST /v1/completions"),  # and one with it twice
        ("/v1/v1/fim/completions", "POST /v1/fim/completions"),
        ("/v1/beta/completions", "POST /beta/completions"),
        ("/v1/api/generate", "POST /api/generate"),
        ("/v1/x/infill", "POST /v1/infill"),
        ("/openai/v1/completions", "POST /v1/completions"),
        ("/x//v1//score", "POST /v1/score"),
        ("/v1/fim/completion", "POST /v1/fim/completions"),
        ("/models", "GET /v1/models"),
        ("/v1/engines/davinci/completions", "POST /v1/completions"),  # as OpenAI's old clients ask
        ("/openai/deployments/x/completions", "POST /v1/completions"),
    ],
)
def test_the_closest_route_is_named(client, path, closest):
    asked = f"there is no route POST {path}; the closest one is {closest}; /docs describes all routes"
    assert message(client, "POST", path) == asked


def test_where_nothing_is_like_it_the_page_is(client):
    assert message(client, "GET", "/qqq") == "there is no route GET /qqq; /docs describes all routes"


@pytest.mark.parametrize("path", ["/a%0Ab", "/%1B[31m", "/%E2%80%AE"])
def test_the_path_cannot_break_the_line(client, path):
    assert message(client, "GET", path).isprintable()


def test_a_long_path_is_told_in_short(client):
    assert len(message(client, "GET", "/" + "v1/" * 2000)) < 200


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", "/v1/infill", "POST"), ("POST", "/docs", "GET, HEAD")])
def test_a_wrong_method_is_told_the_right_ones(client, method, path, allowed):
    response = client.request(method, path)
    assert response.status_code == 405
    assert {m.strip() for m in response.headers["allow"].split(",")} <= {m.strip() for m in allowed.split(",")}
    assert message(client, method, path).startswith(f"{method} {path}: this route takes ")


def test_all_methods_of_a_path_are_told():
    signpost = Signpost({"/a": frozenset({"POST", "GET"})}, frozenset())
    error = signpost.refusal("PUT", "/a", HTTPException(405, headers={"Allow": "POST"}))
    assert (error.message, error.headers) == (
        "PUT /a: this route takes GET, POST; /docs describes it",
        {"allow": "GET, POST"},
    )


def test_a_page_s_methods_are_told_where_its_path_is_a_route_too(client):
    response = client.put("/")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


def test_the_methods_of_a_path_with_parameters_are_the_router_s():
    error = Signpost({}, frozenset()).refusal("GET", "/a/b", HTTPException(405, headers={"Allow": "DELETE"}))
    assert error.headers == {"allow": "DELETE"}


OWN = ["/v1/chat/completions", "/v1/responses", "/chat/completions", "/beta/chat/completions", "/v1/conversations"]
NO_CHAT = "this server fills blanks; there is no chat."


@pytest.mark.parametrize("path", OWN)
def test_a_chat_gets_told_that_there_is_none(client, refused, path):
    for asked in (path, f"{path}/"):
        error = refused(client.post(asked, json={"messages": []}), 404)
        assert error["message"].startswith(NO_CHAT)
        assert (error["type"], error["code"]) == ("not_found_error", "no_chat")


def test_each_protocol_s_chat_gets_it_in_its_own_shape(client):
    assert client.post("/api/chat").json()["error"].startswith(NO_CHAT)
    for path in ("/v1/messages", "/v1/messages/"):
        answer = client.post(path).json()
        assert (answer["type"], answer["error"]["type"]) == ("error", "not_found_error")
        assert answer["error"]["message"].startswith(NO_CHAT)


def test_a_refusal_before_the_router_has_the_shape_too(make_client):
    client = make_client()
    client.app.state.drain()
    answer = client.post("/v1/messages")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
