"""The adapter that a request names."""

from engine.client import EngineClient
from engine.requests import RequestError


def named_adapter(engine: EngineClient, model: str | None, adapter: str | None = None) -> str | None:
    """The name of a request's adapter: its `adapter`, or its `model`, as vLLM's clients send it. A model "" is none.

    Raises RequestError for a model or an adapter that is not loaded.
    """
    names = [card.name for card in engine.adapters]
    if adapter is not None and adapter not in names:
        raise RequestError(f"no adapter {adapter[:80]!r} is loaded", "adapter", "adapter_not_found")
    if not model or model in engine.card.names:
        return adapter
    if model not in names:
        known = ", ".join(map(repr, (*engine.card.names, *names)))
        raise RequestError(f"no such model is loaded; there is only {known}", "model", "model_not_found")
    if adapter not in (None, model):
        raise RequestError(f"model is the adapter {model!r}, adapter is {adapter!r}", "adapter")
    return model
