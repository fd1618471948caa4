"""How many connections a limit of open files leaves room for."""

import resource
import subprocess
import sys

import pytest

from server.wire.descriptors import PER_RANK, RESERVE, connections_within


def test_the_reserve_grows_with_the_ranks():
    assert connections_within(1024, 1024, 1) == 1024 - RESERVE - PER_RANK
    assert connections_within(1024, 1024, 8) == 1024 - RESERVE - 8 * PER_RANK
    assert connections_within(20_000, 1024, 1) == 1024
    assert connections_within(sys.maxsize, 10**9, 1) == 10**9


def test_no_room_at_all():
    least = RESERVE + PER_RANK + 1
    assert connections_within(least, 1024, 1) == 1
    with pytest.raises(OSError, match=rf"limit of open files is {least - 1}, and at least {least} are needed"):
        connections_within(least - 1, 1024, 1)


def test_the_soft_limit_becomes_the_hard_one():
    program = "from server.wire.descriptors import raise_limit; print(raise_limit())"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for soft in (256, 512):
        done = subprocess.run(
            ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", program], capture_output=True, text=True
        )
        assert done.stdout.strip() == str(hard if hard != resource.RLIM_INFINITY else sys.maxsize), done.stderr
