"""HEAD on everything that can be got."""

import warnings

import pytest

PATHS = ["/", "/playground/main.js", "/live", "/ready", "/health", "/metrics", "/docs", "/openapi.json"]
PATHS += ["/v1/models", "/tokenizer_info"]
# What differs from one answer to the next.
OWN = {"x-request-id", "content-length"}


@pytest.mark.parametrize("path", [*PATHS, "/v1/adapters", "/nothing", "/v1/infill"])
def test_head_is_get_without_the_body(client, path):
    got, headed = client.get(path), client.head(path)
    assert headed.status_code == got.status_code
    assert (got.status_code == 200) == (path in PATHS)
    assert headed.content == b""
    assert got.content
    assert headed.headers.keys() == got.headers.keys()
    assert {n: v for n, v in headed.headers.items() if n not in OWN} == {
        n: v for n, v in got.headers.items() if n not in OWN
    }
    if path != "/metrics":  # it counts what came before
        assert headed.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


def test_head_knows_what_the_browser_has(client):
    tag = client.head("/").headers["etag"]
    assert client.head("/", headers={"if-none-match": tag}).status_code == 304


def test_the_description_knows_each_operation_once(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = client.app.openapi()
    operations = [(path, method) for path, item in document["paths"].items() for method in item]
    assert not [method for _, method in operations if method == "head"]
    ids = [document["paths"][path][method]["operationId"] for path, method in operations]
    assert len(ids) == len(set(ids))
    assert ("/v1/models", "get") in operations
