"""`glm-infill bench decode`: what steps of a network take, without a server."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table

from server.console import errors, fail, output
from server.options import GROUP_SIZE, QUANT, QUANT_HEAD, AsJson, KVCacheKind, KVCacheType, Quant, QuantHead


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
