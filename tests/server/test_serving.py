"""A real server process, from its first answer to its exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

PROGRAM = """
import asyncio, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("world", os.environ["WORLD"])
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
from engine.answers import Usage
from engine.events import BlankDelta, Done
from server.serving import serve
from server.settings import Settings

async def script(request, work_id):
    yield BlankDelta(work_id, 0, 0, 0, "b", [7], [-0.5])
    await asyncio.sleep(float(os.environ["SECONDS"]))
    yield Done(work_id, Usage())

engine = world.FakeEngine(script)
engine.status = (os.environ["STATE"], "1 rank")
sys.exit(serve(Settings(), engine))
"""


@pytest.fixture
def launch():
    """Starts servers on free ports, and leaves none behind."""
    processes = []

    def start(seconds=0.0, state="ready", drain=20.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "WORLD": str(Path(__file__).with_name("conftest.py")),
            "SECONDS": str(seconds),
            "STATE": state,
            "GLM_INFILL_PORT": str(port),
            "GLM_INFILL_DRAIN_SECONDS": str(drain),
        }
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=root, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(url, status):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} was never {status}")


def stream(url):
    """An open stream: the request is inside once the first line is read."""
    return httpx.stream("POST", f"{url}/v1/infill", json={"text": "a [MASK]", "stream": True}, timeout=30)


def inside(url):
    return int(httpx.get(f"{url}/ready").json()["detail"].split()[0])


def test_first_signal_drains_and_exits_with_zero(launch):
    process, url = launch(seconds=2.0)
    until(url, 200)
    with stream(url) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: blank.delta"
        process.send_signal(signal.SIGTERM)
        until(url, 503)
        assert inside(url) == 1
        late = httpx.post(f"{url}/v1/infill", json={"text": "a"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert "event: done" in list(lines)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert all(json.loads(line) for line in log.splitlines())


@pytest.mark.parametrize("signals", [1, 2])
def test_deadline_or_second_signal_ends_streams_with_an_error(launch, signals):
    process, url = launch(seconds=60.0, drain=0.5 if signals == 1 else 60.0)
    until(url, 200)
    with stream(url) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: blank.delta"
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            until(url, 503)
            process.send_signal(signal.SIGTERM)
        assert "event: error" in list(lines)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_closed_connections_cancel_their_requests(launch):
    _, url = launch(seconds=60.0)
    until(url, 200)
    with stream(url) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/infill", json={"text": "a"}, timeout=0.3)
    deadline = time.monotonic() + 60
    while 'outcome="cancelled",route="/v1/infill"} 2.0' not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_engine_that_failed_ends_the_process(launch):
    process, _ = launch(state="failed")
    process.communicate(timeout=30)
    assert process.returncode == 1
