"""Descriptors: the number of connections that the limit of open files allows."""

import resource
import sys
from contextlib import suppress

# What is open besides connections: the log, the loop, listening sockets, files that are read, and connections that are
# being refused; for each rank its line, twice as many while it is started anew.
RESERVE = 64
PER_RANK = 8


def raise_limit() -> int:
    """Raises this process's limit of open files to its maximum, and returns it. Child processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems allow less than they say.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def connections_within(limit: int, wanted: int, num_ranks: int) -> int:
    """The number of connections, at most `wanted`, that a limit of open files allows.

    Raises OSError if it allows none.
    """
    reserve = RESERVE + PER_RANK * num_ranks
    if limit <= reserve:
        raise OSError(f"the limit of open files is {limit}, and at least {reserve + 1} are needed; see `ulimit -n`")
    return min(wanted, limit - reserve)
