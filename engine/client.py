"""The seam between a server and an engine, wherever the engine runs."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from engine.events import AdapterCard, Event, Loss, ModelCard, StepStats
from engine.readings import Piece, Reading
from engine.requests import Fill, Request


class EngineUnavailable(RuntimeError):
    """The engine is loading, draining, restarting or lost; the message says which."""


class EngineOverloaded(RuntimeError):
    """The queue is full; the message names the limit."""


def ignore(loss: Loss) -> None:
    """Takes no note of a loss."""


class EngineClient(Protocol):
    """What a server needs of an engine."""

    async def start(self, lose: Callable[[Loss], None] = ignore) -> None:
        """Starts loading; returns at once. `state` tells how far it is, `lose` is told of each loss of the engine's
        processes."""

    async def stop(self) -> None:
        """Ends all requests and frees everything."""

    def state(self) -> tuple[str, str]:
        """("loading" | "ready" | "restarting" | "failed" | "stopped", one line of detail)."""

    @property
    def is_given_up(self) -> bool:
        """Whether the engine will not serve again in this process: its first load has failed, or it was lost again and
        again without an answer in between."""

    @property
    def card(self) -> ModelCard:
        """The loaded model. Raises EngineUnavailable before the first load is complete."""

    @property
    def ranks_alive(self) -> int:
        """How many rank processes answer."""

    def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        """The events of one request, ending with `Done` or `Failed`.

        Closing the iterator cancels the request. Raises EngineUnavailable or EngineOverloaded at the first step.
        """

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        """Token ids of a text, as they are served. Masks in it are read, with `special` every special token that it
        names, without `masks` none at all."""

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        """The text of token ids, masks by name, other special tokens only with `special`, where `finished` leaves out
        an unfinished character at the end; a `sentence` is the text as transformers' tokenizers write it, without any
        special token. Raises RequestError for an id outside the vocabulary."""

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        """Each input of a fill as the model reads it; `scored`: where its blanks' tokens are known. Raises
        RequestError."""

    async def pieces(self, token_ids: list[int]) -> list[Piece]:
        """What the tokens of ids are. Raises RequestError for an id outside the vocabulary."""

    @property
    def adapters(self) -> list[AdapterCard]:
        """The loaded adapters, which requests may name."""

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        """Loads an adapter's folder under a name; nothing that runs waits for it.

        Raises RequestError for one that cannot be used, a name that is taken, or where all are in use and none more is
        allowed.
        """

    async def unload_adapter(self, name: str) -> None:
        """Raises RequestError for an adapter that is not there or in use."""

    def stats(self) -> list[StepStats]:
        """The steps since the last call, oldest first."""
