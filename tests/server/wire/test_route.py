"""Which route a path belongs to."""

import pytest

from server.wire.route import route_of

ROUTES = frozenset({"/", "/infill", "/models/{name}", "/v1/adapters/{name}"})


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/infill", "/infill"),
        ("/infill/x", None),
        ("/models/a", "/models/{name}"),
        ("/models/a/b", "/models/{name}"),
        ("/models", None),
        ("/v1/adapters/x", "/v1/adapters/{name}"),
        ("/v1/adapters", None),
        ("", None),
    ],
)
def test_a_path_has_one_route(path: str, route: str | None) -> None:
    assert route_of(path, ROUTES) == route
