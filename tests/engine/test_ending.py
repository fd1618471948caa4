"""What a rank that could not start says: one line, whatever was raised."""

import errno

import pytest

from engine.processes.ending import reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("a/config.json: no such file\nmore"), "a/config.json: no such file"),
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
