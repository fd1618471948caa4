"""A replica: one engine with rank processes of its own, on the devices that Ray has given it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import Failed, Loss
from engine.process import EngineProcess
from engine.requests import RequestError
from engine.wire import decode_request, encode_event

NOT_READY = "not_ready"
POLL_S = 0.05


class Replica:
    """The engine behind a deployment handle; requests, events and reports cross it as JSON values."""

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

    async def submit(
        self, request: dict[str, Any], request_id: str, attempt: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one request. `attempt` is for the router, which has read it."""
        try:
            async with aclosing(self.engine.submit(decode_request(request), request_id)) as events:
                async for event in events:
                    yield encode_event(event)
        except EngineUnavailable as error:
            yield encode_event(Failed(request_id, "overloaded", str(error), code=NOT_READY))

    async def tokens(self, op: str, value: Any, special: bool) -> dict[str, Any]:
        """`EngineClient.tokenize` or `detokenize`, with a refusal as a value."""
        try:
            if op == "tokenize":
                return {"value": await self.engine.tokenize(value, special)}
            return {"value": await self.engine.detokenize(value, special)}
        except RequestError as error:
            return {"error": [error.message, error.param, error.code]}
        except EngineUnavailable as error:
            return {"unavailable": str(error)}

    async def report(self) -> dict[str, Any]:
        """How the engine is, and its losses and steps since the last report."""
        status, detail = self.engine.state()
        losses = [asdict(loss) for loss in self.losses]
        self.losses.clear()
        return {
            "ready": status == "ready",
            "detail": detail,
            "ranks_alive": self.engine.ranks_alive,
            "card": asdict(self.engine.card),
            "adapters": [asdict(adapter) for adapter in self.engine.adapters],
            "losses": losses,
            "stats": [asdict(step) for step in self.engine.stats()],
        }

    async def check_health(self) -> None:
        """Raises RuntimeError while a rank is lost; Ray replaces a replica for which it does so three times."""
        status, detail = self.engine.state()
        if status != "ready":
            raise RuntimeError(detail)

    async def __del__(self) -> None:
        """Called by Ray when no request is left, or when their time is over."""
        if hasattr(self, "engine"):
            await self.engine.stop()
