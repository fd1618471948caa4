"""The command line: `glm-infill COMMAND`. Exit code 0, 1 (failed, one line on stderr) or 2 (usage)."""

import asyncio
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from pydantic import ValidationError
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from engine.config import EngineConfig
from engine.events import Done, Failed, ResultDone
from engine.place import Place
from engine.process import EngineProcess
from engine.requests import Request, RequestError
from server.commands.batch import batch
from server.commands.bench_serve import bench_serve
from server.commands.keys import keys
from server.commands.plan import plan
from server.commands.tune import tune
from server.console import errors, fail, output
from server.options import (
    GROUP_SIZE,
    QUANT,
    QUANT_HEAD,
    Adapter,
    AsJson,
    GroupSize,
    Head,
    KVCacheKind,
    KVCacheType,
    Model,
    Preset,
    Quant,
    QuantHead,
    Quantization,
    TokenizerFolder,
    Url,
    engine_config,
    named_folders,
)
from server.schemas import InfillRequest, ScoreRequest
from server.serving import serve as run_server
from server.settings import Limits, Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fills blanks and scores spans with GLM models.")
bench = typer.Typer(no_args_is_help=True, help="Measures; the last line printed is one JSON document.")
app.add_typer(bench, name="bench")
bench.command("serve")(bench_serve)
app.command()(plan)
app.command()(batch)
app.command()(tune)
app.add_typer(keys, name="keys")


class Format(StrEnum):
    """What a checkpoint's files are."""

    hf = "hf"
    sat = "sat"


