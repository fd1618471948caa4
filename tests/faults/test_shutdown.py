"""Faults 6 and 7: the end, with work under way in a real engine."""

import os
import signal
from collections.abc import Callable

import httpx
import pytest

from tests.faults.conftest import LONG, Server


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_first_signal_lets_work_finish_and_leaves_no_process(launch: Callable[..., Server]) -> None:
    server = launch()
    children = server.children()
    assert children
    with httpx.stream("POST", f"{server.url}/v1/infill", json={**LONG, "stream": True}, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: blank.delta"
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.status("/ready") == 503)
        assert server.status("/live") == 200
        late = server.fill()
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        events = [line for line in lines if line.startswith("event: ")]
        assert events[-1] == "event: done"
        assert events.count("event: result.done") == 2
    assert server.process.wait(30) == 0
    assert not any(is_alive(child) for child in children)


@pytest.mark.parametrize("signals", [1, 2])
def test_the_deadline_or_a_second_signal_ends_streams_with_an_error(
    launch: Callable[..., Server], signals: int
) -> None:
    server = launch(drain_seconds=0.3 if signals == 1 else 60)
    children = server.children()
    endless = {**LONG, "n": 8, "text": ["the [MASK]"] * 8, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/infill", json=endless, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        if signals == 2:
            server.until(lambda: server.status("/ready") == 503)
            server.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line.startswith("event: ")][-1] == "event: error"
    assert server.process.wait(30) == 0
    assert not any(is_alive(child) for child in children)
