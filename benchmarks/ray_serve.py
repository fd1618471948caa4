"""What Ray Serve costs, and what routing by context saves: `python -m benchmarks.ray_serve`.

The bare server first, then one replica behind Ray's proxy and the gateway, each with the demo in INT8: the time of a
small fill asked alone, the time to the first token of a stream, and fills a second with 16 clients. Then two replicas,
with every context asked four times in a shuffled order: the share of context tokens that were found cached, with
requests routed by context and by load alone. Prints one JSON document.
"""

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from deploy.ray.local import Cluster

ALONE = 60
CLIENTS = 16
SECONDS = 8.0
CONTEXTS = 50
ASKED = 4


def fill(number: int, **others: Any) -> dict[str, Any]:
    return {"text": f"Number {number} of the [MASK] sat on the mat.", "max_tokens": 8, "min_tokens": 8, **others}


def alone(client: httpx.Client) -> list[float]:
    """Milliseconds of fills one after the other."""
    times = []
    for number in range(ALONE):
        began = time.perf_counter()
        client.post("/v1/infill", json=fill(number)).raise_for_status()
        times.append((time.perf_counter() - began) * 1000)
    return times


def first_tokens(client: httpx.Client) -> list[float]:
    """Milliseconds to the first line of a stream."""
    times = []
    for number in range(ALONE // 2):
        began = time.perf_counter()
        with client.stream("POST", "/v1/infill", json=fill(1000 + number, stream=True)) as answer:
            lines = answer.iter_lines()
            next(lines)
            times.append((time.perf_counter() - began) * 1000)
            list(lines)
    return times


def together(client: httpx.Client) -> float:
    """Fills a second."""
    end = time.monotonic() + SECONDS

    def ask(number: int) -> int:
        count = 0
        while time.monotonic() < end:
            client.post("/v1/infill", json=fill(2000 + 1000 * number + count)).raise_for_status()
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask, range(CLIENTS))) / SECONDS


def speed(url: str) -> dict[str, float]:
    with httpx.Client(base_url=url, timeout=60) as client:
        until_ready(client)
        alone(client)
        times = sorted(alone(client))
        return {
            "fill_ms_p50": round(statistics.median(times), 1),
            "fill_ms_p95": round(times[int(len(times) * 0.95)], 1),
            "first_token_ms_p50": round(statistics.median(first_tokens(client)), 1),
            "fills_per_s_16_clients": round(together(client), 1),
        }


def cached_share(url: str) -> dict[str, float]:
    numbers = list(range(CONTEXTS)) * ASKED
    random.Random(0).shuffle(numbers)
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        until_ready(client, ranks=2)
        usages = list(pool.map(lambda n: client.post("/v1/infill", json=fill(n)).json()["usage"], numbers))
    found = sum(usage["cached_tokens"] for usage in usages) / sum(usage["prompt_tokens"] for usage in usages)
    return {"cached_share": round(found, 3), "most_possible": 1 - 1 / ASKED}


def until_ready(client: httpx.Client, ranks: int = 1) -> None:
    while True:
        try:
            answer = client.get("/ready")
            if answer.status_code == 200 and answer.json()["ranks_alive"] == ranks:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def bare() -> dict[str, float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"GLM_INFILL_PORT": str(port), "GLM_INFILL_LOG_LEVEL": "error", "GLM_INFILL_QUANT": "int8"}
    server = subprocess.Popen([sys.executable, "-m", "server.cli", "serve"], env={**os.environ, **settings})
    url = f"http://127.0.0.1:{port}"
    try:
        return speed(url)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    figures: dict[str, Any] = {"bare": bare()}
    cores = f"cpus={min(os.cpu_count() or 1, 3)}"
    cluster = Cluster("quant=int8", cores)
    try:
        figures["ray"] = speed(cluster.url)
        for routing in ("context", "load"):
            cluster.deploy("quant=int8", "replicas=2", f"routing={routing}")
            figures[f"routing_by_{routing}"] = cached_share(cluster.url)
    finally:
        cluster.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