class LoadFormat(StrEnum):
    """Where weights come from."""

    auto = "auto"
    dummy = "dummy"


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command()
def serve(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the bundled demo when left out.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    quant: Quantization = None,
    group_size: GroupSize = None,
    quant_head: Head = None,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    tp: Annotated[int | None, typer.Option(min=1, max=64, help="Devices, or processes, that share the model.")] = None,
    kv_cache_gb: Annotated[
        float | None, typer.Option(help="Memory for keys and values on each device, 10⁹ bytes.")
    ] = None,
    kv_cache_type: KVCacheKind = None,
    load_format: Annotated[
        LoadFormat | None, typer.Option(help="dummy reads no weights: all are invented, to try a machine.")
    ] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Rows of one iteration.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests in flight before new ones get a 503.")] = None,
    max_queue_tokens: Annotated[int | None, typer.Option(help="Tokens that those in flight may need.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="Key file, see `keys new`; anybody may ask without.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Of a key, or of all without keys.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Likewise, prompt and answer together.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of an adapter; may be given often.")] = None,
    adapter_root: Annotated[Path | None, typer.Option(help="Folder below which /v1/adapters may load more.")] = None,
    max_adapters: Annotated[int | None, typer.Option(help="The one used least recently makes way for more.")] = None,
    otlp_endpoint: Annotated[str | None, typer.Option(help="Where OpenTelemetry spans go, by OTLP over HTTP.")] = None,
) -> None:
    """Serves a model over HTTP. Options left out come from GLM_INFILL_* or the defaults.

    Under torchrun every process is a rank, on one machine or several; the first one serves.
    """
    given = {
        "model": model,
        "host": host,
        "port": port,
        "quant": quant.value if quant else None,
        "group_size": group_size,
        "quant_head": quant_head.value if quant_head else None,
        "preset": preset,
        "tokenizer": tokenizer,
        "tp": tp,
        "kv_cache_gb": kv_cache_gb,
        "kv_cache_type": kv_cache_type.value if kv_cache_type else None,
        "load_format": load_format.value if load_format else None,
        "max_batch_tokens": max_batch_tokens,
        "max_queue": max_queue,
        "max_queue_tokens": max_queue_tokens,
        "api_keys": api_keys,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "adapters": named_folders(adapter) if adapter else None,
        "adapter_root": adapter_root,
        "max_adapters": max_adapters,
        "otlp_endpoint": otlp_endpoint,
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", code=2)
    place = Place.of_torchrun()
    size = settings.tp or (place.size if place else 1)
    if place and size != place.size:
        fail(f"--tp {size}: torchrun has started {place.size} ranks", code=2)
    config = settings.engine(device.value, size)
    if place and place.rank > 0:
        from engine.worker import follow_launched

        follow_launched(config, place)
    raise typer.Exit(run_server(settings, EngineProcess(config, place=place)))


@app.command()
def fill(
    text: Annotated[list[str], typer.Argument(help=r"Texts with [MASK], \[sMASK] or \[gMASK].")],
    max_tokens: Annotated[int, typer.Option(help="Tokens per blank.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option()] = 0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    n: Annotated[int, typer.Option("-n", help="Answers per text.")] = 1,
    order: Annotated[str, typer.Option(help="left_to_right, right_to_left, random or confident.")] = "left_to_right",
    strategy: Annotated[str | None, typer.Option(help="append, reencode or parallel.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="What a blank may be; given several times.")] = None,
    regex: Annotated[list[str] | None, typer.Option(help="What all blanks match; or given once a blank.")] = None,
    num_beams: Annotated[int, typer.Option(help="Hypotheses of a beam search.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beams: above 0 prefers long fills.")] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    model: Model = None,
    quant: Quantization = None,
    group_size: GroupSize = None,
    quant_head: Head = None,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    kv_cache_type: KVCacheKind = None,
    adapter: Adapter = None,
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
        "num_beams": num_beams,
        "length_penalty": length_penalty,
    }
    given = {"strategy": strategy, "stop": stop, "seed": seed, "choices": choice, "regex": regex}
    body |= {k: v for k, v in given.items() if v is not None}
    config = engine_config(model, quant, group_size, quant_head, preset, tokenizer, kv_cache_type)
    body, config = with_adapter(body, config, adapter, url)
    answer = ask("infill", body, lambda b: InfillRequest.model_validate(b).fill(Limits()), url, config)
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
    quant: Quantization = None,
    group_size: GroupSize = None,
    quant_head: Head = None,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    kv_cache_type: KVCacheKind = None,
    adapter: Adapter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Scores what stands in the blanks of a text."""
    body: dict[str, Any] = {"text": text, "include_end": include_end, "normalize": normalize}
    body["orders"] = int(orders) if orders.isdecimal() else orders
    if span:
        one_blank = sum(text.count(mask) for mask in ("[MASK]", "[sMASK]", "[gMASK]")) == 1
        body["spans"] = [[s] for s in span] if one_blank else span
    config = engine_config(model, quant, group_size, quant_head, preset, tokenizer, kv_cache_type)
    body, config = with_adapter(body, config, adapter, url)
    answer = ask("score", body, lambda b: ScoreRequest.model_validate(b).score(Limits()), url, config)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    table = Table("candidate", "log p", "perplexity", "probability")
    for result, probability in zip(answer["results"], answer["probabilities"], strict=True):
        words = " · ".join(s["text"] for s in result["spans"])
        table.add_row(words, f"{result['logprob']:.4f}", f"{result['perplexity']:.2f}", f"{probability:.3f}")
    output.print(table)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder to read.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, or left unfinished by the same command.")],
    scheme: Annotated[str, typer.Option(help="int8, int4, nf4 or llm-int8.")],
    group_size: Annotated[int, GROUP_SIZE] = 32,
    quant_head: Annotated[QuantHead, QUANT_HEAD] = QuantHead.none,
    head: Annotated[
        QuantHead | None, typer.Option("--head", hidden=True, help="The former name of --quant-head.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="UTF-8 text, blank lines between documents: round with error compensation.")
    ] = None,
    calibrate_windows: Annotated[int, typer.Option(min=1, help="Stretches of 32 to 256 tokens used of it.")] = 512,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="The most a file holds, 10⁹ bytes.")] = 4.0,
    tp: Annotated[int, typer.Option(min=1, max=64, help="Cut for so many devices, to be loaded fastest by them.")] = 1,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Writes a quantized checkpoint, a tensor in memory at a time; the same command goes on after a kill."""
    from model.config import CheckpointError
    from model.convert import Conversion, Recipe
    from model.storage import Storage

    storage = Storage(scheme, group_size, (head or quant_head).value)
    recipe = Recipe(storage, calibrate, calibrate_windows, int(shard_gb * 1e9), preset, tokenizer, tp)
    try:
        with Progress(console=errors, disable=not errors.is_terminal, transient=True) as progress:
            task = progress.add_task("reading", total=None)
            conversion = Conversion(source, target, recipe)
            progress.update(task, description="quantizing", total=conversion.num_bytes)
            facts = conversion.run(lambda num_bytes: progress.advance(task, num_bytes))
    except (CheckpointError, OSError) as error:
        fail(str(error))
    except ValueError as error:
        fail(str(error), code=2)
    if as_json:
        print(json.dumps(facts))
        return
    output.print(
        f"{target}: {facts['bytes'] / 1e6:.1f} MB in {facts['shards']} files, "
        f"{facts['bytes_per_quantized_weight']:.3f} bytes a quantized weight",
        highlight=False,
        markup=False,
    )


@app.command()
def synth(
    preset: Annotated[str, typer.Argument(help="Published model, such as glm-10b.")],
    target: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Other than the preset's.")] = None,
    tp: Annotated[int, typer.Option(min=1, help="Model-parallel ranks of the format sat.")] = 1,
    format: Annotated[Format | None, typer.Option(help="As the original is published when left out.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of a tokenizer, whose files are copied.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Writes a checkpoint of a published model's names, shapes and layout with random weights."""
    from model.config import CheckpointError
    from model.families import PRESETS
    from model.synth import of_preset, published_format, write_synthetic
    from model.tokenizer import FILES

    kind = published_format(preset) if format is None else format.value
    try:
        made = of_preset(preset, layers, kind, seed)
        if tokenizer is not None:
            PRESETS[preset][0].tokenizer(tokenizer)
        with Progress(console=errors, disable=not errors.is_terminal, transient=True) as progress:
            task = progress.add_task("writing", total=made.num_bytes)
            write_synthetic(target, made, kind, tp, lambda num_bytes: progress.advance(task, num_bytes))
        for path in () if tokenizer is None else (tokenizer / name for name in FILES):
            if path.exists():
                shutil.copyfile(path, target / path.name)
    except (CheckpointError, OSError) as error:
        fail(str(error))
    except ValueError as error:
        fail(str(error), code=2)
    needs = {"--preset": preset if made.config is None else None, "--tokenizer": None if tokenizer else "FOLDER"}
    options = [f"{option} {value}" for option, value in needs.items() if value is not None]
    if as_json:
        facts = {"model": str(target), "preset": preset, "format": kind, "tp": tp, "bytes": made.num_bytes}
        print(json.dumps(facts | {"options": options}))
        return
    hint = f", to be read with {' '.join(options)}" if options else ""
    output.print(f"{target}: {made.num_bytes / 1e6:.1f} MB{hint}", highlight=False, markup=False)


@bench.command("decode")
def bench_decode(
    preset: Annotated[str, typer.Option(help="Sizes of a published model.")] = "chatglm-6b",
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers than the preset's.")] = None,
    quant: Annotated[Quant, QUANT] = Quant.int4,
    group_size: Annotated[int, GROUP_SIZE] = 32,
    quant_head: Annotated[QuantHead, QUANT_HEAD] = QuantHead.int8,
    rows: Annotated[str, typer.Option(help="Numbers of sequences in a step.")] = "1,4,16,32",
    context: Annotated[int, typer.Option(min=1, help="Tokens of the context that each sequence has.")] = 64,
    kv_cache_type: KVCacheKind = None,
    prefill: Annotated[int, typer.Option(min=0, help="Tokens of a context to encode; 0 for none.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Times decode steps and a prefill of a network with invented weights, beside the memory's own speed."""
    from engine.bench import DecodeBench, decode
    from model.families import PRESETS

    if preset not in PRESETS:
        fail(f"--preset: one of {', '.join(PRESETS)}", code=2)
    try:
        counts = [int(part) for part in rows.split(",")]
        if min(counts) < 1:
            raise ValueError
    except ValueError:
        fail(f"--rows: positive numbers with commas, not {rows!r}", code=2)
    family, config = PRESETS[preset]
    architecture = family.architecture(config)
    architecture = dataclasses.replace(architecture, num_layers=layers or architecture.num_layers)
    try:
        with errors.status("measuring"):
            kind = (kv_cache_type or KVCacheType.auto).value
            wanted = DecodeBench(
                architecture, quant.value, group_size, quant_head.value, counts, prefill, context, kind
            )
            result = {"preset": preset, "layers": architecture.num_layers, **decode(wanted)}
    except ValueError as error:
        fail(str(error), code=2)
    if not as_json:
        table = Table("rows", "ms a step", "tokens/s", "ns per million MACs", "share of read bandwidth")
        for count, row in result["decode"].items():
            values = [row["step_ms"], row["tokens_per_s"], row["ns_per_million_macs"], f"{row['bandwidth_share']:.0%}"]
            table.add_row(count, *map(str, values))
        output.print(table)
    print(json.dumps(result))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Shows what this machine has, and which kernels serve on it and why."""
    from quant import cpu

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
            "int8": cpu.describe(),
            "int4": cpu.describe(),
            "attention": f"over cache blocks in place, {cpu.variant()}"
            if cpu.variant()
            else "torch over gathered blocks",
            "variants": cpu.kernels().supported(),
            "nf4, llm-int8": _bitsandbytes(),
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


def with_adapter(
    body: dict[str, Any], config: EngineConfig, adapter: str | None, url: str | None
) -> tuple[dict[str, Any], EngineConfig]:
    """A request that goes by an adapter: a server's by its name, or the one in a folder."""
    if adapter is None:
        return body, config
    name = adapter if url is not None else "adapter"
    return {**body, "adapter": name}, dataclasses.replace(config, adapters=[(name, adapter)])


def ask(
    route: str,
    body: dict[str, Any],
    build: Callable[[dict[str, Any]], Request],
    url: str | None,
    config: EngineConfig,
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
    with errors.status("loading the model"):
        return asyncio.run(_answer(config, request))


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
    # In the environment, where no list of processes shows it.
    key = os.environ.get("GLM_INFILL_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.post(url, json=body, headers=headers, timeout=600)
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


def _bitsandbytes() -> str:
    try:
        return f"bitsandbytes {importlib.metadata.version('bitsandbytes')}"
    except importlib.metadata.PackageNotFoundError:
        return "not installed: pip install 'glm-infill[bnb]'"


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
