"""A server under mixed load for long: `python -m benchmarks.soak --minutes 60`. The last line is one JSON document.

Fills and scores, streams that are left half-way, bad requests, and bursts over the queue, all the time; resident
memory, file descriptors and threads of the server's processes are noted as it goes. After a time to warm up their
slopes should be nothing, and the same request should be answered the same at the end as at the start.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession

from server.load import Workload, ask, client_of

GOLDEN = {"text": "In the beginning God created the [MASK] and the earth.", "max_tokens": 8, "logprobs": 2}
BAD: tuple[bytes, ...] = (
    b"{",
    b"[]",
    b'{"text": 7}',
    b'{"text": "a", "n": -1}',
    b'{"text": "[sMASK]", "x": 1}',
    b"\xff",
)
WARM_UP = 0.25  # of the time, of which slopes are not taken


async def work(client: ClientSession, ends: float, seed: int, counts: Counter[str]) -> None:
    """One client: mostly proper requests, sometimes one that leaves, sometimes a bad one."""
    draw = random.Random(seed)
    bodies = Workload({"fill": 2.0, "score": 1.0}, words=30, tokens=12, repeated=0.3).bodies(seed)
    while time.monotonic() < ends:
        kind, body = next(bodies)
        chance = draw.random()
        if chance < 0.1:
            counts["left"] += 1
            with_many = {**body, "max_tokens": 200, "min_tokens": 200, "stream": True}
            try:
                async with asyncio.timeout(draw.uniform(0.01, 0.3)):
                    await ask(client, "fill", with_many if kind == "fill" else {**GOLDEN, "stream": True})
            except TimeoutError:
                pass
        elif chance < 0.2:
            content = draw.choice(BAD)
            async with client.post("v1/infill", data=content, headers={"Content-Type": "application/json"}) as answer:
                counts[f"bad {answer.status}"] += 1
        else:
            outcome = await ask(client, kind, body)
            counts[f"{kind} {outcome.error or outcome.status}"] += 1
        await asyncio.sleep(draw.expovariate(10))


async def burst(client: ClientSession, ends: float, counts: Counter[str]) -> None:
    """Every ten seconds more at once than the queue has places for."""
    while time.monotonic() < ends:
        body = {"text": "a [MASK]", "max_tokens": 4}
        for outcome in await asyncio.gather(*(ask(client, "fill", body) for _ in range(60))):
            counts[f"burst {outcome.error or outcome.status}"] += 1
        await asyncio.sleep(10)


def processes(pid: int) -> list[int]:
    """A process and those that it started and that still run."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = [pid] if "VmRSS" in Path(f"/proc/{pid}/status").read_text() else []
    return [*own, *(p for child in children for p in processes(int(child)))]


def seen(pid: int) -> dict[str, int]:
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "rss_kb": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "fds": len(list((folder / "fd").iterdir())),
    }


async def watch(server: int, ends: float, every: float, notes: list[dict[str, Any]], file: Path | None) -> None:
    began = time.monotonic()
    while time.monotonic() < ends:
        await asyncio.sleep(every)
        notes.append({"seconds": round(time.monotonic() - began, 1), "processes": [seen(p) for p in processes(server)]})
        if file is not None:
            file.write_text(json.dumps(notes))


def slope(notes: list[dict[str, Any]], process: int, name: str) -> float:
    """Least squares, an hour, without the warm-up."""
    kept = notes[int(len(notes) * WARM_UP) :]
    points = [(note["seconds"] / 3600, note["processes"][process][name]) for note in kept]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


async def soak(port: int, pid: int, minutes: float, clients: int, file: Path | None) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    notes: list[dict[str, Any]] = []
    async with client_of(f"http://127.0.0.1:{port}", None) as client:
        await ready(client)
        before = await golden(client)
        ends = time.monotonic() + minutes * 60
        await asyncio.gather(
            *(work(client, ends, seed, counts) for seed in range(clients)),
            burst(client, ends, counts),
            watch(pid, ends, min(minutes, 1.0) * 15, notes, file),
        )
        after = await golden(client)
    names = ("rss_kb", "threads", "fds")
    return {
        "benchmark": "soak",
        "minutes": minutes,
        "answers": dict(sorted(counts.items())),
        "same_answer_at_the_end": before == after,
        "first": notes[int(len(notes) * WARM_UP)]["processes"],
        "last": notes[-1]["processes"],
        "most": [{n: max(note["processes"][i][n] for note in notes) for n in names} for i in range(2)],
        "slope_an_hour": [{n: round(slope(notes, i, n), 2) for n in names} for i in range(2)],
    }


async def golden(client: ClientSession) -> Any:
    """The results of the same request, each time."""
    async with client.post("v1/infill", json=GOLDEN) as answer:
        return (await answer.json())["results"]


async def ready(client: ClientSession) -> None:
    for _ in range(600):
        try:
            async with client.get("ready") as answer:
                if answer.status == 200:
                    return
        except ClientError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the server was never ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--file", type=Path, help="where notes are kept as it goes")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"PORT": str(port), "MAX_QUEUE": "40", "LOG_LEVEL": "error", "QUANT": "int8", "KV_CACHE_GB": "0.05"}
    environment = {**os.environ, **{f"GLM_INFILL_{name}": value for name, value in settings.items()}}
    server = subprocess.Popen([sys.executable, "-m", "server.cli", "serve"], env=environment)
    try:
        found = asyncio.run(soak(port, server.pid, options.minutes, options.clients, options.file))
    finally:
        server.terminate()
        code = server.wait()
    print(json.dumps(found | {"exit_code": code}))


if __name__ == "__main__":
    main()
