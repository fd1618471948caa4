"""Ranks that a launcher has started, as torchrun does: each process is told its place by its environment."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def test_two_launched_ranks_serve_and_end_together(tiny_checkpoint: Callable[..., Path]) -> None:
    folder, port = tiny_checkpoint(), free_port()
    store = free_port()

    def launched(rank: int) -> subprocess.Popen[bytes]:
        place: dict[str, int | str] = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store, "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "server.cli", "serve", str(folder), "--port", str(port)]
        return subprocess.Popen(command, env=os.environ | {name: str(value) for name, value in place.items()})

    ranks = [launched(0), launched(1)]
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks)
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        answer = httpx.post(f"{url}/v1/infill", json={"text": "a [MASK]", "max_tokens": 3}, timeout=30)
        assert answer.status_code == 200
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["tp"] == 2
        ranks[0].send_signal(signal.SIGTERM)
        assert [rank.wait(30) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_another_number_of_ranks_than_was_launched_is_refused() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "server.cli", "serve", "--tp", "4"]
    done = subprocess.run(command, env=os.environ | place, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "glm-infill: --tp 4: torchrun has started 2 ranks"
