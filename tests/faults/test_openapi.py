"""Fault 26: whatever our own description allows, and what it does not, is answered and never breaks the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.faults.conftest import Server

EXAMPLES = 200
GOLDEN = {"text": "the [MASK] sang", "max_tokens": 6, "logprobs": 2}


@pytest.fixture(scope="module")
def small(roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose requests are short, however much they ask for."""
    server = Server(
        roomy, tmp_path_factory.mktemp("small") / "log", limits__max_tokens=8, limits__n=2, limits__inputs=4
    )
    yield server
    assert server.stop() == 0


def golden(server: Server) -> Any:
    return server.post("/v1/infill", GOLDEN).json()["results"]


def test_no_request_by_our_description_breaks_the_server(small: Server) -> None:
    before = golden(small)
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) >= 9
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            response = case.call(base_url=small.url)
            # 504 is for deadlines alone.
            assert response.status_code < 500 or response.status_code == 504, (response.text, case.as_curl_command())
            if response.status_code >= 400:
                assert set(json.loads(response.content)) in ({"error"}, {"error", "error_type"})

        check()
    for path in ("/v1/infill", "/v1/score", "/v1/tokenize", "/v1/detokenize"):
        assert small.metric("requests_total", route=path) >= EXAMPLES
        assert small.metric("requests_total", route=path, outcome="ok") > 0
    assert golden(small) == before
    assert small.metric("requests_total", outcome="error") == 0
