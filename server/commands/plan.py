"""`glm-infill plan`: whether a model fits on devices, and its predicted times."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from quant.usage import UsageError
from server.commands.flags import Given, takes_flags
from server.commands.options import AsJson, engine_flags, engine_options
from server.console import fail, output

if TYPE_CHECKING:
    from engine.planning.deployment import Deployment
    from engine.planning.plan import Plan


FLAGS = engine_flags(
    "quant", "group_size", "quant_head", "kv_cache_type", "max_batch_tokens", "preset", "revision", "download"
)


@takes_flags(*FLAGS)
def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="The name of a published model, such as glm-130b; a checkpoint folder; or a name on the "
            "Hugging Face hub, of which config.json is read."
        ),
    ],
    gpus: Annotated[str, typer.Option(help="The devices, one for each rank: 4xRTX3090, 2xA100-40,2xA100-80 or 8xCPU.")],
    context: Annotated[
        int | None,
        typer.Option(
            min=1, help="The number of tokens in a full-length request. Without it: the model's limit, or 4096."
        ),
    ] = None,
    cards: Annotated[
        Path | None, typer.Option(help="A TOML or JSON file of more cards, in the form of engine/planning/cards.toml.")
    ] = None,
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Computes the memory that a model needs on devices, and predicts its times. Loads nothing."""
    from engine.planning.cards import CardError, devices, read_cards
    from engine.planning.deployment import Deployment
    from engine.planning.plan import plan as planned
    from model.config import CheckpointError
    from model.outline import Outline

    options = engine_options(given)
    try:
        listed = devices(gpus, read_cards(cards))
    except CardError as error:
        fail(str(error), code=2)
    try:
        outline = Outline.read(model, options.preset, options.revision, options.download)
        storage = outline.storage(options.quant, options.group_size, options.quant_head)
    except CheckpointError as error:
        fail(str(error))
    except UsageError as error:
        fail(str(error), code=2)
    limit = outline.architecture.max_sequence_length
    if context is not None and context > limit:
        fail(f"--context: the model has {limit} positions, not {context}", code=2)
    deployment = Deployment(
        outline.architecture,
        storage,
        listed,
        options.kv_cache_type,
        context,
        options.max_batch_tokens,
        floats=outline.float_dtype(storage),
    )
    result = planned(deployment, requantize=outline.stored is None)
    if as_json:
        print(json.dumps(result.to_json()))
        return
    _show(deployment, result)


def _show(deployment: "Deployment", result: "Plan") -> None:
    if result.devices:
        output.print(_memory(result))
        output.print(_times(result))
    if result.fits:
        lines = [
            f"fits: {result.max_tokens:,} tokens of keys and values; full-length requests at a time, of "
            f"{result.request_tokens:,}: {result.max_requests:,}"
        ]
        tp = f"--tp {deployment.ranks} " if deployment.ranks > 1 else ""
        # Rounded down: a little more would not fit.
        kept = f" --kv-cache-type {deployment.kv_cache_type}" if deployment.kv_cache_type != "auto" else ""
        lines.append(f"serve with {tp}--kv-cache-gb {math.floor(result.kv_cache_gb * 1000) / 1000:.3f}{kept}")
    else:
        lines = [f"does not fit: {result.reason}"]
        lines += [f"would fit: {options}" for options in result.instead] or ["nothing near it fits either"]
    lines += result.notes
    for line in lines:
        output.print(line, highlight=False, markup=False, soft_wrap=True)


def _memory(result: "Plan") -> Table:
    """A line for each kind of device with its memory; ranks with the same memory share a line."""
    table = Table(
        "devices", "memory", "weights", "workspace", "reserve", "free", "keys and values", title="GB of a device"
    )
    same = Counter(result.devices)
    for device, count in same.items():
        sizes = (device.memory_bytes, device.weights_bytes, device.workspace_bytes, device.reserve_bytes)
        table.add_row(
            f"{count} × {device.name}",
            *(f"{size / 1e9:.2f}" for size in sizes),
            f"{device.free_bytes / 1e9:.2f}",
            f"{device.kv_bytes_per_token / 1e3:.1f} KB a token",
        )
    return table


def _times(result: "Plan") -> Table:
    """The predicted times."""
    p = result.predicted
    table = Table("tokens", "encode", "generate", title="predicted")
    for tokens, seconds in p.encode_s.items():
        generate = p.decode_s.get(tokens)
        table.add_row(tokens, f"{seconds * 1e3:,.0f} ms", "" if generate is None else f"{generate:,.1f} s")
    if p.token_s is not None:
        table.add_row("one", "", f"{p.token_s * 1e3:.1f} ms")
    return table
