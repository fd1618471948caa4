"""`glm-infill tune`: trains an adapter."""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from quant.usage import UsageError
from server.commands.flags import Given, takes_flags
from server.commands.options import AsJson, engine_flags, engine_options, located
from server.console import fail, named, output, progress_bar


class Method(StrEnum):
    """The kind of adapter."""

    lora = "lora"
    prefix = "prefix"


class BaseKind(StrEnum):
    """The storage of the base's matrices during training."""

    float = "float"
    nf4 = "nf4"


@takes_flags(*engine_flags("model", "revision", "download", "device", "preset", "tokenizer"))
def tune(
    data: Annotated[
        Path, typer.Argument(help="A file with one JSON object per line: text and spans, context and target, or text.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder for the adapter. An unfinished one is continued.")],
    method: Annotated[Method, typer.Option(help="The kind of adapter: a LoRA or a prefix.")] = Method.lora,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="The rank of a LoRA.")] = 8,
    alpha: Annotated[
        float, typer.Option(min=0.001, help="The alpha of a LoRA, which scales products by alpha / rank.")
    ] = 16.0,
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="The dropout of a LoRA.")] = 0.0,
    target_modules: Annotated[
        str,
        typer.Option(help="The linear layers with a LoRA: ends of their paths. Without it: all in the blocks."),
    ] = "",
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / √rank instead.")] = False,
    prefix_length: Annotated[int, typer.Option(min=1, max=4096, help="The number of tokens in a prefix.")] = 16,
    projection: Annotated[
        int, typer.Option(min=0, help="The width of the network that computes a prefix; 0 is no network.")
    ] = 0,
    base: Annotated[
        BaseKind, typer.Option(help="The storage of the base model during training. nf4 is QLoRA, by bitsandbytes.")
    ] = BaseKind.float,
    evaluation: Annotated[Path | None, typer.Option("--eval", help="The evaluation data, in the same form.")] = None,
    eval_share: Annotated[
        float, typer.Option(min=0.001, max=0.9, help="The share of the data held out when --eval is not given.")
    ] = 0.1,
    eval_every: Annotated[int, typer.Option(min=1, help="The number of steps between evaluations.")] = 50,
    patience: Annotated[
        int,
        typer.Option(
            min=0, help="The number of evaluations without a better loss after which training stops; 0 never stops it."
        ),
    ] = 5,
    epochs: Annotated[float, typer.Option(min=0.01, help="The number of passes over the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(min=1, help="The number of steps, instead of passes.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="The number of lines per step.")] = 16,
    lr: Annotated[float, typer.Option(min=1e-9, help="The learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(min=0, help="The number of steps until the full learning rate.")] = 20,
    weight_decay: Annotated[float, typer.Option(min=0, help="The weight decay of AdamW.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The seed of random numbers.")] = 0,
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Trains a LoRA or a prefix on your lines. The same command resumes after a kill. Needs the extra `train`."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # tells of kernels that nobody asked for
    try:
        from model.config import CheckpointError
        from training.adapters import AdapterOptions
        from training.tune import Progress as Where
        from training.tune import TuneOptions
        from training.tune import tune as train
    except ImportError as error:
        fail(_lacking(error))
    chosen = located(engine_options(given))
    targets = tuple(part.strip() for part in target_modules.split(",") if part.strip())
    adapter = AdapterOptions(
        method.value, rank, alpha, dropout, targets, rslora, prefix_length, projection, base.value
    )  # fmt: skip
    options = TuneOptions(
        data, out, adapter, chosen.model, chosen.preset, chosen.tokenizer, evaluation, eval_share, eval_every, patience,
        epochs, steps, batch_size, lr, warmup, weight_decay, seed, chosen.device,
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with named(out), progress_bar(*columns) as progress:
        bar = progress.add_task("learning", total=None)

        def tell(where: Where, total: int) -> None:
            shown = f"loss {where.best:.3f}, {where.before:.3f} before"
            progress.update(bar, completed=where.step, total=total, description=shown)

        try:
            found = train(options, tell)
        except (CheckpointError, UsageError) as error:
            fail(str(error))
        except ImportError as error:
            fail(_lacking(error))
    if not as_json:
        before, after = found["eval_loss_before"], found["eval_loss"]
        output.print(f"{out}: loss a token on lines set apart {before} before, {after} after step {found['best_step']}")
    print(json.dumps(found))


def _lacking(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    extra = "bnb" if name == "bitsandbytes" else "train"
    return f"tune needs {name}: pip install 'glm-infill[{extra}]'"
