"""What clients see of a lost engine, and how long until they are served again.

    python -m benchmarks.recovery

Starts servers of the bundled demo in INT8 on loopback, with eight clients that each stream one fill after another, and
breaks something under them: see `FAULTS`. Every request must end in exactly one way: whole, with an error event, or
refused. The last line printed is one JSON document. Linux only.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

CLIENTS = 8
WARM_S, HELD_S, PATIENCE_S = 1.0, 3.0, 60.0
BODY = {"text": "And he [MASK] unto them", "max_tokens": 32, "min_tokens": 32, "stream": True}


@dataclass
class Server:
    """A server process, and what its clients were told, each with the time."""

    tp: int = 1
    ends: list[tuple[float, str]] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="recovery-")))

    def __enter__(self) -> "Server":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        settings = {"PORT": self.url.rpartition(":")[2], "QUANT": "int8", "TP": str(self.tp), "LOG_LEVEL": "error"}
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        environment |= {f"GLM_INFILL_{name}": value for name, value in settings.items()}
        self.process = subprocess.Popen([Path(sys.executable).with_name("glm-infill"), "serve"], env=environment)
        self.until(self.is_ready)
        self.stop = threading.Event()
        self.clients = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for client in self.clients:
            client.start()
        time.sleep(WARM_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for client in self.clients:
            client.join()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ranks(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=5).status_code
        except httpx.TransportError:
            return 0

    def is_ready(self) -> bool:
        return self.status("/ready") == 200

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("that never came")
            time.sleep(0.02)

    def _ask(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self.stop.is_set():
                end = self._one(client)
                self.ends.append((time.monotonic(), end))
                if end != "done":
                    time.sleep(0.05)

    def _one(self, client: httpx.Client) -> str:
        """How a request ended; anything but one end is told as such."""
        try:
            with client.stream("POST", f"{self.url}/v1/infill", json=BODY) as response:
                if response.status_code != 200:
                    return f"{response.status_code} {json.loads(response.read())['error']['code']}"
                names = [line[7:] for line in response.iter_lines() if line.startswith("event: ")]
        except httpx.TransportError as error:
            return f"no answer ({type(error).__name__})"
        ends = [name for name in names if name in ("done", "error")]
        return ends[0] if len(ends) == 1 else f"{len(ends)} ends"


def killed(server: Server) -> None:
    os.kill(server.ranks()[-1], signal.SIGKILL)


def stopped(server: Server) -> None:
    os.kill(server.ranks()[-1], signal.SIGSTOP)


def without_descriptors(server: Server) -> None:
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened, limits[1]))
    killed(server)
    time.sleep(HELD_S)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def without_a_folder(server: Server) -> None:
    away = server.folder.with_name(server.folder.name + "-away")
    server.folder.rename(away)
    killed(server)
    time.sleep(HELD_S)
    away.rename(server.folder)


def again_and_again(server: Server) -> None:
    for _ in range(5):
        server.until(lambda: bool(server.ranks()))
        killed(server)
        server.until(lambda: server.status("/ready") == 503)
        time.sleep(0.3)


FAULTS: dict[str, tuple[int, Callable[[Server], None]]] = {
    "the engine is killed": (1, killed),
    "the engine is stopped": (1, stopped),
    "one of two ranks is killed": (2, killed),
    "killed while there are no descriptors for 3 s": (1, without_descriptors),
    "a rank of two is killed while there is no temporary folder for 3 s": (2, without_a_folder),
    "killed five times, mostly before it was ready again": (1, again_and_again),
}


def measure(tp: int, fault: Callable[[Server], None]) -> dict[str, Any]:
    with Server(tp) as server:
        before = len(server.ends)
        began = time.monotonic()
        fault(server)
        live = server.status("/live")
        server.until(lambda: any(end == "error" or end.startswith("503") for _, end in server.ends[before:]))
        server.until(server.is_ready)
        ready = time.monotonic()
        server.until(lambda: any(end == "done" and at > ready for at, end in server.ends))
        seen = server.ends[before:]
    refused = [at - began for at, end in seen if end != "done"]
    served = [at - began for at, end in seen if end == "done"]
    return {
        "ends": dict(Counter(end for _, end in seen)),
        "first_error_s": round(min(refused), 2),
        "served_again_s": round(min(at for at in served if at > max(refused, default=0.0)), 2),
        "live_after_fault": live,
    }


def main() -> None:
    found = {}
    for name, (tp, fault) in FAULTS.items():
        found[name] = measure(tp, fault)
        print(f"{name}: {found[name]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
