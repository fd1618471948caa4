"""Reading config.json: the numbers and choices of a checkpoint, each checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.lfs import ADVICE, is_pointer


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message is one line and names the file, field or tensor."""


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a file that cannot be read: the reason, or that it is a pointer of Git LFS."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        start = b""
    return CheckpointError(f"{path}: {ADVICE if is_pointer(start) else reason}")


class Config:
    """The fields of a config.json. A missing field, or one of a wrong type, raises a CheckpointError that names it."""

    def __init__(self, fields: Mapping[str, Any], source: str = "config.json") -> None:
        self.fields = fields
        self.source = source

    @classmethod
    def read(cls, folder: Path, name: str = "config.json") -> "Config":
        """Reads a JSON object. Raises CheckpointError for a missing file and for other content."""
        path = folder / name
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise damaged(path, f"not JSON ({error})") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: not a JSON object")
        return cls(data, str(path))

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value; `default` if it is missing or null."""
        value = self.fields.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None = None) -> int:
        """A positive integer below 2³¹. Raises CheckpointError for another value, or for none without a default."""
        value = self._given(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{self.source}: {name} must be a positive number without a fraction, not {value!r}")
        if value >= 2**31:
            raise CheckpointError(f"{self.source}: {name} is {value!r}, the most is {2**31 - 1}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number below 2³¹. Raises CheckpointError for another value, or for none without a default."""
        value = self._given(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**31:
            raise CheckpointError(f"{self.source}: {name} must be a positive number, not {value!r}")
        return float(value)

    def heads(
        self, hidden_size: int, num_heads: int, size: str = "hidden_size", count: str = "num_attention_heads"
    ) -> int:
        """Numbers per head, hidden_size / num_heads. Raises CheckpointError, with both fields' names, if the division
        leaves a rest."""
        if hidden_size % num_heads:
            raise CheckpointError(f"{self.source}: {size} {hidden_size} is not a multiple of {count} {num_heads}")
        return hidden_size // num_heads

    def only(self, name: str, *values: object) -> None:
        """Raises CheckpointError unless a field has one of these values; a missing field counts as the first one."""
        if self.get(name, values[0]) not in values:
            known = " or ".join(map(repr, values))
            raise CheckpointError(f"{self.source}: {name} is {self.fields[name]!r}, only {known} is supported")

    def _given(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise CheckpointError(f"{self.source}: missing {name}")
        return value
