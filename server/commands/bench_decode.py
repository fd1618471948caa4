"""`glm-infill bench decode`: the time of a network's steps, without a server."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table

from quant.usage import UsageError
from server.commands.flags import Given, takes_flags, with_defaults
from server.commands.options import AsJson, engine_flags, engine_options
from server.console import errors, fail, output

FLAGS = with_defaults(engine_flags("quant", "group_size", "quant_head", "kv_cache_type"), quant="int4")


@takes_flags(*FLAGS)
def bench_decode(
    preset: Annotated[str, typer.Option(help="The published model whose sizes the network has.")] = "chatglm-6b",
    layers: Annotated[int | None, typer.Option(min=1, help="The number of layers. Without it: the preset's.")] = None,
    rows: Annotated[str, typer.Option(help="The numbers of sequences in a step, separated by commas.")] = "1,4,16,32",
    context: Annotated[int, typer.Option(min=1, help="The number of tokens in each sequence's context.")] = 64,
    prefill: Annotated[
        int, typer.Option(min=0, help="The number of tokens in the context whose encoding is timed; 0 is none.")
    ] = 512,
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Times decode steps and a prefill of a network with random weights, beside the bandwidth of the memory."""
    from engine.bench import DecodeBench, decode
    from model.families import PRESETS
    from model.outline import published_dtype
    from model.storage import Storage

    options = engine_options(given)
    if preset not in PRESETS:
        fail(f"--preset: one of {', '.join(PRESETS)}", code=2)
    try:
        counts = [int(part) for part in rows.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        fail(f"--rows: positive numbers with commas, not {rows!r}", code=2)
    family, config = PRESETS[preset]
    architecture = family.architecture(config)
    architecture = dataclasses.replace(architecture, num_layers=layers or architecture.num_layers)
    try:
        storage = Storage.asked(options.quant, options.group_size, options.quant_head)
        with errors.status("measuring"):
            wanted = DecodeBench(
                architecture, storage, counts, prefill, context, options.kv_cache_type,
                floats=published_dtype(config, architecture),
            )  # fmt: skip
            result = {"preset": preset, "layers": architecture.num_layers, **decode(wanted)}
    except UsageError as error:
        fail(str(error), code=2)
    if not as_json:
        table = Table("rows", "ms a step", "tokens/s", "ns per million MACs", "share of read bandwidth")
        for count, row in result["decode"].items():
            values = [row["step_ms"], row["tokens_per_s"], row["ns_per_million_macs"], f"{row['bandwidth_share']:.0%}"]
            table.add_row(count, *map(str, values))
        output.print(table)
    print(json.dumps(result))
