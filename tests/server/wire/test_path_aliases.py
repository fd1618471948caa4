"""Further paths of routes: whatever decides by the path sees that of the route."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.testclient import TestClient

from engine.client import EngineClient
from server.serving import serve
from server.settings import Settings

ALIASES = {"/pipeline/fill-mask": "/", "/fill": "/v1/infill"}


def test_an_alias_is_its_route(make_app: Callable[..., FastAPI]) -> None:
    with TestClient(make_app(path_aliases=ALIASES)) as client:
        body = {"inputs": "a [MASK]", "parameters": {"top_k": 17}}
        assert client.post("/pipeline/fill-mask", json=body).json() == {"error": "top_k is 17; the limit is 16"}
        assert client.post("/fill", json={"text": "a [MASK]"}).status_code == 200
        assert client.post("/fill/x", json={}).status_code == 404
        assert 'route="/v1/infill"' in client.get("/metrics").text
        client.app.state.drain()  # type: ignore[attr-defined]
        assert client.post("/pipeline/fill-mask", json=body).status_code == 503


@pytest.mark.parametrize("aliases", [{"fill": "/"}, {"/fill": "v1/infill"}, {"/a b": "/"}])
def test_what_is_no_path_is_refused(aliases: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="a path begins with /"):
        Settings(path_aliases=aliases)


def test_an_alias_of_nothing_is_told_before_the_start(engine: EngineClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(Settings(path_aliases={"/fill": "/v1/fill"}), engine) == 2
    assert capsys.readouterr().err.strip().endswith("--path-alias: there is no route /v1/fill")
