"""Measurements of a server: one load after the other, with the resources of the server and of this program."""

import os
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import ClientSession

from quant.usage import UsageError
from server.commands.load import Goal, Outcome, Workload, client_of, closed_loop, open_loop, summary

__all__ = ["AUTO", "Goal", "Workload", "measure"]

# Shares of the capacity found by the closed loop that `--rate auto` asks for.
AUTO = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)


async def measure(
    url: str,
    workload: Workload,
    clients: list[int],
    rates: list[float] | None,
    duration: float,
    seed: int,
    goal: Goal,
    advance: Callable[[], object],
) -> dict[str, Any]:
    """Runs closed loops of so many clients each, then open loops at these rates.

    Without rates they are shares of the highest throughput of the closed loops. Each loop takes `duration` seconds;
    after each it calls `advance`. The key comes from GLM_INFILL_API_KEY. Raises ClientError, TimeoutError, and
    UsageError for another kind of server, a bad URL and a bad key.
    """
    found: dict[str, Any] = {
        "url": url,
        "workload": _described(workload),
        "duration_s": duration,
        "closed": [],
        "open": [],
    }
    async with client_of(url, os.environ.get("GLM_INFILL_API_KEY")) as client:
        found |= await _served(client)
        for number in clients:
            load = closed_loop(client, workload, number, duration, seed)
            found["closed"].append({"concurrency": number} | await _watched(client, load, goal, duration))
            advance()
        if rates is None:
            capacity = max(level["requests_per_s"] for level in found["closed"])
            rates = [round(capacity * share, 3) for share in AUTO if capacity]
        for rate in rates:
            load = open_loop(client, workload, rate, duration, seed)
            found["open"].append({"rate": rate} | await _watched(client, load, goal, duration))
            advance()
    return found


async def _served(client: ClientSession) -> dict[str, Any]:
    """The served model. Raises UsageError for an invalid URL or key, and for another server."""
    try:
        async with client.get("v1/models", raise_for_status=True) as answer:
            listed = await answer.json()
    except ValueError as error:
        raise UsageError(str(error)) from None
    match listed:
        case {"data": [{"id": model, "quantization": quantization, "tp": tp}, *_]}:
            return {"model": model, "quantization": quantization, "tp": tp}
    raise UsageError("is not a glm-infill server")


async def _watched(
    client: ClientSession, load: Coroutine[Any, Any, list[Outcome]], goal: Goal, duration: float
) -> dict[str, Any]:
    """The summary of a load, with the server's queueing meanwhile and this program's use of the processor."""
    before, busy, began = await _queued(client), time.process_time(), time.perf_counter()
    outcomes: list[Outcome] = await load
    share = (time.process_time() - busy) / (time.perf_counter() - began)
    after = await _queued(client)
    queued = None
    if before is not None and after is not None and after[1] > before[1]:
        queued = round((after[0] - before[0]) / (after[1] - before[1]) * 1000, 2)
    return summary(outcomes, goal, duration) | {"mean_queue_ms": queued, "own_cpu_share": round(share, 3)}


async def _queued(client: ClientSession) -> tuple[float, float] | None:
    """Seconds that requests have waited before their first step, and how many; None where metrics are closed."""
    async with client.get("metrics") as answer:
        found = re.findall(r"^glm_infill_queue_seconds_(?:sum|count) (\S+)$", await answer.text(), re.MULTILINE)
    if answer.status != 200 or len(found) != 2:
        return None
    count, seconds = map(float, found)
    return seconds, count


def _described(workload: Workload) -> dict[str, Any]:
    names = ("mix", "words", "tokens", "candidates", "repeated")
    return {name: getattr(workload, name) for name in names}
