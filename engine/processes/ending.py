"""The end of a rank's process: its last words, and its immediate exit. Does not import torch."""

import os
import sys
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

from model.config import CheckpointError
from quant.usage import UsageError


def is_foreseen(error: BaseException) -> bool:
    """Whether an error is made for users and explains itself. Another error is a fault of the program."""
    return isinstance(error, CheckpointError | UsageError) or (isinstance(error, OSError) and bool(error.strerror))


def reason_of(error: BaseException) -> str:
    """An error in one line. An error for users is its message; another one has its type and place before it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if is_foreseen(error) and text:
        return text
    frame = next(iter(extract_tb(error.__traceback__)[-1:]), None)
    place = f" in {Path(frame.filename).name}, line {frame.lineno}" if frame else ""
    return f"{type(error).__name__}{place}" + (f": {text}" if text else "")


def leave(code: int) -> NoReturn:
    """Ends the process at once. In a slow exit gloo's threads can abort when another rank is gone already."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
