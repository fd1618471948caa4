"""What docs/adapters.md tells to type, typed in its order; adapters with random numbers stand in for trained ones."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from model.checkpoint import load
from tests.docs.blocks import blocks, check_shown
from tests.engine.test_adapters import write_lora, write_prefix

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8000"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_page_s_commands_print_what_it_shows(tmp_path: Path) -> None:
    model = load().model
    write_lora(tmp_path / "adapters/legal", model, 1)
    write_prefix(tmp_path / "adapters/verse", model, 2, 32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GLM_INFILL_PORT": port, "GLM_INFILL_LOG_LEVEL": "error"}

    def start(command: str) -> subprocess.Popen[str]:
        line = ["sh", "-c", f"exec {command}"]
        return subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    server = None
    try:
        for block in blocks(ROOT / "docs/adapters.md", ("bash",)):
            command = block.code.strip().replace(URL, f"http://127.0.0.1:{port}")
            process = start(command)
            if " serve " in command:
                server = process
                until_ready(server, port)
                continue
            printed = process.communicate(timeout=120)[0]
            assert process.returncode == 0, command
            if " keys new " in command:
                environment["KEY"] = printed.split()[-1]
            check_shown(block, printed)
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=60)


def until_ready(server: subprocess.Popen[str], port: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
