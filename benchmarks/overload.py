"""How fast a full server refuses: `python -m benchmarks.overload`. The last line is one JSON document.

The queue is filled with long requests, whose streams stay open, while others arrive at a steady rate, each on a
connection of its own, as clients do that do not know better.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter

QUEUE = 8
SHORT = {"text": "a [MASK]", "max_tokens": 2}
LONG = {"text": "the [MASK]", "max_tokens": 250, "min_tokens": 250, "n": 4, "stream": True}


def request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/infill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def exchange(port: int, body: dict[str, object]) -> tuple[int, float, bytes]:
    """The status, the seconds from connecting to the last byte, and the answer."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(body))
    answer = await reader.read(-1)
    seconds = time.perf_counter() - began
    writer.close()
    return int(answer.split()[1]), seconds, answer


async def measure(port: int, rate: float, seconds: float) -> dict[str, object]:
    inside = [asyncio.create_task(exchange(port, LONG)) for _ in range(QUEUE)]
    await asyncio.sleep(0.5)
    arriving = []
    for _ in range(int(rate * seconds)):
        arriving.append(asyncio.create_task(exchange(port, SHORT)))
        await asyncio.sleep(1 / rate)
    refused = await asyncio.gather(*arriving)
    admitted = await asyncio.gather(*inside)
    times = sorted(seconds for status, seconds, _ in refused if status == 503)
    return {
        "queue": QUEUE,
        "arrived": len(refused),
        "statuses": dict(Counter(status for status, _, _ in refused)),
        "admitted_finished": sum(b"event: done" in answer for _, _, answer in admitted),
        "refusal_ms": {f"p{p}": round(times[min(len(times) * p // 100, len(times) - 1)] * 1000, 1) for p in (50, 99)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="arrivals a second")
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"GLM_INFILL_PORT": str(port), "GLM_INFILL_MAX_QUEUE": str(QUEUE), "GLM_INFILL_LOG_LEVEL": "warning"}
    server = subprocess.Popen([sys.executable, "-m", "server.cli", "serve"], env={**os.environ, **settings})
    try:
        asyncio.run(ready(port))
        print(json.dumps(asyncio.run(measure(port, options.rate, options.seconds))))
    finally:
        server.terminate()
        server.wait()


async def ready(port: int) -> None:
    for _ in range(600):
        try:
            if (await exchange(port, SHORT))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server was never ready")


if __name__ == "__main__":
    main()
