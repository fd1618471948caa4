"""The supervisor of the ranks' processes: it starts and watches them, and restarts all of them when one is lost.

A rank that dies, raises, stays silent or hangs in a step ends all ranks. A failure before the first readiness is final,
and so is every failure under a launcher such as torchrun, which must restart the ranks. Does not import torch.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from tempfile import TemporaryDirectory

from engine.config import EngineConfig
from engine.events import Loss, LossReason
from engine.processes.ending import reason_of
from engine.processes.messages import (
    FROM_RANK,
    HEADER,
    TO_RANK,
    Alive,
    FromRank,
    Loading,
    NotReady,
    Raised,
    Ready,
    ToRank,
)
from engine.rank_info import RankInfo

BACKOFF_S = (0.2, 1.0, 3.0, 10.0)
# After so many seconds of readiness the next loss counts as a first one.
WELL_S = 60.0
# Number of losses without an answer between them after which this process gives up.
GIVEN_UP = 5
# A rank reports its loading after it has imported torch, which is slow on a busy machine.
START_S = 120.0
# Seconds to collect the other ranks' reasons after the first loss, which often ends them too.
GATHER_S = 0.3
EXIT_S = 1.0  # for a process to be over when its line is closed
STACKS_S = 0.2  # for ranks to write their stacks
END_S = 2.0  # for ranks to end by themselves
# Bind gloo and NCCL to loopback if all ranks are on this machine.
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


class Lost(Exception):
    """The reason why a rank is lost. `hangs`: it may still write the stacks of its threads."""

    def __init__(self, reason: LossReason, detail: str, hangs: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.hangs = hangs


class Supervisor:
    """Starts, watches and restarts ranks. `handle` takes all messages of ranks except those about their life.

    `lose` takes each loss, at once. A rank is lost after `silence_s` seconds without a message, and after a step of
    more than `step_s` seconds. `worker` is the module that a rank runs. `backoff_s` are the pauses, in seconds, before
    a restart after one loss, two in a row, … With the `rank_info` of a launcher this process has rank 0 only.
    """

    def __init__(
        self,
        config: EngineConfig,
        handle: Callable[[FromRank], None],
        lose: Callable[[Loss], None],
        silence_s: float,
        step_s: float,
        rank_info: RankInfo | None,
        worker: str,
        backoff_s: Sequence[float] = BACKOFF_S,
        well_s: float = WELL_S,
    ) -> None:
        self.config = config
        self.silence_s = silence_s
        self.step_s = step_s
        self.rank_info = rank_info
        self.worker = worker
        self.backoff_s = backoff_s
        self.well_s = well_s
        self.links: list[Link] = []
        self._handle = handle
        self._lose = lose
        self._state = ("stopped", "not started")
        self._task: asyncio.Task[None] | None = None
        self._has_served = False
        self._ready_at: float | None = None
        self._losses = 0  # since the ranks were well
        self._unanswered = 0  # losses since the last answer

    def start(self) -> None:
        """Starts the ranks and returns at once."""
        self._state = ("loading", "starting the engine process")
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Ends the ranks."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._end()  # if the interrupted task was ending them
        self._state = ("stopped", "stopped")

    @property
    def state(self) -> tuple[str, str]:
        """Like `EngineClient.state`."""
        if self._state[0] == "loading" and self.links:
            slowest = min(self.links, key=lambda link: link.loaded)
            ranks = "" if len(self.links) == 1 else f", rank {slowest.rank} of {len(self.links)} the slowest"
            return "loading", f"loading weights: {slowest.loaded:.0%}{ranks}"
        return self._state

    @property
    def is_given_up(self) -> bool:
        """Whether this process will not serve again: the first load failed, or many losses came without an answer."""
        return self._state[0] == "failed" or (self._unanswered >= GIVEN_UP and not self._is_well)

    @property
    def all_ready(self) -> bool:
        """Whether every rank has reported that it is ready."""
        return bool(self.links) and all(link.ready for link in self.links)

    def serve(self, detail: str) -> None:
        """Marks the ranks as serving: they take requests from now on."""
        self._state = ("ready", detail)
        self._has_served = True
        self._ready_at = time.monotonic()

    @property
    def _is_well(self) -> bool:
        return self._ready_at is not None and time.monotonic() - self._ready_at > self.well_s

    def answered(self) -> None:
        """Notes that the ranks have answered a request, which resets the count of unanswered losses."""
        self._unanswered = 0

    def send(self, message: ToRank) -> None:
        """Sends a message to rank 0, if it lives."""
        if self.links and not self.links[0].writer.is_closing():
            self.links[0].writer.write(TO_RANK.frame(message))

    async def _supervise(self) -> None:
        """One life of the ranks after the other, with growing pauses."""
        while self._state[0] != "failed":
            try:
                await self._live()
            except Exception as error:  # a fault of ours: without this task all would wait for ever
                self._tell([Lost("supervisor", f"the supervisor failed: {reason_of(error)}")])
            if self._state[0] != "failed":
                await asyncio.sleep(self.backoff_s[min(self._losses, len(self.backoff_s)) - 1])

    async def _live(self) -> None:
        """One life of the ranks, from their start until they are gone."""
        hangs = False
        try:
            with self._places() as places:
                try:
                    for rank_info in places:
                        self.links.append(await Link.open(self.worker, self.config, rank_info, self._environment()))
                    lost = await self._first_lost()
                    hangs = any(error.hangs for error in lost)
                    self._tell(lost)
                finally:
                    await self._end(hangs)
        except OSError as error:  # no descriptor, folder, process or thread is to be had
            self._tell([Lost("start", f"the engine process could not be started: {reason_of(error)}")])

    def _tell(self, lost: list[Lost]) -> None:
        """Reports a loss: requests in flight end, and these ranks get no more work."""
        if self._state[0] == "failed":
            return
        # A rank's own reason explains the losses of the others.
        told = [error for error in lost if error.reason == "load"] or lost
        detail = "; ".join(dict.fromkeys(map(str, told)))
        if not self._has_served or self.rank_info is not None:
            self._state = ("failed", detail)
        else:
            self._state = ("restarting", detail)
        if self._is_well:
            self._losses = self._unanswered = 0
        self._ready_at = None
        self._losses += 1
        self._unanswered += 1
        self._lose(Loss(told[0].reason, detail, self._unanswered, self._state[0] == "failed"))

    async def _first_lost(self) -> list[Lost]:
        """Waits for the first loss of a rank; returns it with the losses that follow at once."""
        watches = [asyncio.create_task(self._watch(link)) for link in self.links]
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

    @contextmanager
    def _places(self) -> Iterator[list[RankInfo]]:
        """The places of the ranks that this process has; several meet by a file."""
        size = self.config.tp
        if self.rank_info is not None:
            yield [self.rank_info]
        elif size == 1:
            yield [RankInfo()]
        else:
            with TemporaryDirectory(prefix="glm-infill-", ignore_cleanup_errors=True) as folder:
                yield [RankInfo(rank, size, rank, size, f"file://{folder}/ranks") for rank in range(size)]

    def _environment(self) -> dict[str, str]:
        local = LOCAL if self.rank_info is None and self.config.tp > 1 else {}
        # Child processes of a rank must not import from the current folder either.
        return {**os.environ, "PYTHONSAFEPATH": "1", **local}

    async def _watch(self, link: "Link") -> None:
        """Handles the messages of a rank. Raises Lost when the rank is lost."""
        try:
            while True:
                patience = self.silence_s if link.is_loading or link.ready else START_S
                async with asyncio.timeout(patience):
                    message = await link.receive()
                self._take(link, message)
        except TimeoutError:
            raise Lost("silence", f"{link.name} was silent for {patience:g} s", hangs=True) from None
        except (asyncio.IncompleteReadError, OSError):
            with suppress(TimeoutError):
                await asyncio.wait_for(link.process.wait(), EXIT_S)
            raise link.lost(self._has_served) from None

    def _take(self, link: "Link", message: FromRank) -> None:
        """Handles one message. Raises Lost if it reports the end of the rank."""
        match message:
            case Loading(done):
                link.is_loading, link.loaded = True, done
            case NotReady(detail):
                raise Lost("load", detail)
            case Raised(error):
                raise Lost("exception", f"{link.name} raised {error}")
            case Alive(step_age):
                if step_age > self.step_s:
                    raise Lost("hang", f"a step took more than {self.step_s:g} s", hangs=True)
            case Ready():
                link.ready, link.loaded = True, 1.0
                self._handle(message)
            case _:
                self._handle(message)

    async def _end(self, hangs: bool = False) -> None:
        """Ends all ranks: those of a lost engine at once, others when they see that their line is closed."""
        links = self.links
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
            # The closed line ends a rank, unless the rank hangs or is stopped.
            await asyncio.wait(ends, timeout=END_S)
            for link in links:
                link.signal(signal.SIGKILL)
            await asyncio.gather(*ends)
        self.links = []


class Link:
    """The supervisor's end of a rank's line, and the rank's process."""

    def __init__(
        self,
        rank_info: RankInfo,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.rank = rank_info.rank
        self.name = "the engine process" if rank_info.size == 1 else f"rank {rank_info.rank}"
        self.process = process
        self.writer = writer
        self.is_loading = self.ready = False
        self.loaded = 0.0  # share of its weights
        self._reader = reader

    @staticmethod
    async def open(worker: str, config: EngineConfig, rank_info: RankInfo, environment: dict[str, str]) -> "Link":
        """Starts a rank's process. Raises OSError if the system has no process, descriptor or thread left."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # -P: or Python files of the current folder would be taken for our modules.
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",
                    "-m",
                    worker,
                    str(theirs.fileno()),
                    json.dumps(config.model_dump(mode="json")),
                    json.dumps(asdict(rank_info)),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # or a terminal's Ctrl+C and hangup would reach it, past our drain
                    env=environment,
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException as error:
            ours.close()  # a process that has begun sees that, and ends
            if isinstance(error, RuntimeError):  # no thread to wait for the process
                raise OSError(str(error)) from None
            raise
        return Link(rank_info, process, reader, writer)

    async def receive(self) -> FromRank:
        """Waits for the next message."""
        header = await self._reader.readexactly(HEADER.size)
        return FROM_RANK.decode(await self._reader.readexactly(HEADER.unpack(header)[0]))

    def lost(self, has_served: bool) -> Lost:
        """The reason of the loss, after the line was closed."""
        code = self.process.returncode
        when = "" if has_served else " before it was ready"
        if code is None:
            return Lost("exit", f"{self.name} closed its connection{when}")
        if code >= 0:
            return Lost("exit", f"{self.name} exited with code {code}{when}")
        known = -code in list(signal.Signals)
        detail = f"{self.name} was killed by {signal.Signals(-code).name if known else f'signal {-code}'}{when}"
        if when and -code == signal.SIGKILL:
            detail += "; the system does that when memory runs out"
        return Lost("signal", detail)

    def signal(self, number: int) -> None:
        """Sends a signal to the process, if it lives."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
