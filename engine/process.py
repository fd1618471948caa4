"""An engine in a supervised process of its own. Does not import torch.

A worker that dies, or is silent, or hangs in a step, is killed and started anew; requests in flight end with an
error, none waits for ever.
"""

import asyncio
import itertools
import json
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import TERMINAL, Event, Failed, ModelCard, StepStats
from engine.requests import Request, RequestError
from engine.wire import HEADER, decode_event, encode_request, frame

BACKOFF_S = (0.2, 1.0, 3.0, 10.0)
# A worker speaks first when torch is imported, which takes its time on a busy machine.
START_S = 120.0
_MAX_STATS = 10_000


class EngineProcess:
    """An `EngineClient` over a worker process.

    `silence_s`: a worker not heard of for so long is dead; `step_s`: so is one whose step takes longer.
    """

    def __init__(self, config: EngineConfig, silence_s: float = 10.0, step_s: float = 60.0) -> None:
        self.config = config
        self.silence_s = silence_s
        self.step_s = step_s
        self._state = ("stopped", "not started")
        self._card: ModelCard | None = None
        self._alive = False
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._stats: list[StepStats] = []
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._state = ("loading", "starting the engine process")
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end_process()
        self._fail_all("the engine has been stopped")
        self._state = ("stopped", "stopped")

    def state(self) -> tuple[str, str]:
        return self._state

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise EngineUnavailable(self._state[1])
        return self._card

    @property
    def ranks_alive(self) -> int:
        return int(self._alive)

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def submit(self, request: Request, request_id: str) -> AsyncGenerator[Event, None]:
        self._require_ready()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[request_id] = queue
        ended = False
        try:
            self._send(op="submit", id=request_id, request=encode_request(request))
            while not ended:
                event = await queue.get()
                ended = isinstance(event, TERMINAL)
                yield event
        finally:
            self._queues.pop(request_id, None)
            if not ended:
                self._send(op="cancel", id=request_id)

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = await self._ask(op="tokenize", text=text, special=special)
        return ids

    async def detokenize(self, token_ids: list[int], special: bool = False) -> str:
        text: str = await self._ask(op="detokenize", token_ids=token_ids, special=special)
        return text

    def stats(self) -> list[StepStats]:
        taken, self._stats = self._stats, []
        return taken

    def _require_ready(self) -> None:
        if self._state[0] != "ready":
            raise EngineUnavailable(f"the engine is {self._state[0]}: {self._state[1]}")

    async def _ask(self, **message: Any) -> Any:
        self._require_ready()
        number = f"ask-{next(self._numbers)}"
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(id=number, **message)
            return await future
        finally:
            self._replies.pop(number, None)

    def _send(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _supervise(self) -> None:
        """Starts the worker, again and again with growing pauses, unless its first load fails."""
        failures = 0
        while True:
            began = time.monotonic()
            reason = await self._run_once()
            self._alive = False
            if self._state[0] == "failed":
                self._fail_all(self._state[1])
                return
            self._state = ("restarting", reason)
            self._fail_all(f"the engine was lost ({reason}); it is being started again")
            failures = 0 if time.monotonic() - began > 60 else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _run_once(self) -> str:
        """One life of the worker; why it ended."""
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.worker",
                str(theirs.fileno()),
                json.dumps(asdict(self.config)),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        reason = "it ended"
        patience = START_S
        try:
            while True:
                async with asyncio.timeout(patience):
                    header = await reader.readexactly(HEADER.size)
                    body = await reader.readexactly(HEADER.unpack(header)[0])
                patience = self.silence_s
                if not self._handle(json.loads(body)):
                    reason = f"a step took more than {self.step_s:g} s"
                    break
        except TimeoutError:
            reason = f"it was silent for {patience:g} s"
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await self._end_process()
        return reason

    def _handle(self, message: dict[str, Any]) -> bool:
        """Takes one frame; False if it tells of a step that hangs."""
        op = message["op"]
        if op == "events":
            for values in message["events"]:
                event = decode_event(values)
                if event.id in self._queues:
                    self._queues[event.id].put_nowait(event)
        elif op == "stats":
            del self._stats[: len(self._stats) - _MAX_STATS]
            self._stats.append(StepStats(**message["stats"]))
        elif op == "ready":
            self._card = ModelCard(**message["card"])
            self._alive = True
            self._state = ("ready", f"serving {self._card.name}")
        elif op == "loading":
            self._state = ("loading" if self._card is None else "restarting", message["detail"])
        elif op == "failed":
            self._state = ("failed", message["detail"])
        elif op == "reply":
            future = self._replies.get(message["id"])
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(RequestError(message["error"], message.get("param")))
                else:
                    future.set_result(message["value"])
        elif op == "alive":
            return bool(message["step_age"] <= self.step_s)
        return True

    def _fail_all(self, message: str) -> None:
        for request_id, queue in self._queues.items():
            queue.put_nowait(Failed(request_id, "overloaded", message, code="engine_lost"))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineUnavailable(message))

    async def _end_process(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            # The closed socket tells the worker to go; one that hangs or is stopped does not hear it.
            await asyncio.wait_for(process.wait(), 2.0)
        except TimeoutError:
            process.kill()
            await process.wait()
