"""Rank processes: how they find each other, and how rank 0 tells the others what to run.

Rank 0 schedules; the others run what they are told. A batch crosses as whole numbers, behind the number of its step and
a checksum: a rank that is told another step than the next one, or other numbers than were sent, ends.
"""

import zlib
from array import array
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.batch import Batch
from engine.place import Place
from engine.runner import Result, Runner
from model.parallel import Ranks

# Ranks that load large files from a busy disk wait for each other so long; one that hangs is noticed by the supervisor.
PATIENCE = timedelta(minutes=30)
IDLE = timedelta(days=3650)  # between two batches
_HEAD = 256  # numbers of the first message, which is all there is for a step of a few sequences
_STOP = -1


class Diverged(RuntimeError):
    """A rank was told something else than was due."""


class Channel:
    """What rank 0 says to the others, step by step."""

    def __init__(self, ranks: Ranks, group: dist.ProcessGroup) -> None:
        self.ranks = ranks
        self._group = group
        self._step = 0

    def tell(self, batch: Batch, num_top: int) -> None:
        """On rank 0: the next batch."""
        self._send(self._step, array("q", [num_top, *batch.encoded()]))
        self._step += 1

    def stop(self) -> None:
        """On rank 0: there will be none."""
        self._send(_STOP, array("q"))

    def told(self) -> tuple[Batch, int] | None:
        """On the other ranks: waits for the next batch and the number of alternatives; None if there will be none.

        Raises Diverged for another step than the next one and for numbers that are not those that were sent.
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
            raise Diverged(f"step {step} was told where step {self._step} is due")
        if zlib.crc32(numbers) != checksum:
            raise Diverged(f"the batch of step {step} is not what was sent")
        self._step += 1
        return Batch.decoded(numbers[1:]), numbers[0]

    def _send(self, step: int, numbers: "array[int]") -> None:
        head = array("q", [len(numbers), step, zlib.crc32(numbers)])
        body = torch.frombuffer(head + numbers + array("q", [0] * _HEAD), dtype=torch.int64)
        dist.broadcast(body[:_HEAD].clone(), group=self._group, group_src=0)
        if len(numbers) > _HEAD - 3:
            dist.broadcast(body[_HEAD : 3 + len(numbers)].clone(), group=self._group, group_src=0)


class Leading:
    """The runner of rank 0 among several: every batch is told to the others before it is run."""

    def __init__(self, runner: Runner, channel: Channel) -> None:
        self.runner = runner
        self.channel = channel

    def run(self, batch: Batch, num_top: int) -> tuple[list[Result], int]:
        """As `Runner.run`."""
        self.channel.tell(batch, num_top)
        return self.runner.run(batch, num_top)


def follow(runner: Runner, channel: Channel, between: Callable[[bool], object] = lambda running: None) -> None:
    """Runs what rank 0 tells until it says that it is done; `between` is told when a step begins and ends."""
    while (told := channel.told()) is not None:
        between(True)
        runner.run(*told)
        between(False)


def join(place: Place, cuda: bool) -> Channel:
    """Finds the other ranks. Tensors on GPUs go through NCCL, those on the CPU and batches through gloo.

    Raises ValueError where there is no GPU for this rank.
    """
    if cuda:
        if place.local_rank >= torch.cuda.device_count():
            raise ValueError(f"{place.local_size} ranks need a GPU each, this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", place.rendezvous, PATIENCE, place.size, place.rank
    )
    told = dist.new_group(timeout=IDLE, backend="gloo")
    return Channel(Ranks(place.rank, place.size, dist.group.WORLD), told)
