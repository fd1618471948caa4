"""Fault 32: the wall clock is set, forwards and backwards. What lasts so long, or comes so often, is not told by it."""

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from server.keyfile import new_key
from tests.faults.conftest import LONG, Server

DAY_S = 86_400
JUMPS = (3 * DAY_S, -400 * DAY_S, 0)


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[list[str], Callable[[int], None]]:
    """A command that starts another one with a clock of its own, and what sets that clock."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler for Linux is needed")
    library, file = tmp_path / "clock.so", tmp_path / "shift"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", library], check=True)
    file.write_bytes(bytes(8))

    def shift(seconds: int) -> None:
        with file.open("r+b") as shared:
            shared.write(struct.pack("l", seconds))

    return ["env", f"LD_PRELOAD={library}", f"CLOCK_SHIFT={file}"], shift


def test_deadlines_rates_and_connections_go_by_a_clock_that_nobody_sets(
    launch: Callable[..., Server], tmp_path: Path, shifted: tuple[list[str], Callable[[int], None]]
) -> None:
    by, shift = shifted
    path = tmp_path / "keys.jsonl"
    free = {"authorization": f"Bearer {new_key(path, name='free')}"}
    slow = {"authorization": f"Bearer {new_key(path, name='slow', requests_per_minute=1)}"}
    server = launch(by=by, api_keys=path, open_metrics=True, keep_alive_seconds=120)
    children = server.children()
    short = {"text": "the [MASK]", "max_tokens": 2}
    with httpx.Client(base_url=server.url, timeout=60, headers=free) as kept:
        assert server.post("/v1/infill", short, headers=slow).status_code == 200
        began = time.monotonic()
        with kept.stream("POST", "/v1/infill", json={**LONG, "stream": True, "timeout_s": 50}) as response:
            lines = response.iter_lines()
            next(lines)
            for jump in JUMPS:
                shift(jump)
                answer = server.post("/v1/infill", short, headers=free)
                assert answer.status_code == 200
                assert abs(answer.json()["created"] - time.time() - jump) < 60
                # A deadline of a second is over after a second, whatever the clock says.
                slowly = {**LONG, "text": ["the [MASK]"] * 16, "n": 8, "timeout_s": 1}
                asked = time.monotonic()
                assert server.post("/v1/infill", slowly, headers=free).status_code == 504
                assert time.monotonic() - asked > 0.9
                limited = server.post("/v1/infill", short, headers=slow)
                if time.monotonic() - began < 55:
                    assert limited.status_code == 429
                    assert 0 < int(limited.headers["retry-after-ms"]) <= 60_000
                time.sleep(0.3)  # the watches of the engine and of the connections have seen it
            assert [line for line in lines if line.startswith("event: ")][-1] == "event: done"
        # The same connection, and the same engine.
        assert kept.get("/v1/models").status_code == 200
    assert server.children() == children
    server.until(lambda: server.metric("requests_running") == 0)
    assert server.stop() == 0
    assert "engine lost" not in server.log.read_text()
