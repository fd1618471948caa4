"""A server in a process of its own, for clients that speak over a socket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The address of `serve` with these arguments, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve", *arguments, "--port", str(port)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "GLM_INFILL_LOG_LEVEL": "error"}
    process = subprocess.Popen(command, cwd=root, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _is_ready(url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False
