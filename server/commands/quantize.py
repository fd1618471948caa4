"""`glm-infill quantize`: writes a checkpoint in fewer bits."""

import json
from pathlib import Path
from typing import Annotated

import typer

from quant.registry import scheme_names
from quant.usage import UsageError
from server.commands.flags import Given, takes_flags
from server.commands.options import AsJson, engine_flags, engine_options, located
from server.console import fail, named, output, progress_bar

FLAGS = engine_flags("revision", "download", "preset", "tokenizer", "group_size", "quant_head")


@takes_flags(*FLAGS)
def quantize(
    source: Annotated[Path, typer.Argument(help="The checkpoint folder to read, or a name on the Hugging Face hub.")],
    target: Annotated[
        Path, typer.Argument(help="The folder to write: a new one, or an unfinished one of the same command.")
    ],
    scheme: Annotated[
        str, typer.Option(help=f"The storage of the linear layers: one of {', '.join(scheme_names()[1:])}.")
    ],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A UTF-8 text for calibration (rounding with error compensation), with blank lines between documents."
        ),
    ] = None,
    calibrate_windows: Annotated[
        int, typer.Option(min=1, help="The number of text windows for calibration, of 32 to 256 tokens each.")
    ] = 512,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="The maximum size of a file, in 10⁹ bytes.")] = 4.0,
    tp: Annotated[int, typer.Option(min=1, max=64, help="The number of devices that the files are cut for.")] = 1,
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Writes a quantized checkpoint, with one tensor in memory at a time. The same command resumes after a kill."""
    from model.config import CheckpointError
    from model.convert import Conversion, Recipe
    from model.storage import Storage

    options = located(engine_options({**given, "model": source}))
    assert options.model is not None
    try:
        storage = Storage.asked(scheme, options.group_size, options.quant_head)
    except UsageError as error:
        fail(str(error), code=2)
    shard_bytes, keep_head = int(shard_gb * 1e9), options.quant_head is None
    recipe = Recipe(
        storage, calibrate, calibrate_windows, shard_bytes, options.preset, options.tokenizer, tp, keep_head
    )
    try:
        with named(target), progress_bar() as progress:
            task = progress.add_task("reading", total=None)
            conversion = Conversion(options.model, target, recipe)
            progress.update(task, description="quantizing", total=conversion.num_bytes)
            facts = conversion.run(lambda num_bytes: progress.advance(task, num_bytes))
    except CheckpointError as error:
        fail(str(error))
    except UsageError as error:
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
