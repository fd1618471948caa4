"""Ranks as threads of one process: real collectives over gloo, without the seconds that processes take to start."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from model.parallel import Ranks

Result = TypeVar("Result")


def on_ranks(size: int, work: Callable[[Ranks], Result], timeout_s: float = 5) -> list[Result]:
    """What `work` gives on each of `size` ranks; what the first failing one raises is raised here."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    results: dict[int, Result] = {}
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            torch.set_num_threads(1)  # a thread has its own number
            results[rank] = work(Ranks(rank, size, group(store, rank, size, timeout_s)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [results[rank] for rank in range(size)]


def group(store: Any, rank: int, size: int, timeout_s: float) -> dist.ProcessGroup:
    """A group of gloo, which torch.distributed's own table of groups does not know."""
    backend = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=timeout_s))
    made = dist.ProcessGroup(store, rank, size)
    made._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    made._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    return made
