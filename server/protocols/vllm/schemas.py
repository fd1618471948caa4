"""The bodies of vLLM's `/generative_scoring` and `/rerank` on the wire, and what they become for the engine."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from engine.requests import RequestError, Score, Segments, Tokens
from server.exchange.bodies import Lenient, Number, String, at_most, split
from server.exchange.refusals import check_refused, refusing
from server.settings import Limits

IdsOrText = Annotated[
    Annotated[String, Tag("<text>")] | Annotated[list[Number], Tag("<ids>")],
    Discriminator(lambda value: "<ids>" if isinstance(value, list) else "<text>"),
]
Items = Annotated[
    Annotated[list[String], Field(min_length=1), Tag("<texts>")]
    | Annotated[list[list[Number]], Field(min_length=1), Tag("<ids>")],
    Discriminator(
        lambda value: "<ids>" if isinstance(value, list) and value and isinstance(value[0], list) else "<texts>"
    ),
]


class GenerativeScoringRequest(Lenient):
    """The body of `POST /generative_scoring`."""

    model: String | None = None
    query: IdsOrText
    items: Items
    label_token_ids: Annotated[list[Number], Field(min_length=1)]
    apply_softmax: bool = True
    item_first: bool = False

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels, each once, that of the score first."""
        return tuple(dict.fromkeys(self.label_token_ids))

    def scores(self, limits: Limits) -> list[Score]:
        """A request for the engine for each item. Raises RequestError for what is over a limit."""
        at_most("items", len(self.items), limits.inputs, "items")
        at_most("label_token_ids", len(self.label_token_ids), limits.candidates, "labels")
        query = _segments(self.query)
        targets = tuple(Tokens((label,)) for label in self.labels)
        contexts = [_segments(item) + query if self.item_first else query + _segments(item) for item in self.items]
        return [
            Score(context=context, targets=targets, priority="interactive", timeout_s=limits.timeout_s)
            for context in contexts
        ]


class RerankDocument(Lenient):
    """A document that is an object."""

    text: String


Document = Annotated[
    Annotated[String, Tag("<text>")] | Annotated[RerankDocument, Tag("<object>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<object>"),
]
Documents = Annotated[
    Annotated[Document, Tag("<one>")] | Annotated[list[Document], Field(min_length=1), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<one>"),
]


# A text that is too long is refused, not cut.
Refused = refusing("RefusedCuts", "max_tokens_per_doc", "max_chunks_per_doc", "truncate_prompt_tokens")


class RerankRequest(Refused):  # type: ignore[misc, valid-type]
    """The body of `POST /rerank`, as vLLM, Jina and Cohere have it."""

    model: String | None = None
    query: String
    documents: Documents
    top_n: Number = 0
    return_documents: bool = True

    @property
    def texts(self) -> tuple[str, ...]:
        """The documents."""
        given = self.documents if isinstance(self.documents, list) else [self.documents]
        return tuple(d if isinstance(d, str) else d.text for d in given)

    def scores(self, limits: Limits) -> list[Score]:
        """A request for the engine for each document: how probable the query is behind it, on a line of its own.
        Raises RequestError for what is over a limit."""
        check_refused(self, Refused)
        at_most("documents", len(self.texts), limits.inputs, "documents")
        if not self.query:
            raise RequestError("query is empty", "query")
        return [
            Score(context=(f"{text}\n",), targets=(self.query,), priority="interactive", timeout_s=limits.timeout_s)
            for text in self.texts
        ]


def _segments(given: str | list[int]) -> Segments:
    """A text with its mask set apart, or the tokens."""
    return split(given) if isinstance(given, str) else (Tokens(tuple(given)),)
