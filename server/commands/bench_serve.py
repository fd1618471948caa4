"""`glm-infill bench serve`: a server's throughput and latency under load."""

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from quant.usage import UsageError
from server.commands.options import AsJson
from server.console import fail, named, output, progress_bar

KINDS = ("fill", "score")


def bench_serve(
    url: Annotated[str, typer.Option(help="The address of the server.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[
        str,
        typer.Option(
            help="The numbers of clients, separated by commas. A client sends its next request after an answer."
        ),
    ] = "",
    rate: Annotated[
        str,
        typer.Option(
            help="The arrivals per second (Poisson), or auto: 0.25 to 2 × the throughput of the largest closed loop."
        ),
    ] = "",
    duration: Annotated[float, typer.Option(min=0.1, help="The time of each measurement, in seconds.")] = 10.0,
    mix: Annotated[str, typer.Option(help="The shares of the kinds of requests, such as fill=3,score=1.")] = "fill=1",
    words: Annotated[
        int, typer.Option(min=2, max=10_000, help="The mean number of words per text, drawn from half to twice this.")
    ] = 40,
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="The number of tokens per blank.")] = 16,
    candidates: Annotated[int, typer.Option(min=1, max=1024, help="The number of candidates per score request.")] = 4,
    repeated: Annotated[
        float, typer.Option(min=0, max=1, help="The share of requests that repeat a text, 0 to 1.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="The seed of texts and arrivals.")] = 0,
    slo_first: Annotated[float | None, typer.Option(help="The goal: milliseconds to the first token, at most.")] = None,
    slo_token: Annotated[float | None, typer.Option(help="The goal: milliseconds per token, at most.")] = None,
    slo_latency: Annotated[float | None, typer.Option(help="The goal: milliseconds per request, at most.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The PNG file for a plot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measures a running server under closed and open loops of fills and scores, over HTTP.

    The key comes from GLM_INFILL_API_KEY. In an open loop latency counts from the scheduled arrival, which avoids
    coordinated omission.
    """
    # Imported here: a server has no use for it.
    from aiohttp import ClientError

    from server.commands.measure import AUTO, Goal, Workload, measure

    workload = Workload(_mix(mix), words, tokens, candidates, repeated)
    clients = [
        int(number) for number in _numbers("--concurrency", concurrency or ("" if rate else "1,4,16"), whole=True)
    ]
    rates = None if rate == "auto" else _numbers("--rate", rate)
    if rates is None and not clients:
        fail("--rate auto needs --concurrency to learn the capacity from", code=2)
    if plot is not None:
        _drawing()
        if plot.is_dir() or not os.access(plot if plot.exists() else plot.parent, os.W_OK):
            fail(f"--plot: {plot} cannot be written")
    goal = Goal(*(None if limit is None else limit / 1000 for limit in (slo_first, slo_token, slo_latency)))
    with progress_bar() as progress:
        bar = progress.add_task("measuring", total=len(clients) + len(AUTO if rates is None else rates))
        loads = measure(url, workload, clients, rates, duration, seed, goal, lambda: progress.advance(bar))
        try:
            found = asyncio.run(loads)
        except (ClientError, TimeoutError, UsageError) as error:
            fail(f"{url}: {error or type(error).__name__}")
    if not as_json:
        output.print(_table(found))
    print(json.dumps(found))
    if plot is not None:
        draw(found, plot)


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
    """A panel for each kind of loop.

    One shows throughput and first tokens over clients, the other latency and refusals over the arrival rate.
    """
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
        other.yaxis.set_major_locator(pyplot.LogLocator(subs=(1, 2, 5)))
        other.yaxis.set_major_formatter("{x:g}")
        other.minorticks_off()
        other.legend(loc="lower right", frameon=False)
    figure.suptitle(f"{found['model']}, {found['quantization']}")
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    pyplot.close(figure)
    with named(file):
        file.write_bytes(drawn.getbuffer())


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
            fail(f"--mix: {share!r} is not a number", code=2)
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
