"""The command line: `glm-infill COMMAND`. Exit code 0, 1 (failed, one line on stderr) or 2 (usage)."""

import asyncio
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.config import EngineConfig
from engine.events import Done, Failed, ResultDone
from engine.process import EngineProcess
from engine.requests import Request, RequestError
from server.schemas import InfillRequest, ScoreRequest
from server.serving import serve as run_server
from server.settings import Limits, Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fills blanks and scores spans with GLM models.")
errors = Console(stderr=True)
output = Console()


class Quant(StrEnum):
    """How the linear layers are stored."""

    none = "none"
    int8 = "int8"


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Model = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder; the bundled demo when left out.")]
Quantization = Annotated[Quant, typer.Option("--quant", help="Quantization of the linear layers.")]
Url = Annotated[str | None, typer.Option("--url", help="Ask this server instead of loading a model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@app.command()
def serve(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the bundled demo when left out.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    quant: Annotated[Quant | None, typer.Option(help="Quantization of the linear layers.")] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    kv_cache_gb: Annotated[float | None, typer.Option(help="Memory for keys and values, 10⁹ bytes.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Rows of one iteration.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests in flight before new ones get a 503.")] = None,
) -> None:
    """Serves a model over HTTP. Options left out come from GLM_INFILL_* or the defaults."""
    given = {
        "model": model,
        "host": host,
        "port": port,
        "quant": quant.value if quant else None,
        "kv_cache_gb": kv_cache_gb,
        "max_batch_tokens": max_batch_tokens,
        "max_queue": max_queue,
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", code=2)
    config = EngineConfig(
        model=None if settings.model is None else str(settings.model),
        quant=settings.quant,
        device=device.value,
        kv_cache_gb=settings.kv_cache_gb or EngineConfig().kv_cache_gb,
        max_batch_tokens=settings.max_batch_tokens,
    )
    raise typer.Exit(run_server(settings, EngineProcess(config)))


@app.command()
def fill(
    text: Annotated[list[str], typer.Argument(help="Texts with [MASK], [sMASK] or [gMASK].")],
    max_tokens: Annotated[int, typer.Option(help="Tokens per blank.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option()] = 0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    n: Annotated[int, typer.Option("-n", help="Answers per text.")] = 1,
    order: Annotated[str, typer.Option(help="left_to_right, right_to_left, random or confident.")] = "left_to_right",
    strategy: Annotated[str | None, typer.Option(help="append, reencode or parallel.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    model: Model = None,
    quant: Quantization = Quant.none,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Fills the blanks of texts."""
    body: dict[str, Any] = {
        "text": text,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "n": n,
        "order": order,
    }
    body |= {k: v for k, v in {"strategy": strategy, "stop": stop, "seed": seed}.items() if v is not None}
    answer = ask("infill", body, lambda b: InfillRequest.model_validate(b).fill(Limits()), url, model, quant)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    for result in answer["results"]:
        output.print(_highlighted(result, text[result["input_index"]]))


@app.command()
def score(
    text: Annotated[str, typer.Argument(help="A text with blanks, or without for the whole text's score.")],
    span: Annotated[
        list[str] | None,
        typer.Option(help="What stands in the blanks: one a blank, or several candidates for a single blank."),
    ] = None,
    orders: Annotated[str, typer.Option(help='"left_to_right", "all" or a number of random orders.')] = "left_to_right",
    include_end: Annotated[bool, typer.Option("--include-end", help="Count the end token too.")] = False,
    normalize: Annotated[str, typer.Option(help="none, token or char.")] = "none",
    model: Model = None,
    quant: Quantization = Quant.none,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Scores what stands in the blanks of a text."""
    body: dict[str, Any] = {"text": text, "include_end": include_end, "normalize": normalize}
    body["orders"] = int(orders) if orders.isdecimal() else orders
    if span:
        one_blank = sum(text.count(mask) for mask in ("[MASK]", "[sMASK]", "[gMASK]")) == 1
        body["spans"] = [[s] for s in span] if one_blank else span
    answer = ask("score", body, lambda b: ScoreRequest.model_validate(b).score(Limits()), url, model, quant)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    table = Table("candidate", "log p", "perplexity", "probability")
    for result, probability in zip(answer["results"], answer["probabilities"], strict=True):
        words = " · ".join(s["text"] for s in result["spans"])
        table.add_row(words, f"{result['logprob']:.4f}", f"{result['perplexity']:.2f}", f"{probability:.3f}")
    output.print(table)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Shows what this machine has, and which kernels serve on it and why."""
    facts = {
        "glm-infill": importlib.metadata.version("glm-infill"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(_memory() / 1e9, 1),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f in _cpu_flags()],
        "gpus": _gpus(),
        "kernels": {
            "none": "torch linear in float32, rows padded to 16 so that bits do not depend on the batch",
            "int8": "torch._int_mm, int8 × int8 with exact integer sums",
            "attention": "torch scaled_dot_product_attention over gathered cache blocks",
        },
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in rows:
            shown = ", ".join(item) if isinstance(item, list) else item
            table.add_row(f"{name} {key}".strip(), str(shown or "none"))
    output.print(table)


def ask(
    route: str,
    body: dict[str, Any],
    build: Callable[[dict[str, Any]], Request],
    url: str | None,
    model: Path | None,
    quant: Quant,
) -> dict[str, Any]:
    """The answer of `/v1/{route}`, from a server or from a model loaded here."""
    if url is not None:
        return _post(f"{url.rstrip('/')}/v1/{route}", body)
    try:
        request = build(body)
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{first['loc'][0] if first['loc'] else 'request'}: {first['msg']}", code=2)
    except RequestError as error:
        fail(error.message, code=2)
    config = EngineConfig(None if model is None else str(model), quant=quant.value)
    with errors.status("loading the model"):
        return asyncio.run(_answer(config, request))


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends with one line on stderr."""
    errors.print(f"glm-infill: {message}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """The entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


async def _answer(config: EngineConfig, request: Request) -> dict[str, Any]:
    engine = EngineProcess(config)
    await engine.start()
    try:
        while engine.state()[0] != "ready":
            if engine.state()[0] == "failed":
                fail(engine.state()[1])
            await asyncio.sleep(0.02)
        results: list[dict[str, Any]] = []
        async with aclosing(engine.submit(request, "local")) as events:
            async for event in events:
                if isinstance(event, ResultDone):
                    results.append(event.result)
                elif isinstance(event, Failed):
                    fail(event.message)
                elif isinstance(event, Done):
                    results.sort(key=lambda r: int(r["index"]))
                    return {"model": engine.card.name, "results": results, **event.extra, "usage": event.usage}
        raise RuntimeError("the engine's events ended without a terminal one")
    finally:
        await engine.stop()


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        response = httpx.post(url, json=body, timeout=600)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        fail(f"{url}: {error}")
    if response.status_code != 200:
        fail(answer.get("error", {}).get("message", f"{url} answered {response.status_code}"))
    return dict(answer)


def _highlighted(result: dict[str, Any], text: str) -> Text:
    """The filled text with the fills set off."""
    shown, at = Text(), 0
    for blank in result["blanks"]:
        shown.append(text[at : blank["start"]])
        shown.append(blank["text"], style="bold green")
        at = blank["end"]
    return shown.append(text[at:])


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[str]:
    """Names of CUDA cards as the driver's /proc files tell them, so that nothing heavy is loaded."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        names += [line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith("Model")]
    return names


if __name__ == "__main__":
    main()
