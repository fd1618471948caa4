"""`glm-infill serve`: serves a model over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from engine.config import EngineConfig
from engine.processes.process import EngineProcess
from engine.rank_info import RankInfo
from server.commands.flags import Given, checked, flags_of, takes_flags
from server.commands.options import located
from server.console import fail
from server.serving import serve as run_server
from server.settings import PREFIX, Settings

FLAGS = flags_of(Settings, Settings.model_fields.keys() - {"model"}, PREFIX)


@takes_flags(*FLAGS)
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(help=rf"{Settings.model_fields['model'].description} \[env var: {PREFIX}MODEL]"),
    ] = None,
    *,
    given: Given,
) -> None:
    """Serves a model over HTTP. A flag overrides its environment variable.

    Under torchrun every process is a rank, on one machine or several; the first one serves.
    """
    settings = located(checked(Settings, given if model is None else {**given, "model": model}))
    rank_info = RankInfo.of_torchrun()
    size = settings.tp or (rank_info.size if rank_info else 1)
    if rank_info and size != rank_info.size:
        fail(f"--tp {size}: torchrun has started {rank_info.size} ranks", code=2)
    config = EngineConfig.of(settings, tp=size)
    if rank_info and rank_info.rank > 0:
        from engine.processes.worker import follow_launched

        follow_launched(config, rank_info)
    raise typer.Exit(run_server(settings, EngineProcess(config, rank_info=rank_info)))
