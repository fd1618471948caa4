"""A replica: one engine with its rank processes, on the devices that Ray assigns."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import Failed, Loss
from engine.processes.messages import (
    EVENTS,
    FROM_REPLICA,
    REQUESTS,
    TO_REPLICA,
    Detokenize,
    Read,
    Refused,
    Reply,
    Report,
    Spell,
    TextQuestion,
    Tokenize,
    Unavailable,
    Value,
)  # fmt: skip
from engine.processes.process import EngineProcess
from engine.requests import RequestError

NOT_READY = "not_ready"
POLL_S = 0.05


class Replica:
    """The engine behind a deployment handle. Requests, events and reports are JSON."""

    async def __init__(self, config: EngineConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns when the model is loaded. Raises RuntimeError when it cannot be: Ray tries again elsewhere."""
        self.losses: list[Loss] = []
        self.engine = EngineProcess(config)
        await self.engine.start(self.losses.append)
        while (state := self.engine.state())[0] == "loading":
            await asyncio.sleep(POLL_S)
        if state[0] != "ready":
            await self.engine.stop()
            raise RuntimeError(state[1])

    async def submit(self, request: bytes, request_id: str, attempt: int) -> AsyncGenerator[bytes, None]:
        """The events of one request. `attempt` is for the router, which has read it."""
        try:
            async with aclosing(self.engine.submit(REQUESTS.decode(request), request_id)) as events:
                async for event in events:
                    yield EVENTS.encode(event)
        except EngineUnavailable as error:
            yield EVENTS.encode(Failed(request_id, "overloaded", str(error), code=NOT_READY))

    async def ask(self, question: bytes) -> bytes:
        """The answer to a question about a text or tokens."""
        asked = TO_REPLICA.decode(question)
        try:
            return FROM_REPLICA.encode(Reply(asked.id, await self._answer(asked)))
        except RequestError as error:
            return FROM_REPLICA.encode(Refused(asked.id, error.message, error.param, error.code))
        except EngineUnavailable as error:
            return FROM_REPLICA.encode(Unavailable(asked.id, str(error)))

    async def _answer(self, asked: TextQuestion) -> Value:
        match asked:
            case Tokenize():
                return await self.engine.tokenize(asked.text, asked.special, asked.masks)
            case Detokenize():
                return await self.engine.detokenize(asked.token_ids, asked.special, asked.finished, asked.sentence)
            case Read():
                return await self.engine.read(asked.fill, asked.scored)
            case Spell():
                return await self.engine.pieces(asked.token_ids)

    async def report(self) -> bytes:
        """The engine's `Report`, as JSON."""
        status, detail = self.engine.state()
        losses, self.losses[:] = self.losses[:], []
        engine = self.engine
        report = Report(
            status == "ready", detail, engine.ranks_alive, engine.card, engine.adapters, losses, engine.stats()
        )
        return FROM_REPLICA.encode(report)

    async def check_health(self) -> None:
        """Raises RuntimeError after a rank is lost. Ray replaces a replica after three such checks."""
        status, detail = self.engine.state()
        if status != "ready":
            raise RuntimeError(detail)

    async def __del__(self) -> None:
        """Called by Ray when no request is left, or when their time is over."""
        if hasattr(self, "engine"):
            await self.engine.stop()
