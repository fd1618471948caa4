"""The command line: `glm-infill COMMAND`. Exit code 0, 1 (failed, one line on stderr) or 2 (usage)."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from server.commands.batch import batch
from server.commands.bench_decode import bench_decode
from server.commands.bench_serve import bench_serve
from server.commands.doctor import doctor
from server.commands.fill import fill
from server.commands.keys import keys
from server.commands.plan import plan
from server.commands.quantize import quantize
from server.commands.score import score
from server.commands.serve import serve
from server.commands.synth import synth
from server.commands.tune import tune
from server.console import hold_streams, told


class Commands(TyperGroup):
    """The commands. Each ends with one line if the system refuses an operation."""

    def invoke(self, ctx: Any) -> Any:
        with told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    help="Fills blanks and scores spans with GLM models.",
)
bench = typer.Typer(no_args_is_help=True, help="Measures speed. The last line of the output is one JSON document.")
for command in (serve, fill, score, batch, quantize, tune, plan, synth, doctor):
    app.command()(command)
bench.command("decode")(bench_decode)
bench.command("serve")(bench_serve)
app.add_typer(bench, name="bench")
app.add_typer(keys, name="keys")


def main() -> None:
    """The entry point of the console script."""
    hold_streams()
    try:
        with told():
            app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
