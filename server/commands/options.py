"""The options that several commands share."""

from typing import Annotated, TypeVar

import typer

from engine.options import EngineOptions
from model.config import CheckpointError
from server.commands.flags import Flag, Given, checked, flags_of
from server.console import fail

Chosen = TypeVar("Chosen", bound=EngineOptions)

# Of a command that loads a model for itself, once.
ENGINE = flags_of(
    EngineOptions,
    (
        "model", "revision", "download", "preset", "tokenizer", "quant", "group_size", "quant_head",
        "device", "kv_cache_gb", "kv_cache_type", "max_batch_tokens",
    ),
)  # fmt: skip
Url = Annotated[str | None, typer.Option("--url", help="The server to ask, instead of loading a model here.")]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", help="The adapter's folder; with --url the name of an adapter on the server."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


def engine_flags(*names: str) -> tuple[Flag, ...]:
    """The flags of some engine options."""
    return flags_of(EngineOptions, names)


def engine_options(given: Given) -> EngineOptions:
    """The engine options among the given values. If one is wrong, the command ends."""
    return checked(EngineOptions, {name: value for name, value in given.items() if name in EngineOptions.model_fields})


def located(options: Chosen) -> Chosen:
    """The options with folders in place of names on the hub. The command ends if there is none for a name."""
    try:
        return options.located()
    except CheckpointError as error:
        fail(str(error))
