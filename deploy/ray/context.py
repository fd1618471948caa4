"""The context of a request as a key: requests with the same key can share a cached context."""

from hashlib import blake2b

from pydantic_core import to_json

from engine.requests import Fill, Request


def context_key(request: Request) -> str:
    """A key of the texts with their masks, the tenant and the adapter.

    Nothing else counts: a fill and a score of one text have the same key, whatever their candidates, sampling or order
    of blanks.
    """
    texts: object
    if isinstance(request, Fill):
        texts = request.inputs
    elif request.sentence_a is not None:
        texts = [request.sentence_a, request.sentence_b]
    else:
        texts = [request.context if request.text is None else request.text]
    return blake2b(to_json([request.tenant, request.adapter, texts]), digest_size=16).hexdigest()
