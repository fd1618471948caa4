"""The sizes of a GLM, as its config.json has them."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and names file, field or tensor."""


@dataclass(frozen=True, slots=True)
class GLMConfig:
    """GLM v1 (arXiv 2103.10360). Field names are those of the published `config.json`.

    `vocab_size` counts embedding rows, which may be padded past the tokenizer's last id. The position tables
    have `max_sequence_length + 1` rows.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), (float, int) if field.type is float else int
            if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < 2**31:
                whole = "" if field.type is float else " without a fraction"
                raise CheckpointError(f"config.json: {field.name} must be a positive number{whole}, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def read(cls, folder: Path) -> "GLMConfig":
        """Reads `config.json`. Raises CheckpointError naming what is missing or wrong."""
        path = folder / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: not JSON ({error})") from None
        if not isinstance(data, dict) or data.get("model_type") != "glm":
            raise CheckpointError(f'{path}: model_type must be "glm"')
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as error:
            missing = sorted(known - data.keys() - {"layernorm_epsilon"})
            raise CheckpointError(f"{path}: missing {', '.join(missing)}") from error

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps({"model_type": "glm", "architectures": ["GLMModel"], **asdict(self)}, indent=2) + "\n"
