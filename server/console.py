"""The console of the command line: results on stdout, everything else on stderr."""

from typing import NoReturn

import typer
from rich.console import Console

errors = Console(stderr=True)
output = Console()


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends with one line on stderr."""
    tell(message)
    raise typer.Exit(code)


def tell(message: str) -> None:
    """One line on stderr."""
    errors.print(f"glm-infill: {message}", markup=False, highlight=False, soft_wrap=True)
