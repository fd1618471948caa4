"""The body of SGLang's scores of label tokens; it also recognises vLLM's body of the same path, which is refused."""

import math
from collections.abc import Collection
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from engine.requests import RequestError, Score, Segments, Tokens, member
from server.exchange.bodies import Number, String, Wire, at_most
from server.settings import Limits

SGLANG = frozenset({"query", "items", "label_token_ids"})
VLLM = frozenset({"text_1", "text_2", "queries", "documents", "data_1", "data_2"})

Query = Annotated[
    Annotated[String, Tag("<text>")] | Annotated[list[Number], Tag("<ids>")],
    Discriminator(lambda value: "<ids>" if isinstance(value, list) else "<text>"),
]
Items = Annotated[
    Annotated[String, Tag("<text>")]
    | Annotated[list[String], Field(min_length=1), Tag("<texts>")]
    | Annotated[list[list[Number]], Field(min_length=1), Tag("<ids>")],
    Discriminator(
        lambda value: (
            "<text>" if not isinstance(value, list) else "<ids>" if value and isinstance(value[0], list) else "<texts>"
        )
    ),
]
Labels = Annotated[list[Number], Field(min_length=1)]
LabelsOfItems = Annotated[
    Annotated[Labels, Tag("<shared>")] | Annotated[list[Labels], Field(min_length=1), Tag("<each>")],
    Discriminator(
        lambda value: "<each>" if isinstance(value, list) and value and isinstance(value[0], list) else "<shared>"
    ),
]


def is_sglang(fields: Collection[str]) -> bool:
    """Whether a body has SGLang's form. Raises RequestError for one of vLLM's form."""
    theirs = VLLM & set(fields)
    if theirs:
        names = ", ".join(sorted(theirs))
        message = f"{names}: vLLM's /v1/score compares pairs of texts; here the likelihood of spans is scored"
        raise RequestError(message, min(theirs), "unsupported")
    return bool(SGLANG & set(fields))


class LabelsRequest(Wire):
    """The body of `POST /v1/score` with SGLang's fields."""

    model: String | None = None
    query: Query
    items: Items
    label_token_ids: LabelsOfItems
    apply_softmax: bool = False
    item_first: bool = False
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    return_token_logprobs: bool = False

    def scores(self, limits: Limits) -> list[Score]:
        """An engine request for each item. Raises RequestError for fields that do not go together."""
        items: list[str | list[int]] = [self.items] if isinstance(self.items, str) else [*self.items]
        at_most("items", len(items), limits.inputs, "items")
        labels = self._labels(len(items))
        scores = []
        for number, (item, row) in enumerate(zip(items, labels, strict=True)):
            with member("item", number, len(items)):
                at_most("label_token_ids", len(row), limits.candidates, "labels")
                score = Score(
                    context=self._context(item),
                    targets=tuple(Tokens((label,)) for label in row),
                    priority="interactive",
                    timeout_s=limits.timeout_s,
                )
            scores.append(score)
        return scores

    def probabilities(self, logprobs: list[float]) -> list[float]:
        """The labels' probabilities, or with `apply_softmax` those among the labels alone."""
        if not self.apply_softmax:
            return [math.exp(logprob) for logprob in logprobs]
        top = max(logprobs)
        weights = [math.exp((logprob - top) / self.temperature) for logprob in logprobs]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def _labels(self, num_items: int) -> list[list[int]]:
        rows = [row for row in self.label_token_ids if isinstance(row, list)]
        if not rows:
            return [[label for label in self.label_token_ids if isinstance(label, int)]] * num_items
        if len(rows) != num_items:
            message = f"label_token_ids has {len(rows)} lists for {num_items} items"
            raise RequestError(message, "label_token_ids")
        return rows

    def _context(self, item: str | list[int]) -> Segments:
        query = self.query
        if isinstance(query, str) and isinstance(item, str):
            return (item + query if self.item_first else query + item,)
        if isinstance(query, list) and isinstance(item, list):
            return (Tokens(tuple(item + query if self.item_first else query + item)),)
        raise RequestError("query and items must both be text or both be token ids", "items")
