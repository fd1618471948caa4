"""The arguments of `serve run`, which are strings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from deploy.ray.arguments import Arguments


def test_arguments_become_the_settings_of_server_and_engine() -> None:
    given = {"model": "/models/glm", "quant": "int4", "tp": "4", "device": "cuda", "cpus": "8", "replicas": "2"}
    arguments = Arguments(**given)
    assert arguments.replicas == 2
    assert arguments.settings().model == Path("/models/glm")
    engine = arguments.engine()
    assert (engine.model, engine.quant, engine.tp, engine.device) == (Path("/models/glm"), "int4", 4, "cuda")
    assert engine.threads == 2
    assert Arguments().engine().threads == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "80"}, "HTTP proxy listens"),
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas is less"),
        ({"replicas": "0"}, "replicas"),
        ({"modle": "x"}, "modle"),
        ({"quant": "int3"}, "quant"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Arguments(**given).settings()
