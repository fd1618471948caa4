"""The connection of the ranks: how they find each other, and how rank 0 sends batches to the others.

Rank 0 schedules, and the others run its batches. A batch is sent as integers, with the number of its step and a
checksum: a rank that receives another step than the next one, or other numbers than were sent, ends. News of adapters
goes the same way; every rank reads the files by itself.
"""

import os
import zlib
from array import array
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist

from engine.adapters import Adapters
from engine.rank_info import RankInfo
from engine.runner import Runner
from engine.schedule.batch import Batch, Result
from model.adapters.adapter import Adapter
from model.config import CheckpointError
from model.parallel import Ranks

# Ranks wait so long for each other while they load from a busy disk. The supervisor detects a rank that hangs.
PATIENCE = timedelta(minutes=30)
IDLE = timedelta(days=3650)  # maximum time between two batches
_HEAD = 256  # numbers of the first message, which is all there is for a step of a few sequences
_STOP = -1

Change = Literal["read", "attach", "drop"]
_CHANGES: tuple[Change | None, ...] = (None, *get_args(Change))  # None: a batch


class Diverged(RuntimeError):
    """A rank has received another step than the next one, or damaged numbers."""


class AdapterNews(NamedTuple):
    """A change of an adapter. `path` is that of an adapter to read."""

    change: Change
    number: int
    path: str = ""


class Channel:
    """The messages of rank 0 to the other ranks, step by step."""

    def __init__(self, ranks: Ranks, group: dist.ProcessGroup) -> None:
        self.ranks = ranks
        self._group = group
        self._step = 0

    def tell(self, batch: Batch, num_top: int) -> None:
        """On rank 0: sends the next batch."""
        self._tell(None, num_top, *batch.encoded())

    def tell_of(self, news: AdapterNews) -> None:
        """On rank 0: sends news of an adapter."""
        self._tell(news.change, news.number, *os.fsencode(news.path))

    def stop(self) -> None:
        """On rank 0: sends the end."""
        self._send(_STOP, array("q"))

    def told(self) -> tuple[Batch, int] | AdapterNews | None:
        """On the other ranks: waits for the next batch and its number of alternatives, or for news of an adapter.

        None is the end. Raises Diverged for another step than the next one, and for other numbers than were sent.
        """
        head = torch.empty(_HEAD, dtype=torch.int64)
        dist.broadcast(head, group=self._group, group_src=0)
        length, step, checksum = head[:3].tolist()
        body = head[3 : 3 + length]
        if length > _HEAD - 3:
            rest = torch.empty(length - (_HEAD - 3), dtype=torch.int64)
            dist.broadcast(rest, group=self._group, group_src=0)
            body = torch.cat([body, rest])
        numbers = array("q", body.numpy().tobytes())
        if step == _STOP:
            return None
        if step != self._step:
            raise Diverged(f"received step {step} instead of step {self._step}")
        if zlib.crc32(numbers) != checksum:
            raise Diverged(f"the batch of step {step} is damaged")
        self._step += 1
        change, first = _CHANGES[numbers[0]], numbers[1]
        if change is not None:
            return AdapterNews(change, first, os.fsdecode(bytes(numbers[2:].tolist())))
        return Batch.decoded(numbers[2:]), first

    def _tell(self, change: Change | None, *numbers: int) -> None:
        self._send(self._step, array("q", [_CHANGES.index(change), *numbers]))
        self._step += 1

    def _send(self, step: int, numbers: "array[int]") -> None:
        head = array("q", [len(numbers), step, zlib.crc32(numbers)])
        body = torch.frombuffer(head + numbers + array("q", [0] * _HEAD), dtype=torch.int64)
        dist.broadcast(body[:_HEAD].clone(), group=self._group, group_src=0)
        if len(numbers) > _HEAD - 3:
            dist.broadcast(body[_HEAD : 3 + len(numbers)].clone(), group=self._group, group_src=0)


class BroadcastingRunner:
    """The runner of rank 0 among several. It sends every batch to the others before it runs it."""

    def __init__(self, runner: Runner, channel: Channel) -> None:
        self.runner = runner
        self.channel = channel

    def run(self, batch: Batch, num_top: int) -> tuple[list[Result], int]:
        """Like `Runner.run`."""
        self.channel.tell(batch, num_top)
        return self.runner.run(batch, num_top)


class BroadcastingAdapters:
    """The adapters of rank 0 among several ranks."""

    def __init__(self, adapters: Adapters, channel: Channel) -> None:
        self._adapters = adapters
        self._channel = channel

    def read(self, number: int, path: str, done: Callable[[], object] = lambda: None) -> None:
        """Like `Adapters.read`."""
        self._channel.tell_of(AdapterNews("read", number, path))
        self._adapters.read(number, path, done)

    def attach(self, number: int) -> Adapter:
        """Like `Adapters.attach`. Raises CheckpointError for an adapter that some rank cannot use."""
        self._channel.tell_of(AdapterNews("attach", number))
        return self._adapters.attach(number)

    def drop(self, number: int) -> None:
        """Like `Adapters.drop`."""
        self._channel.tell_of(AdapterNews("drop", number))
        self._adapters.drop(number)


def follow(runner: Runner, channel: Channel, between: Callable[[bool], object] = lambda running: None) -> None:
    """Runs the batches of rank 0 until the end. `between` is called at the beginning and end of each step."""
    while (told := channel.told()) is not None:
        if isinstance(told, AdapterNews):
            _take(told, runner.adapters)
            continue
        between(True)
        runner.run(*told)
        between(False)


def _take(news: AdapterNews, adapters: Adapters) -> None:
    match news.change:
        case "read":
            adapters.read(news.number, news.path)
        case "attach":
            with suppress(CheckpointError):  # rank 0 gets the same error, and answers
                adapters.attach(news.number)
        case "drop":
            adapters.drop(news.number)


def join(rank_info: RankInfo, cuda: bool) -> Channel:
    """Connects this rank with the others. GPU tensors use NCCL; CPU tensors and batches use gloo."""
    if cuda:
        torch.cuda.set_device(rank_info.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", rank_info.rendezvous, PATIENCE, rank_info.size, rank_info.rank
    )
    told = dist.new_group(timeout=IDLE, backend="gloo")
    return Channel(Ranks(rank_info.rank, rank_info.size, dist.group.WORLD), told)
