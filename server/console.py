"""The console of the command line: results go to stdout, everything else to stderr."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn

GONE = 128 + signal.SIGPIPE  # as a shell tells it of other programs


class Stream(Console):
    """A console that lets `told` handle a reader that has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


errors = Stream(stderr=True)
output = Stream()


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar on a terminal; nothing elsewhere."""
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with one line on stderr."""
    tell(message)
    raise typer.Exit(code)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds this file's name to system errors that name no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with one line for a system error, and without one if the reader of stdout has gone.

    Raises SystemExit with 1 or with `GONE`.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        sys.exit(GONE)
    except OSError as error:
        _forget_stdout()
        tell(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        sys.exit(1)
    except UnicodeEncodeError as error:
        _forget_stdout()
        tell(f"standard output: {error.encoding} has no {error.object[error.start]!a}")
        sys.exit(1)


def hold_streams() -> None:
    """Opens closed standard streams, so that no file gets their descriptors, and names stdout for errors."""
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=before.encoding if before else None,
        errors=before.errors if before else None,
        line_buffering=os.isatty(1),
    )


class _Stdout(io.FileIO):
    def write(self, data: Any, /) -> int:
        with named(Path("standard output")):
            return super().write(data)


def tell(message: str) -> None:
    """Writes one line to stderr."""
    # Where nobody can be told, the exit code is left.
    with suppress(OSError):
        line = " ".join(message.split("\n"))
        errors.print(f"glm-infill: {line}", markup=False, highlight=False, soft_wrap=True)


def _forget_stdout() -> None:
    """Drops the rest of stdout, which Python would write at its end, and fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
