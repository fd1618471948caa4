"""The rank of a process among those that serve one model. Does not import torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankInfo:
    """A process's rank among all processes, and among those on its machine.

    `rendezvous` is a file:// URL, or env:// under torchrun.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str = ""

    @staticmethod
    def of_torchrun() -> "RankInfo | None":
        """The rank that torchrun's variables give; None without torchrun."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in os.environ for name in (*names, "MASTER_ADDR")):
            return None
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        return RankInfo(rank, size, local_rank, local_size, "env://")
