"""`glm-infill bench serve`: what a server gives under load."""

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from aiohttp import ClientError, ClientSession
from rich.box import SIMPLE
from rich.progress import Progress
from rich.table import Table

from server.console import errors, fail, output
from server.load import Goal, Outcome, Workload, client_of, closed_loop, open_loop, summary
from server.options import AsJson

# Shares of the capacity found by the closed loop that `--rate auto` asks for.
AUTO = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0)
KINDS = ("fill", "score")


def bench_serve(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[str, typer.Option(help="Clients that each ask again when answered; empty: none.")] = "",
    rate: Annotated[
        str,
        typer.Option(help="Arrivals a second (Poisson), or auto: shares of what the most clients got, up to twice."),
    ] = "",
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of each.")] = 10.0,
    mix: Annotated[str, typer.Option(help="Shares of kinds, such as fill=3,score=1.")] = "fill=1",
    words: Annotated[int, typer.Option(min=2, max=10_000, help="Of a text: half to double of it.")] = 40,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Written into each blank, no fewer.")] = 16,
    candidates: Annotated[int, typer.Option(min=1, max=1024, help="Of a score.")] = 4,
    repeated: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests with a text that comes again.")
    ] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    slo_first: Annotated[float | None, typer.Option(help="Milliseconds to the first token that are good.")] = None,
    slo_token: Annotated[float | None, typer.Option(help="Milliseconds a token that are good.")] = None,
    slo_latency: Annotated[float | None, typer.Option(help="Milliseconds for the whole that are good.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw into.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measures a running server under closed and open loops of fills and scores, over HTTP.

    A key is taken from GLM_INFILL_API_KEY. Latency in an open loop counts from when a request was due.
    """
    workload = Workload(_mix(mix), words, tokens, candidates, repeated)
    clients = [
        int(number) for number in _numbers("--concurrency", concurrency or ("" if rate else "1,4,16"), whole=True)
    ]
    rates = [] if rate in ("", "auto") else _numbers("--rate", rate)
    if rate == "auto" and not clients:
        fail("--rate auto needs --concurrency to learn the capacity from", code=2)
    if plot is not None:
        _drawing()
    goal = Goal(*(None if limit is None else limit / 1000 for limit in (slo_first, slo_token, slo_latency)))
    with Progress(console=errors, transient=True) as progress:
        bar = progress.add_task("measuring", total=len(clients) + (len(AUTO) if rate == "auto" else len(rates)))
        try:
            found = asyncio.run(
                _measure(
                    url, workload, clients, rates, rate == "auto", duration, seed, goal, lambda: progress.advance(bar)
                )
            )
        except (ClientError, TimeoutError) as error:
            fail(f"{url}: {error or type(error).__name__}")
    if plot is not None:
        draw(found, plot)
    if not as_json:
        output.print(_table(found))
    print(json.dumps(found))


async def _measure(
    url: str,
    workload: Workload,
    clients: list[int],
    rates: list[float],
    is_auto: bool,
    duration: float,
    seed: int,
    goal: Goal,
    advance: Any,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "url": url,
        "workload": _described(workload),
        "duration_s": duration,
        "closed": [],
        "open": [],
    }
    async with client_of(url, os.environ.get("GLM_INFILL_API_KEY")) as client:
        async with client.get("v1/models", raise_for_status=True) as answer:
            entry = (await answer.json())["data"][0]
        found |= {"model": entry["id"], "quantization": entry["quantization"], "tp": entry["tp"]}
        for number in clients:
            load = closed_loop(client, workload, number, duration, seed)
            found["closed"].append({"concurrency": number} | await _watched(client, load, goal, duration))
            advance()
        if is_auto:
            capacity = max(level["requests_per_s"] for level in found["closed"])
            rates = [round(capacity * share, 3) for share in AUTO if capacity]
        for rate in rates:
            load = open_loop(client, workload, rate, duration, seed)
            found["open"].append({"rate": rate} | await _watched(client, load, goal, duration))
            advance()
    return found


async def _watched(client: ClientSession, load: Any, goal: Goal, duration: float) -> dict[str, Any]:
    """A load's summary, with what the server says of queueing meanwhile and how busy this program itself was."""
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


def _table(found: dict[str, Any]) -> Table:
    """A line for each load, in 80 columns."""
    times = [("first", "first_token_ms"), ("token", "token_ms"), ("latency", "latency_ms")]
    table = Table(
        title="clients or arrivals a second; times in ms, p50/p99", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("load", "answers/s", "good/s", "tokens/s", *(name for name, _ in times), "refused"):
        table.add_column(name, justify="right", no_wrap=True)
    for level in (*found["closed"], *found["open"]):
        load = str(level["concurrency"]) if "concurrency" in level else f"{level['rate']:.4g}/s"
        rates = [f"{level[name]:.1f}" for name in ("requests_per_s", "goodput_per_s")]
        tokens = f"{level['generated_tokens_per_s'] + level['scored_tokens_per_s']:.0f}"
        shown = ["/".join(_short(level[key][p]) for p in ("p50", "p99")) if level[key] else "" for _, key in times]
        table.add_row(load, *rates, tokens, *shown, str(level["refused"] + level["failed"]))
    return table


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"


def draw(found: dict[str, Any], file: Path) -> None:
    """A panel for each loop: throughput and first tokens over clients, latency and refusals over the arrival rate."""
    pyplot = _drawing()
    loops = [name for name in ("closed", "open") if found[name]]
    figure, axes = pyplot.subplots(1, len(loops), figsize=(6 * len(loops), 4), squeeze=False)
    for axis, loop in zip(axes[0], loops, strict=True):
        levels = found[loop]
        other = axis.twinx()
        if loop == "closed":
            x = [level["concurrency"] for level in levels]
            axis.set(xscale="log", xlabel="clients", ylabel="tokens a second", xticks=x, xticklabels=x)
            axis.minorticks_off()
            tokens = [level["generated_tokens_per_s"] + level["scored_tokens_per_s"] for level in levels]
            axis.plot(x, tokens, "o-", color="#1f5fa8")
            axis.set_ylim(0)
            _lines(other, x, levels, "first_token_ms", "first token")
        else:
            x = [level["rate"] for level in levels]
            axis.set(xlabel="arrivals a second", ylabel="answers a second")
            axis.plot(x, [level["requests_per_s"] for level in levels], "o-", color="#1f5fa8", label="answered")
            axis.plot(
                x,
                [level["refused"] / max(level["seconds"], 1e-9) for level in levels],
                "x:",
                color="#888",
                label="refused",
            )
            axis.legend(loc="upper left", frameon=False)
            axis.set_ylim(0)
            _lines(other, x, levels, "latency_ms", "latency")
        other.set(ylabel="ms", yscale="log")
        other.legend(loc="lower right", frameon=False)
    figure.suptitle(f"{found['model']}, {found['quantization']}")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _lines(axis: Any, x: list[float], levels: list[dict[str, Any]], name: str, label: str) -> None:
    for percentile, style in (("p50", "s-"), ("p99", "^--")):
        y = [None if level[name] is None else level[name][percentile] for level in levels]
        axis.plot(x, y, style, color="#c2571a", label=f"{label}, {percentile}")


def _drawing() -> Any:
    try:
        import matplotlib
    except ImportError:
        fail("--plot needs matplotlib: pip install 'glm-infill[train]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _mix(text: str) -> dict[str, float]:
    mix: dict[str, float] = {}
    for part in text.split(","):
        kind, _, share = part.partition("=")
        try:
            mix[kind.strip()] = float(share or 1)
        except ValueError:
            fail(f"--mix: {share!r} is no number", code=2)
    if set(mix) - set(KINDS) or min(mix.values()) < 0 or not sum(mix.values()) < float("inf") or not sum(mix.values()):
        fail(f"--mix: shares of {' and '.join(KINDS)}, such as fill=3,score=1, not {text!r}", code=2)
    return mix


def _numbers(option: str, text: str, whole: bool = False) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1.0]
    if any(not 0 < n < 1e6 or (whole and n != int(n)) for n in numbers):
        fail(f"{option}: positive numbers with commas, not {text!r}", code=2)
    return numbers


def _described(workload: Workload) -> dict[str, Any]:
    names = ("mix", "words", "tokens", "candidates", "repeated")
    return {name: getattr(workload, name) for name in names}
