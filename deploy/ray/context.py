"""The context of a request, as a key: what shares a key can share a cached context."""

import json
from hashlib import blake2b
from typing import Any


def context_key(request: dict[str, Any]) -> str:
    """Of a request as `engine.wire.encode_request` writes it.

    The texts with their masks and the tenant count, and nothing else: a fill and a score of one text have the same key,
    whatever the candidates, the sampling or the order of the blanks.
    """
    if request["kind"] == "Fill":
        texts = request["inputs"]
    elif request["sentence_a"] is not None:
        texts = [request["sentence_a"], request["sentence_b"]]
    else:
        texts = [request["context"] if request["text"] is None else request["text"]]
    return blake2b(json.dumps([request["tenant"], texts]).encode(), digest_size=16).hexdigest()
