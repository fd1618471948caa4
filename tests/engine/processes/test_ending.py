"""What a rank that could not start says: one line, whatever was raised."""

import errno

import pytest

from engine.processes.ending import is_foreseen, reason_of
from model.config import CheckpointError
from quant.usage import UsageError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("a/config.json: no such file\nmore"), "a/config.json: no such file"),
        (UsageError("no such scheme: int3"), "no such scheme: int3"),
        (ValueError("a slip"), "ValueError: a slip"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file or directory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError("odd"), "OSError: odd"),
        (ValueError(), "ValueError"),
        (RuntimeError("\n\n  first\nsecond"), "RuntimeError: first"),
        (MemoryError(), "MemoryError"),
        (SystemExit("mine"), "SystemExit: mine"),
    ],
)
def test_it_is_one_line(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


def test_what_nobody_foresaw_has_its_place() -> None:
    try:
        [][0]
    except IndexError as error:
        said = reason_of(error)
    assert said.startswith("IndexError in test_ending.py, line ")
    assert said.endswith(": list index out of range")


def test_only_what_the_program_did_wrong_keeps_its_traceback() -> None:
    foreseen = CheckpointError("no"), UsageError("no"), FileNotFoundError(errno.ENOENT, "No such file", "/a")
    assert all(is_foreseen(error) for error in foreseen)
    assert not any(is_foreseen(error) for error in (ValueError("no"), OSError("odd"), RuntimeError("no")))
