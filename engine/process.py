"""An engine in supervised processes of its own, one a rank. Does not import torch.

A rank that dies, or raises, or is silent, or hangs in a step, ends all of them; requests in flight end with an error,
none waits for ever, and the ranks are started anew.
"""

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from engine.client import EngineUnavailable
from engine.config import EngineConfig
from engine.events import TERMINAL, AdapterCard, Event, Failed, ModelCard, StepStats
from engine.place import Place
from engine.requests import Request, RequestError
from engine.wire import HEADER, decode_event, encode_request, frame

BACKOFF_S = (0.2, 1.0, 3.0, 10.0)
# A rank speaks first when torch is imported, which takes its time on a busy machine.
START_S = 120.0
# The first rank to be lost takes others with it: so long they are asked for their part of the story.
GATHER_S = 0.3
STACKS_S = 0.2  # for ranks to write their stacks
END_S = 2.0  # for ranks to end by themselves
# Ranks on one machine have no business with others.
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
_MAX_STATS = 10_000


class Lost(Exception):
    """Why a rank is no use any more; `hangs` where it may still tell what it is doing."""

    def __init__(self, reason: str, hangs: bool = False) -> None:
        super().__init__(reason)
        self.hangs = hangs


class EngineProcess:
    """An `EngineClient` over rank processes.

    `silence_s`: a rank not heard of for so long is dead; `step_s`: so is one whose step takes longer. With the `place`
    of a launcher such as torchrun this process has rank 0 only, and a lost rank fails it for good: the launcher starts
    all of them again. `worker` is the module that a rank runs.
    """

    def __init__(
        self,
        config: EngineConfig,
        silence_s: float = 8.0,
        step_s: float = 60.0,
        place: Place | None = None,
        worker: str = "engine.worker",
    ) -> None:
        self.config = config
        self.silence_s = silence_s
        self.step_s = step_s
        self.place = place
        self.worker = worker
        self._state = ("stopped", "not started")
        self._card: ModelCard | None = None
        self._links: list[_Link] = []
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._stats: list[StepStats] = []
        self._numbers = itertools.count()
        self._adapters: list[AdapterCard] = []
        self._folders: dict[str, str] = {}  # of adapters that were loaded while serving
        self._supervisor: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._state = ("loading", "starting the engine process")
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end()  # where the supervisor was doing so and has been interrupted
        self._fail_all("the engine has been stopped")
        self._state = ("stopped", "stopped")

    def state(self) -> tuple[str, str]:
        if self._state[0] == "loading" and self._links:
            slowest = min(self._links, key=lambda link: link.loaded)
            ranks = "" if len(self._links) == 1 else f", rank {slowest.rank} of {len(self._links)} the slowest"
            return "loading", f"loading weights: {slowest.loaded:.0%}{ranks}"
        return self._state

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise EngineUnavailable(self._state[1])
        return self._card

    @property
    def ranks_alive(self) -> int:
        return sum(link.ready for link in self._links)

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks that there are."""
        return [link.process.pid for link in self._links if link.process.returncode is None]

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

    @property
    def adapters(self) -> list[AdapterCard]:
        return self._adapters

    async def load_adapter(self, name: str, path: str) -> AdapterCard:
        card = AdapterCard(**await self._ask(op="load", name=name, path=path))
        self._folders[name] = path
        return card

    async def unload_adapter(self, name: str) -> None:
        await self._ask(op="unload", name=name)

    def stats(self) -> list[StepStats]:
        taken, self._stats = self._stats, []
        return taken

    def _require_ready(self) -> None:
        if self._state[0] != "ready":
            raise EngineUnavailable(f"the engine is {self._state[0]}: {self._state[1]}")

    async def _ask(self, **message: Any) -> Any:
        self._require_ready()
        return await self._answer(**message)

    async def _answer(self, **message: Any) -> Any:
        number = f"ask-{next(self._numbers)}"
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(id=number, **message)
            return await future
        finally:
            self._replies.pop(number, None)

    def _send(self, **message: Any) -> None:
        """To rank 0, if there is one."""
        if self._links and not self._links[0].writer.is_closing():
            self._links[0].writer.write(frame(message))

    async def _supervise(self) -> None:
        """Starts the ranks, again and again with growing pauses, unless their first load fails."""
        failures = 0
        while True:
            began = time.monotonic()
            await self._run_once()
            if self._state[0] == "failed":
                self._fail_all(self._state[1])
                return
            failures = 0 if time.monotonic() - began > 60 else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _run_once(self) -> None:
        """One life of the ranks, from their start until they are gone."""
        with tempfile.TemporaryDirectory(prefix="glm-infill-") as folder:
            hangs = False
            try:
                for place in self._places(folder):
                    self._links.append(await _Link.open(self.worker, self.config, place, self._environment()))
                lost = await self._first_lost()
                hangs = any(error.hangs for error in lost)
                self._lose("; ".join(dict.fromkeys(map(str, lost))))
            finally:
                await self._end(hangs)

    async def _first_lost(self) -> list[Lost]:
        """Waits until a rank is lost; with it those that it takes along at once."""
        watches = [asyncio.create_task(self._watch(link)) for link in self._links]
        try:
            done, others = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            if others:
                done |= (await asyncio.wait(others, timeout=GATHER_S))[0]
        finally:
            for watch in watches:
                watch.cancel()
            ends = await asyncio.gather(*watches, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, Lost):
                raise end
        return [end for end in ends if isinstance(end, Lost)]

    def _places(self, folder: str) -> list[Place]:
        if self.place is not None:
            return [self.place]
        size = self.config.tp
        return [Place(rank, size, rank, size, f"file://{folder}/ranks") for rank in range(size)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **(LOCAL if self.place is None and self.config.tp > 1 else {})}

    def _lose(self, reason: str) -> None:
        """No more work for these ranks; what is in flight ends at once."""
        if self._state[0] == "failed":
            return
        if self.place is not None:
            self._state = ("failed", reason)
        else:
            self._state = ("restarting", reason)
        self._fail_all(f"the engine was lost ({reason}); it is being started again")

    async def _watch(self, link: "_Link") -> None:
        """Handles what a rank says. Raises Lost when it is."""
        patience = START_S
        try:
            while True:
                async with asyncio.timeout(patience):
                    message = await link.receive()
                patience = self.silence_s
                self._handle(link, message)
        except TimeoutError:
            raise Lost(f"{self._named(link)} was silent for {patience:g} s", hangs=True) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            with suppress(TimeoutError):
                await asyncio.wait_for(link.process.wait(), GATHER_S / 2)
            raise Lost(f"{self._named(link)} {link.ending}") from None

    def _named(self, link: "_Link") -> str:
        return "it" if link.size == 1 else f"rank {link.rank}"

    def _handle(self, link: "_Link", message: dict[str, Any]) -> None:
        """Takes one frame. Raises Lost if it tells of a rank that is of no use any more."""
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
            if "card" in message:
                self._card = ModelCard(**message["card"])
                self._adapters = [AdapterCard(**values) for values in message["adapters"]]
            link.ready, link.loaded = True, 1.0
            if self._card is not None and all(link.ready for link in self._links):
                self._be_ready(f"serving {self._card.name}")
        elif op == "adapters":
            before, self._adapters = self._adapters, [AdapterCard(**values) for values in message["adapters"]]
            for name in {card.name for card in before} - {card.name for card in self._adapters}:
                self._folders.pop(name, None)
        elif op == "loading":
            link.loaded = message["done"]
        elif op == "failed":
            # After a first success the files were good: what fails now may be well again.
            if self._card is None:
                self._state = ("failed", message["detail"])
            raise Lost(message["detail"])
        elif op == "lost":
            raise Lost(f"{self._named(link)} {message['detail']}")
        elif op == "reply":
            future = self._replies.get(message["id"])
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(RequestError(message["error"], message["param"], message["code"]))
                else:
                    future.set_result(message["value"])
        elif op == "alive" and message["step_age"] > self.step_s:
            raise Lost(f"a step took more than {self.step_s:g} s", hangs=True)

    def _be_ready(self, detail: str) -> None:
        if self._folders:
            self._restoring = asyncio.create_task(self._restore(detail))
        else:
            self._state = ("ready", detail)

    async def _restore(self, detail: str) -> None:
        """Ranks that were started again get the adapters that they had, before they get any work."""
        for name, path in list(self._folders.items()):
            try:
                await self._answer(op="load", name=name, path=path)
            except RequestError as error:
                del self._folders[name]
                detail = f"{detail}; an adapter could not be loaded again: {error.message}"
            except EngineUnavailable:  # lost once more
                return
        self._state = ("ready", detail)

    def _fail_all(self, message: str) -> None:
        for request_id, queue in self._queues.items():
            queue.put_nowait(Failed(request_id, "overloaded", message, code="engine_lost"))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineUnavailable(message))

    async def _end(self, hangs: bool = False) -> None:
        """Ends all ranks: those of a lost engine at once, others when they see that their line is closed."""
        links = self._links
        for link in links:
            link.ready = False
        if hangs:
            for link in links:
                link.signal(signal.SIGUSR1)
            await asyncio.sleep(STACKS_S)
        for link in links:
            link.writer.close()
        if self._state[0] == "restarting":
            for link in links:
                link.signal(signal.SIGKILL)
        ends = [asyncio.create_task(link.process.wait()) for link in links]
        if ends:
            # The closed line tells a rank to go; one that hangs or is stopped does not hear it.
            await asyncio.wait(ends, timeout=END_S)
            for link in links:
                link.signal(signal.SIGKILL)
            await asyncio.gather(*ends)
        self._links = []


class _Link:
    """The supervisor's end of a rank's line, and the rank's process."""

    def __init__(
        self,
        place: Place,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.rank, self.size = place.rank, place.size
        self.process = process
        self.writer = writer
        self.ready = False
        self.loaded = 0.0  # share of its weights
        self._reader = reader

    @staticmethod
    async def open(worker: str, config: EngineConfig, place: Place, environment: dict[str, str]) -> "_Link":
        """Starts a rank's process."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                worker,
                str(theirs.fileno()),
                json.dumps(asdict(config)),
                json.dumps(asdict(place)),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return _Link(place, process, reader, writer)

    async def receive(self) -> dict[str, Any]:
        """The next frame."""
        header = await self._reader.readexactly(HEADER.size)
        message: dict[str, Any] = json.loads(await self._reader.readexactly(HEADER.unpack(header)[0]))
        return message

    @property
    def ending(self) -> str:
        """How the process ended."""
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else "ended"

    def signal(self, number: int) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
