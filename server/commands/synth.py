"""`glm-infill synth`: writes a checkpoint of true shapes with random weights."""

import json
import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quant.usage import UsageError
from server.commands.options import AsJson
from server.console import fail, named, output, progress_bar


class Format(StrEnum):
    """The format of a checkpoint's files."""

    hf = "hf"
    sat = "sat"


def synth(
    preset: Annotated[str, typer.Argument(help="The name of a published model, such as glm-10b.")],
    target: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    layers: Annotated[int | None, typer.Option(min=1, help="The number of layers. Without it: the preset's.")] = None,
    tp: Annotated[int, typer.Option(min=1, help="The model-parallel ranks of the format sat.")] = 1,
    format: Annotated[
        Format | None, typer.Option(help="The format of the files. Without it: that of the original.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The folder of a tokenizer to copy.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of the random weights.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Writes a checkpoint of a published model's names, shapes and layout with random weights."""
    from model.config import CheckpointError
    from model.families import PRESETS
    from model.synth import of_preset, published_format, write_synthetic
    from model.tokenizer import FILES

    try:
        kind = published_format(preset) if format is None else format.value
        made = of_preset(preset, layers, kind, seed)
        if tokenizer is not None:
            PRESETS[preset][0].tokenizer(tokenizer)
        with named(target), progress_bar() as progress:
            task = progress.add_task("writing", total=made.num_bytes)
            write_synthetic(target, made, kind, tp, lambda num_bytes: progress.advance(task, num_bytes))
            for path in () if tokenizer is None else (tokenizer / name for name in FILES):
                if path.exists():
                    part = target / f"{path.name}.part"
                    shutil.copyfile(path, part)
                    os.replace(part, target / path.name)
    except CheckpointError as error:
        fail(str(error))
    except UsageError as error:
        fail(str(error), code=2)
    needs = {"--preset": preset if made.config is None else None, "--tokenizer": None if tokenizer else "FOLDER"}
    options = [f"{option} {value}" for option, value in needs.items() if value is not None]
    if as_json:
        facts = {"model": str(target), "preset": preset, "format": kind, "tp": tp, "bytes": made.num_bytes}
        print(json.dumps(facts | {"options": options}))
        return
    hint = f", to be read with {' '.join(options)}" if options else ""
    output.print(f"{target}: {made.num_bytes / 1e6:.1f} MB{hint}", highlight=False, markup=False)
