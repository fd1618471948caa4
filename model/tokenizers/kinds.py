"""The kind of a tokenizer's files, for messages about a folder that has another kind, or none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from model.config import CheckpointError
from model.contents import check_folder
from model.tokenizers.files import MissingFile, kind_of

T = TypeVar("T")
_PATTERNS = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")


def read_from(folder: Path, read: Callable[[Path], T]) -> T:
    """The tokenizer of a folder, as `read` reads it.

    Raises CheckpointError. If a file is missing, it says which tokenizer the folder has instead, or that it has none.
    """
    check_folder(folder)
    try:
        return read(folder)
    except MissingFile as error:
        held = [f"{path.name} ({kind})" for path in _paths(folder) if (kind := _kind(path))]
        if held:
            raise CheckpointError(f"{error}; of tokenizers the folder has {', '.join(held)}") from None
        raise CheckpointError(f"{error}; the folder has no tokenizer, --tokenizer FOLDER takes another one's") from None


def _paths(folder: Path) -> list[Path]:
    return [path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))]


def _kind(path: Path) -> str | None:
    """Words for a file's kind; None for a file that is no tokenizer."""
    if path.name == "tokenizer.json":
        try:
            return str(json.loads(path.read_bytes())["model"]["type"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "unreadable"
    named = {"vocab.json": "BPE, with merges.txt", "vocab.txt": "WordPiece"}
    if path.name in named:
        return named[path.name]
    try:
        with path.open("rb") as file:
            return kind_of(file.read(512))
    except OSError:
        return "unreadable"
