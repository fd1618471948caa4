"""An engine in supervised processes, one per rank. Does not import torch.

If the ranks are lost, requests in flight end with an error, and none waits for ever.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import cast

from engine.client import EngineUnavailable, ignore
from engine.config import EngineConfig
from engine.events import TERMINAL, AdapterCard, Done, Event, Failed, Loss, ModelCard, StepStats
from engine.processes.messages import (
    AdaptersChanged,
    Cancel,
    Detokenize,
    FromRank,
    Happened,
    LoadAdapter,
    Question,
    Read,
    Ready,
    Refused,
    Reply,
    Spell,
    Stepped,
    Submit,
    Tokenize,
    UnloadAdapter,
    Value,
)  # fmt: skip
from engine.processes.supervisor import BACKOFF_S, WELL_S, Supervisor
from engine.rank_info import RankInfo
from engine.readings import Piece, Reading
from engine.requests import Fill, Request, RequestError

_MAX_STATS = 10_000


class EngineProcess:
    """An `EngineClient` over rank processes. Its arguments are the supervisor's."""

    def __init__(
        self,
        config: EngineConfig,
        silence_s: float = 8.0,
        step_s: float = 60.0,
        rank_info: RankInfo | None = None,
        worker: str = "engine.processes.rank_process",
        backoff_s: Sequence[float] = BACKOFF_S,
        well_s: float = WELL_S,
    ) -> None:
        self.config = config
        self._supervisor = Supervisor(
            config, self._handle, self._lost, silence_s, step_s, rank_info, worker, backoff_s, well_s
        )
        self._lose: Callable[[Loss], None] = ignore
        self._card: ModelCard | None = None
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._replies: dict[str, asyncio.Future[Value]] = {}
        self._stats: list[StepStats] = []
        self._numbers = itertools.count()
        self._adapters: list[AdapterCard] = []
        self._folders: dict[str, str] = {}  # of adapters that were loaded while serving
        self._restoring: asyncio.Task[None] | None = None

    async def start(self, lose: Callable[[Loss], None] = ignore) -> None:
        self._lose = lose
        self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        self._fail_all("the engine has been stopped")

    def state(self) -> tuple[str, str]:
        return self._supervisor.state

    @property
    def is_given_up(self) -> bool:
        return self._supervisor.is_given_up

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise EngineUnavailable(self.state()[1])
        return self._card

    @property
    def ranks_alive(self) -> int:
        return sum(link.ready for link in self._supervisor.links)

    @property
    def pids(self) -> list[int]:
        """Process ids of the living ranks."""
        return [link.process.pid for link in self._supervisor.links if link.process.returncode is None]

    async def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        self._require_ready()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[request_id] = queue
        ended = False
        try:
            self._supervisor.send(Submit(request_id, request))
            while not ended:
                event = await queue.get()
                ended = isinstance(event, TERMINAL)
                yield event
        finally:
            self._queues.pop(request_id, None)
            if not ended:
                self._supervisor.send(Cancel(request_id))

    async def tokenize(self, text: str, special: bool = False, masks: bool = True) -> list[int]:
        return cast(list[int], await self._ask(Tokenize(self._new_id(), text, special, masks)))

    async def detokenize(
        self, token_ids: list[int], special: bool = False, finished: bool = False, sentence: bool = False
    ) -> str:
        text = await self._ask(Detokenize(self._new_id(), token_ids, special, finished, sentence))
        assert isinstance(text, str)
        return text

    async def read(self, fill: Fill, scored: bool = False) -> list[Reading]:
        return cast(list[Reading], await self._ask(Read(self._new_id(), fill, scored)))

    async def pieces(self, token_ids: list[int]) -> list[Piece]:
        return cast(list[Piece], await self._ask(Spell(self._new_id(), token_ids)))

    @property
    def adapters(self) -> list[AdapterCard]:
        return self._adapters

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        card = await self._ask(LoadAdapter(self._new_id(), name, path))
        assert isinstance(card, AdapterCard)
        self._folders[name] = path
        return card

    async def unload_adapter(self, name: str) -> None:
        await self._ask(UnloadAdapter(self._new_id(), name))

    def stats(self) -> list[StepStats]:
        taken, self._stats = self._stats, []
        return taken

    def _require_ready(self) -> None:
        status, detail = self.state()
        if status != "ready":
            raise EngineUnavailable(f"the engine is {status}: {detail}")

    async def _ask(self, question: Question) -> Value:
        self._require_ready()
        return await self._answer(question)

    async def _answer(self, question: Question) -> Value:
        future: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        self._replies[question.id] = future
        try:
            self._supervisor.send(question)
            return await future
        finally:
            self._replies.pop(question.id, None)

    def _new_id(self) -> str:
        return f"ask-{next(self._numbers)}"

    def _handle(self, message: FromRank) -> None:
        match message:
            case Happened(events):
                for event in events:
                    if isinstance(event, Done):
                        self._supervisor.answered()
                    if event.id in self._queues:
                        self._queues[event.id].put_nowait(event)
            case Stepped(stats):
                del self._stats[: len(self._stats) - _MAX_STATS]
                self._stats.append(stats)
            case Ready(card, adapters):
                if card is not None:
                    self._card, self._adapters = card, adapters
                if self._card is not None and self._supervisor.all_ready:
                    self._be_ready(f"serving {self._card.name}")
            case AdaptersChanged(adapters):
                for name in {card.name for card in self._adapters} - {card.name for card in adapters}:
                    self._folders.pop(name, None)
                self._adapters = adapters
            case Reply(message_id, value):
                self._settle(message_id, value)
            case Refused(message_id, text, param, code):
                self._settle(message_id, RequestError(text, param, code))

    def _settle(self, message_id: str, outcome: Value | RequestError) -> None:
        """Sets the answer to a question, if its caller still waits."""
        future = self._replies.get(message_id)
        if future is None or future.done():
            return
        if isinstance(outcome, RequestError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _lost(self, loss: Loss) -> None:
        ending = "" if loss.final else "; it is being started again"
        self._fail_all(f"the engine was lost ({loss.detail}){ending}")
        self._lose(loss)

    def _be_ready(self, detail: str) -> None:
        if self._folders:
            self._restoring = asyncio.create_task(self._restore(detail))
        else:
            self._supervisor.serve(detail)

    async def _restore(self, detail: str) -> None:
        """Ranks that were started again get the adapters that they had, before they get any work."""
        for name, path in list(self._folders.items()):
            try:
                await self._answer(LoadAdapter(self._new_id(), name, path))
            except RequestError as error:
                del self._folders[name]
                detail = f"{detail}; an adapter could not be loaded again: {error.message}"
            except EngineUnavailable:  # lost once more
                return
        self._supervisor.serve(detail)

    def _fail_all(self, message: str) -> None:
        for request_id, queue in self._queues.items():
            queue.put_nowait(Failed(request_id, "overloaded", message, code="engine_lost"))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineUnavailable(message))
