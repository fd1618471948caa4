"""The settings of a foreign quantization: the `quantization_config` of config.json, each field checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import CheckpointError, Config


class Settings:
    """The fields of a `quantization_config`. `source` names their place in messages."""

    def __init__(self, fields: Mapping[str, Any], source: str) -> None:
        self.fields, self.source = fields, source

    @classmethod
    def read(cls, folder: Path, old: str | None = None) -> "Settings":
        """The `quantization_config` of a folder, else the fields of the file `old`.

        Raises CheckpointError for a file that cannot be read.
        """
        fields = Config.read(folder).fields.get("quantization_config")
        if fields is None and old is not None:
            return cls(Config.read(folder, old).fields, str(folder / old))
        if not isinstance(fields, dict):
            raise CheckpointError(f"{folder / 'config.json'}: quantization_config is {json.dumps(fields)}, no object")
        return cls(fields, f"{folder / 'config.json'}: quantization_config")

    def get(self, name: str, default: Any = None) -> Any:
        """A field's value; `default` if it is missing or null."""
        value = self.fields.get(name)
        return default if value is None else value

    def only(self, name: str, value: object) -> None:
        """Raises CheckpointError unless a field has this value or is missing."""
        self.one_of(name, value)

    def one_of(self, name: str, *values: Any) -> Any:
        """A field's value, which is one of these; the first one if it is missing. Raises CheckpointError."""
        value = self.get(name, values[0])
        if isinstance(value, bool) is not isinstance(values[0], bool) or value not in values:
            raise CheckpointError(f"{self.source}: {name} is {value!r}, only {' or '.join(map(repr, values))} is read")
        return value

    def group_size(self, name: str) -> int:
        """The inputs that share a scale; 0 for −1, a whole row. Raises CheckpointError for another value."""
        value = self.get(name, 128)
        if type(value) is not int or not (value == -1 or 0 < value < 2**31):
            raise CheckpointError(f"{self.source}: {name} must be a positive number or -1, not {value!r}")
        return max(value, 0)
