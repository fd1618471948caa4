"""How a rank's process ends: with which words, and at once. Does not import torch."""

import os
import sys
from pathlib import Path
from traceback import extract_tb
from typing import NoReturn

from model.config import CheckpointError
from quant.usage import UsageError


def is_foreseen(error: BaseException) -> bool:
    """Whether an error says itself, in words for users, what is wrong; another one is a fault of the program."""
    return isinstance(error, CheckpointError | UsageError) or (isinstance(error, OSError) and bool(error.strerror))


def reason_of(error: BaseException) -> str:
    """An error in one line. Those made for users say it themselves, others have their type and place before them."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if is_foreseen(error) and text:
        return text
    frame = next(iter(extract_tb(error.__traceback__)[-1:]), None)
    place = f" in {Path(frame.filename).name}, line {frame.lineno}" if frame else ""
    return f"{type(error).__name__}{place}" + (f": {text}" if text else "")


def leave(code: int) -> NoReturn:
    """Ends the process at once: gloo's threads can abort one that ends slowly when another rank is gone already."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
