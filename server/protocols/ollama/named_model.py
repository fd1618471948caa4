"""The model that a request names, by Ollama's rules."""

from engine.client import EngineClient
from server.exchange.named_adapter import named_adapter

LATEST = ":latest"


def named_model(engine: EngineClient, model: str | None) -> str | None:
    """The name of a request's adapter. Ollama's clients may append the tag `latest` to a name.

    Raises RequestError for a model that is not loaded.
    """
    return named_adapter(engine, None if model is None else model.removesuffix(LATEST))
