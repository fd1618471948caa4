"""The model that a request names, in Ollama's way."""

from engine.client import EngineClient
from server.exchange.named_adapter import named_adapter

LATEST = ":latest"


def named_model(engine: EngineClient, model: str | None) -> str | None:
    """The adapter that a request goes by. Ollama's clients may put the tag `latest` behind a name. Raises RequestError
    for a model that is not loaded."""
    return named_adapter(engine, None if model is None else model.removesuffix(LATEST))
