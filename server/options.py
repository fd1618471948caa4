"""Options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from engine.config import EngineConfig


class Quant(StrEnum):
    """How the linear layers are stored."""

    none = "none"
    int8 = "int8"
    int4 = "int4"
    nf4 = "nf4"
    llm_int8 = "llm-int8"


class QuantHead(StrEnum):
    """How the embedding and head are stored."""

    none = "none"
    int8 = "int8"
    int4 = "int4"


class KVCacheType(StrEnum):
    """How keys and values are kept."""

    auto = "auto"
    int8 = "int8"


QUANT = typer.Option("--quant", help="Quantization of the linear layers; as the checkpoint is stored when left out.")
GROUP_SIZE = typer.Option("--group-size", help="Inputs that share an int4 scale: 32, 64, 128; 0: a whole row.")
QUANT_HEAD = typer.Option("--quant-head", help="Storage of the embedding and head.")
Quantization = Annotated[Quant | None, QUANT]
GroupSize = Annotated[int | None, GROUP_SIZE]
Head = Annotated[QuantHead | None, QUANT_HEAD]
KVCacheKind = Annotated[
    KVCacheType | None,
    typer.Option("--kv-cache-type", help="Keys and values as the model computes (auto), or in a byte each (int8)."),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Published model whose sizes a folder without config.json has.")
]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer, where the checkpoint's has none.")
]
Model = Annotated[Path | None, typer.Option("--model", help="Checkpoint folder; the bundled demo when left out.")]
Url = Annotated[str | None, typer.Option("--url", help="Ask this server instead of loading a model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


def engine_config(
    model: Path | None,
    quant: Quant | None,
    group_size: int | None,
    quant_head: QuantHead | None,
    preset: str | None,
    tokenizer: Path | None,
    kv_cache_type: KVCacheType | None,
) -> EngineConfig:
    """The engine of a single command."""
    return EngineConfig(
        model=None if model is None else str(model),
        quant=None if quant is None else quant.value,
        group_size=group_size,
        quant_head=None if quant_head is None else quant_head.value,
        preset=preset,
        tokenizer=None if tokenizer is None else str(tokenizer),
        kv_cache_type=(kv_cache_type or KVCacheType.auto).value,
    )
