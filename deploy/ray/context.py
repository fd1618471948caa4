"""The context of a request, as a key: what shares a key can share a cached context."""

from hashlib import blake2b

from pydantic_core import to_json

from engine.requests import Fill, Request


def context_key(request: Request) -> str:
    """The texts with their masks, the tenant and the adapter count, and nothing else: a fill and a score of one text
    have the same key, whatever the candidates, the sampling or the order of the blanks."""
    texts: object
    if isinstance(request, Fill):
        texts = request.inputs
    elif request.sentence_a is not None:
        texts = [request.sentence_a, request.sentence_b]
    else:
        texts = [request.context if request.text is None else request.text]
    return blake2b(to_json([request.tenant, request.adapter, texts]), digest_size=16).hexdigest()
