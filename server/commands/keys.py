"""`glm-infill keys`: makes keys for the clients of a server."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quant.usage import UsageError
from server.commands.options import AsJson
from server.console import fail, named
from server.keyfile import forget_key, new_key

keys = typer.Typer(no_args_is_help=True, help="Makes keys for the clients of a server.")


class Priority(StrEnum):
    """The highest priority of a key's requests."""

    interactive = "interactive"
    batch = "batch"


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="The name of the key, which appears in logs.")],
    file: Annotated[
        Path, typer.Option("--file", help="The key file of `serve --api-keys`. It is created if it is missing.")
    ],
    admin: Annotated[bool, typer.Option("--admin", help="Allow the key to load and unload adapters too.")] = False,
    priority: Annotated[
        Priority,
        typer.Option(help="The highest priority of its requests. batch requests wait for interactive ones."),
    ] = (Priority.interactive),
    requests_per_minute: Annotated[
        float | None, typer.Option(help="The request limit per minute. Without it: the server's.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="The token limit per minute. Without it: the server's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a key, adds its hash to a file, and prints it. The key is shown only this once."""
    try:
        with named(file):
            key = new_key(
                file,
                name=name,
                role="admin" if admin else "user",
                priority=priority.value,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
    except UsageError as error:
        fail(str(error), code=2)
    try:
        print(json.dumps({"name": name, "key": key, "file": str(file)}) if as_json else key, flush=True)
    except OSError:
        forget_key(file, name)
        raise
