"""Which of the processes that serve one model a process is. Does not import torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Its rank among all, and among those on its machine.

    `rendezvous` is a file:// name, or env:// as torchrun has it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str = ""

    @staticmethod
    def of_torchrun() -> "RankInfo | None":
        """What torchrun has told this process, None without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in os.environ for name in (*names, "MASTER_ADDR")):
            return None
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        return RankInfo(rank, size, local_rank, local_size, "env://")
