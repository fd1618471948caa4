"""Real server processes with a tiny model, for tests that mistreat them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
LONG = {"text": "the [MASK]", "max_tokens": 900, "min_tokens": 900, "n": 2}


class Server:
    """A server process on a free port of this machine, at `url`; `by` is a command that starts it, such as nohup."""

    def __init__(
        self,
        model: Path,
        log: Path,
        by: Sequence[str] = (),
        url: str = "http://127.0.0.1",
        cwd: Path = ROOT,
        **settings: Any,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"{url}:{self.port}"
        self.log = log
        wanted = {"model": model, "port": self.port, "kv_cache_gb": 0.05, **settings}
        environment = {f"GLM_INFILL_{name.upper()}": str(value) for name, value in wanted.items()}
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*by, Path(sys.executable).with_name("glm-infill"), "serve"],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                cwd=cwd,
                stderr=stderr,
            )
        self.until(lambda: self.status("/ready") == 200)

    def until(self, is_so: Callable[[], bool]) -> None:
        """Waits until it is so; fails if that takes for ever or the process has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_S, **options)

    def fill(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/infill", {"text": "the [MASK]", "max_tokens": 3, **fields})

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=10).text

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric that have these labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            match = re.fullmatch(r"glm_infill_(\w+)(\{.*\})? (\S+)", line)
            if match and match[1] == name and all(f'{k}="{v}"' in (match[2] or "") for k, v in labels.items()):
                total += float(match[3])
        return total

    def until_idle(self) -> None:
        """Waits until nothing runs, waits, or holds a cache block."""
        names = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
        self.until(lambda: all(self.metric(name) == 0 for name in names))

    def raw(self, data: bytes, receive_bytes: int = 1 << 20) -> bytes:
        """What comes back for bytes as they are, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            answer = b""
            try:
                connection.sendall(data)
                while len(answer) < receive_bytes and (chunk := connection.recv(65536)):
                    answer += chunk
            except ConnectionError:
                pass  # closed before all was sent or read
            return answer

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def rss(self) -> int:
        """Resident bytes of the HTTP process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@pytest.fixture(scope="session")
def roomy(tiny_checkpoint: Callable[..., Path]) -> Path:
    """A tiny model that takes long texts."""
    return tiny_checkpoint(max_sequence_length=1024)


@pytest.fixture
def launch(roomy: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`launch(model=None, **settings)` starts a server, and the test leaves none behind."""
    servers: list[Server] = []

    def start(model: Path | None = None, **settings: Any) -> Server:
        server = Server(model or roomy, tmp_path / f"log {len(servers)}", **settings)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(roomy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests, with short timeouts; after each test it must be alive and idle."""
    server = Server(roomy, tmp_path_factory.mktemp("server") / "log", header_seconds=1, body_seconds=1, write_seconds=2)
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(autouse=True)
def _well_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        server.until_idle()
        assert server.fill().status_code == 200


@pytest.fixture
def refused() -> Callable[[httpx.Response, int, str | None], dict[str, Any]]:
    """Checks the one error shape and returns its inside."""

    def check(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
        assert response.status_code == status, response.text
        error: dict[str, Any] = json.loads(response.text)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["param"] == param
        return error

    return check
