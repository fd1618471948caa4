"""A server under mixed load for long: `python -m benchmarks.soak --minutes 60`. The last line is one JSON document.

Fills and scores, streams that are left half-way, bad requests, and bursts over the queue, all the time; resident
memory, file descriptors and threads of the server's processes are noted as it goes. After a time to warm up their
slopes should be nothing, and the same request should be answered the same at the end as at the start.

With `--requests 20000` so many are asked instead, without bursts, and each answer is looked at: there is to be exactly
one of each request that was not left. `before`, `between` and `after` are what the server holds when it has nothing to
do, after a fifth of them, three fifths and all, asyncio tasks of its HTTP process too; `rss_kb_per_1000` is how much
memory each process took more for 1,000 of the last two fifths.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession

from server.commands.load import ROUTES, Workload, ask, client_of

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


async def ask_many(client: ClientSession, numbers: Iterator[int], counts: Counter[str]) -> None:
    """One client of those that take turns at so many requests: fills, streams, scores, bad ones, and a tenth left."""
    for number in numbers:
        draw = random.Random(number)
        kind, body = next(Workload({"fill": 2.0, "score": 1.0}, words=12, tokens=8, repeated=0.3).bodies(number))
        chance = draw.random()
        if chance < 0.1:
            counts["asked"] += 1
            fields = {"max_tokens": 100, "min_tokens": 100} if kind == "fill" else {"orders": 1}
            try:
                async with asyncio.timeout(draw.uniform(0.005, 0.2)):
                    counts[await answered(client, kind, {**body, **fields})] += 1
            except TimeoutError:
                counts["left"] += 1
        elif chance < 0.2:
            content = draw.choice(BAD)
            async with client.post("v1/infill", data=content, headers={"Content-Type": "application/json"}) as answer:
                counts[f"bad {answer.status}"] += 1
        else:
            counts["asked"] += 1
            if draw.random() < 0.3:
                body.pop("stream", None)
            counts[await answered(client, kind, body)] += 1


async def answered(client: ClientSession, kind: str, body: dict[str, Any]) -> str:
    """Asks, and says what came: the status, and what is wrong with an answer that is not exactly one."""
    async with client.post(ROUTES[kind], json=body) as answer:
        content = await answer.read()
        if answer.status != 200:
            return f"{kind} {answer.status}"
        if body.get("stream"):
            events = [line for line in content.splitlines() if line.startswith(b"event: ")]
            ends = [line for line in events if line in (b"event: done", b"event: error")]
            whole = ends == [b"event: done"] == events[-1:] and events.count(b"event: result.done") == 1
        else:
            whole = len(json.loads(content)["results"]) == len(body.get("spans", "1"))
        return f"{kind} {'200' if whole else 'not one answer'}"


async def burst(client: ClientSession, ends: float, counts: Counter[str]) -> None:
    """Every ten seconds more at once than the queue has places for."""
    while time.monotonic() < ends:
        body = {"text": "a [MASK]", "max_tokens": 4}
        for outcome in await asyncio.gather(*(ask(client, "fill", body) for _ in range(60))):
            counts[f"burst {outcome.error or outcome.status}"] += 1
        await asyncio.sleep(10)


async def many(url: str, server: "Server", requests: int, clients: int) -> dict[str, Any]:
    """The requests, a fifth of them to warm up, and twice two fifths."""
    counts: Counter[str] = Counter()
    found: dict[str, Any] = {"benchmark": "soak", "requests": requests}
    began, rest = time.monotonic(), iter(range(requests))
    for name, fifths in {"before": 1, "between": 2, "after": 2}.items():
        numbers = islice(rest, requests * fifths // 5)
        async with client_of(url, None) as client:
            await ready(client)
            await asyncio.gather(*(ask_many(client, numbers, counts) for _ in range(clients)))
        async with client_of(url, None) as client:
            gauges = await idle(client)
        tasks = []
        for _ in range(10):  # those of connections that are being closed are no concern
            await asyncio.sleep(0.1)
            tasks.append(server.tasks())
        found[name] = {**gauges, "tasks": min(tasks), "processes": [seen(p) for p in processes(server.process.pid)]}
    asked = counts.pop("asked")
    return found | {
        "seconds": round(time.monotonic() - began, 1),
        "answers": dict(sorted(counts.items())),
        "asked": asked,
        "rss_kb_per_1000": [
            round(1000 * (last["rss_kb"] - first["rss_kb"]) / (requests * 2 // 5), 1)
            for first, last in zip(found["between"]["processes"], found["after"]["processes"], strict=True)
        ],
    }


async def idle(client: ClientSession) -> dict[str, float]:
    """Waits until nothing runs or waits; the gauges, and how many requests have come to an end."""
    names = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
    for _ in range(600):
        async with client.get("metrics") as answer:
            lines = [line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[:1] != "#"]
        found = {name: float(value) for name, value in lines if name.removeprefix("glm_infill_") in names}
        of_routes = [(name, value) for name, value in lines if name.startswith("glm_infill_requests_total{")]
        ended = [float(value) for name, value in of_routes if 'route="/v1/infill"' in name or '"/v1/score"' in name]
        if not any(found.values()):
            break
        await asyncio.sleep(0.1)
    return {name.removeprefix("glm_infill_"): value for name, value in found.items()} | {"ended": sum(ended)}


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


# The server, whose process tells by a signal how many asyncio tasks it has.
TELLING = """
import asyncio, signal
from server.cli import main
signal.signal(signal.SIGUSR1, lambda *_: print(len(asyncio.all_tasks()), flush=True))
main()
"""


class Server:
    """A server process of its own."""

    def __init__(self, port: int, model: Path | None, kv_cache_gb: float) -> None:
        settings = {"PORT": str(port), "MAX_QUEUE": "40", "LOG_LEVEL": "error", "QUANT": "int8"}
        settings |= {"KV_CACHE_GB": str(kv_cache_gb)} | ({} if model is None else {"MODEL": str(model)})
        environment = {**os.environ, **{f"GLM_INFILL_{name}": value for name, value in settings.items()}}
        command = [sys.executable, "-c", TELLING, "serve"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def tasks(self) -> int:
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--requests", type=int, help="ask so many instead")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", type=Path, help="a checkpoint folder, the bundled demo if there is none")
    parser.add_argument("--file", type=Path, help="where notes are kept as it goes")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A small cache is touched whole before the requests to warm up are over.
    server = Server(port, options.model, 0.01 if options.requests else 0.05)
    try:
        if options.requests:
            found = asyncio.run(many(f"http://127.0.0.1:{port}", server, options.requests, options.clients))
        else:
            found = asyncio.run(soak(port, server.process.pid, options.minutes, options.clients, options.file))
    finally:
        server.process.terminate()
        code = server.process.wait()
    print(json.dumps(found | {"exit_code": code}))


if __name__ == "__main__":
    main()
