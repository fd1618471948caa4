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
    """Ignores a loss."""


class EngineClient(Protocol):
    """An engine, as a server uses it."""

    async def start(self, lose: Callable[[Loss], None] = ignore) -> None:
        """Starts to load; returns at once. `state` tells the progress; `lose` takes each loss of the engine's
        processes."""

    async def stop(self) -> None:
        """Ends all requests and frees everything."""

    def state(self) -> tuple[str, str]:
        """("loading" | "ready" | "restarting" | "failed" | "stopped", one line of detail)."""

    @property
    def is_given_up(self) -> bool:
        """Whether the engine will not serve again in this process.

        True after its first load has failed, and after repeated losses without an answer between them.
        """

    @property
    def card(self) -> ModelCard:
        """The card of the loaded model. Raises EngineUnavailable before the first load is complete."""

    @property
    def ranks_alive(self) -> int:
        """Number of rank processes that respond."""

    def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        """The events of one request, ending with `Done` or `Failed`.

        Closing the iterator cancels the request. Raises EngineUnavailable or EngineOverloaded at the first step.
        """

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        """Token ids of a text, as the model reads them.

        Masks are tokens, and with `special` all special tokens that the text names; without `masks` all of it is plain
        text.
        """

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        """The text of token ids, with names of masks, and with `special` of all special tokens.

        `special` and `finished` together omit an unfinished character at the end. `sentence` gives the text as
        transformers' tokenizers write it, without special tokens. Raises RequestError for an id outside the vocabulary.
        """

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        """Each input of a fill as the model reads it. `scored`: the tokens of its blanks are known.

        Raises RequestError for an input that the model cannot read.
        """

    async def pieces(self, token_ids: list[int]) -> list[Piece]:
        """The pieces of token ids. Raises RequestError for an id outside the vocabulary."""

    @property
    def adapters(self) -> list[AdapterCard]:
        """The loaded adapters, which requests may name."""

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        """Loads an adapter's folder under a name, without delay for running requests.

        Raises RequestError for an adapter that cannot be used, for a name that is taken, and if all `max_adapters`
        adapters are in use.
        """

    async def unload_adapter(self, name: str) -> None:
        """Unloads an adapter. Raises RequestError if it is not loaded or is in use."""

    def stats(self) -> list[StepStats]:
        """Stats of the steps since the last call, oldest first."""
